"""What a prospect is expected to take, as the sum of its parts."""

from dataclasses import replace

import pytest

from hybrid.cost.link_view import LinkView
from hybrid.schedule.prospect import Prospect
from hybrid.schedule.sum_of_parts import GatewayView, predicted_s

SPLIT = Prospect(
    placement="split", cut="c" * 16, gateway="g", head_s=0.05, bytes_up=20_000, bytes_down=1_000, tail_s=0.008
)


def test_sum_of_parts() -> None:
    view = GatewayView(link=LinkView(rtt_s=0.06, uplink_bps=1e6, downlink_bps=4e6), speed_ratio=2.0, queue_s=0.003)
    expected = 3 * 0.05 + 0.06 + 20_000 * 8 / 1e6 + 1_000 * 8 / 4e6 + 0.003 + 2 * 0.008
    assert predicted_s(SPLIT, 3.0, view) == pytest.approx(expected)
    assert predicted_s(replace(SPLIT, tail_s=None), 3.0, view) is None
    assert predicted_s(SPLIT, 3.0, None) is None
