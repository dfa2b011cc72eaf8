"""What the link estimate learns from transfers whose truth is known."""

import random

import pytest
from msgspec.structs import replace

from hybrid.cost.link import LinkEstimate, LinkView


def transfer_s(n_up: int, n_down: int, *, rtt_s: float, up_bps: float, down_bps: float) -> float:
    return rtt_s + 8 * n_up / up_bps + 8 * n_down / down_bps


def test_nothing_is_known_at_first() -> None:
    view = LinkEstimate().view
    assert view.transfer_s(1000, 1000) is None
    assert view.is_stale(0.0)


@pytest.mark.parametrize("up_bps", [1e6, 20e6, 300e6])
@pytest.mark.parametrize("rtt_s", [0.001, 0.04, 0.6])
def test_uplink_is_learnt_from_uploads(up_bps: float, rtt_s: float) -> None:
    link, seeded = LinkEstimate(), random.Random(3)
    for at_s in range(12):
        n_up = seeded.randrange(30_000, 600_000)
        seconds = transfer_s(n_up, 2_000, rtt_s=rtt_s, up_bps=up_bps, down_bps=up_bps)
        link.observe_rtt(rtt_s * seeded.uniform(1.0, 1.02), at_s)
        link.observe_transfer(n_up, 2_000, seconds, at_s)
    expected = transfer_s(200_000, 2_000, rtt_s=rtt_s, up_bps=up_bps, down_bps=up_bps)
    assert link.view.transfer_s(200_000, 2_000) == pytest.approx(expected, rel=0.15, abs=0.002)


def test_downlink_is_learnt_from_large_replies_only() -> None:
    link = LinkEstimate()
    for at_s in range(6):
        link.observe_rtt(0.02, at_s)
        link.observe_transfer(1_000, 500_000, transfer_s(1_000, 500_000, rtt_s=0.02, up_bps=1e6, down_bps=8e6), at_s)
    assert link.view.uplink_bps is None
    assert link.view.downlink_bps == pytest.approx(8e6, rel=0.1)


def test_small_messages_teach_no_rate() -> None:
    link = LinkEstimate()
    link.observe_rtt(0.02, 0.0)
    link.observe_transfer(500, 500, 0.021, 0.0)
    assert link.view.uplink_bps is None


def test_a_link_that_collapses_is_believed_within_three_transfers() -> None:
    link = LinkEstimate()
    for at_s, up_bps in enumerate([20e6] * 20 + [1e6] * 3):
        link.observe_rtt(0.02, at_s)
        link.observe_transfer(50_000, 100, transfer_s(50_000, 100, rtt_s=0.02, up_bps=up_bps, down_bps=1e7), at_s)
    assert link.view.uplink_bps == pytest.approx(1e6, rel=0.2)


def test_age_makes_it_stale_and_a_new_connection_forgets() -> None:
    link = LinkEstimate()
    link.observe_rtt(0.02, 5.0)
    link.observe_transfer(50_000, 100, 0.1, 5.0)
    assert not link.view.is_stale(6.0)
    assert link.view.is_stale(60.0)
    link.forget()
    assert replace(link.view, epoch=0) == LinkView()


def test_a_request_faster_than_the_round_trip_corrects_it() -> None:
    link = LinkEstimate()
    for at_s in range(20):
        link.observe_rtt(1.3, at_s)
    link.observe_transfer(100_000, 100, 0.05, 21.0)
    assert link.view.rtt_s == pytest.approx(0.05)
