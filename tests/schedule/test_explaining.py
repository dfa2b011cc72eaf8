"""What people are told of each prospect: its expected seconds, and why it is taken or not."""

from dataclasses import replace

import pytest

from hybrid.cost.link_view import LinkView
from hybrid.schedule.explaining import Beliefs, GatewayView, explained, predicted_s
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import Constraints, Prospect

LOCAL = Prospect(placement="local", head_s=0.200)
OFFLOAD = Prospect(placement="offload", codec="lossless", gateway="g", bytes_up=100_000, bytes_down=1_000, tail_s=0.01)
SPLIT = Prospect(
    placement="split", cut="c" * 16, gateway="g", head_s=0.05, bytes_up=20_000, bytes_down=1_000, tail_s=0.008
)
POOR = LinkView(rtt_s=0.06, uplink_bps=1e6, downlink_bps=4e6)


def beliefs(link: LinkView = POOR, **constraints: object) -> Beliefs:
    return Beliefs(
        device_speed_ratio=1.0, gateways={"g": GatewayView(link=link)}, constraints=Constraints(**constraints)
    )


def test_sum_of_parts() -> None:
    view = GatewayView(link=POOR, speed_ratio=2.0, queue_s=0.003)
    expected = 3 * 0.05 + 0.06 + 20_000 * 8 / 1e6 + 1_000 * 8 / 4e6 + 0.003 + 2 * 0.008
    assert predicted_s(SPLIT, 3.0, view) == pytest.approx(expected)
    assert predicted_s(replace(SPLIT, tail_s=None), 3.0, view) is None
    assert predicted_s(SPLIT, 3.0, None) is None


def test_every_prospect_has_its_reason() -> None:
    rows = explained([LOCAL, OFFLOAD, replace(SPLIT, tail_s=None)], LOCAL, 0.2, beliefs())
    assert [row.chosen for row in rows] == [True, False, False]
    assert "lowest expected cost" in rows[0].reason
    assert rows[1].reason.startswith("expected +")
    assert rows[2].reason == "not measured yet"


def test_what_was_forced_says_so() -> None:
    rows = explained([LOCAL, OFFLOAD], OFFLOAD, 0.5, beliefs(), is_forced=True)
    assert (rows[1].chosen, rows[1].reason, rows[1].predicted_s) == (True, "forced by options.placement", 0.5)
    assert explained([LOCAL, OFFLOAD], OFFLOAD, None, beliefs())[0].reason == "not compared yet"


@pytest.mark.parametrize(
    ("prospect", "constraints", "words"),
    [
        (replace(OFFLOAD, raw_input=True), {"raw_input_may_leave": False}, "raw input may not leave"),
        (replace(OFFLOAD, accuracy_drop=None), {}, "codec lossless is lossy and not calibrated"),
        (replace(LOCAL, variant="int8", accuracy_drop=None), {}, "variant int8 is lossy and not calibrated"),
        (replace(OFFLOAD, accuracy_drop=0.05), {}, "accuracy drop 0.050 is above 0.010"),
        (OFFLOAD, {"uplink_left_bytes": 10.0}, "uplink budget"),
        (replace(OFFLOAD, obstacle="cannot run"), {}, "cannot run"),
    ],
)
def test_constraints_refuse_and_say_why(prospect: Prospect, constraints: dict[str, object], words: str) -> None:
    row = explained([LOCAL, prospect], LOCAL, 0.2, beliefs(**constraints))[1]
    assert words in row.reason
    assert row.predicted_s is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objective": "speed"}, "choose one of latency"),
        ({"placement": "cloud"}, "choose auto, local, offload"),
        ({"placement": "split:xyz"}, "16 hex digits"),
        ({"deadline_s": 0.0}, "above 0"),
        ({"max_accuracy_drop": 2.0}, "ratio from 0 to 1"),
    ],
)
def test_options_say_what_they_want(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**arguments)  # type: ignore[arg-type]
