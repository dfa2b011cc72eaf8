"""The link: slow start, idle restarts, losses, outages, and what is cut short."""

import numpy as np
import pytest

from devices.trace import Trace
from hybrid.simulation.curve import RateCurve
from hybrid.simulation.link import INITIAL_WINDOW_BYTES, Flow, Link, LinkModel, window_under_loss

RATE, RTT = 20e6, 0.04


def flow(*, is_paced: bool = False) -> Flow:
    return Flow(RateCurve(np.zeros(1), np.full(1, RATE), 10.0), is_paced=is_paced)


def seconds(one: Flow, at_s: float, n_bytes: int) -> float:
    start_s, end_s = one.send(at_s, n_bytes, RTT)
    assert start_s == at_s
    return end_s - start_s


def test_a_message_within_the_window_leaves_at_the_link_s_rate():
    assert seconds(flow(), 0.0, INITIAL_WINDOW_BYTES) == pytest.approx(8 * INITIAL_WINDOW_BYTES / RATE)


def test_a_new_connection_waits_for_each_window():
    """Two windows of 14,480 and 28,960 bytes leave a round trip apart; the rest follows a third one later."""
    left = 50_000 - 3 * INITIAL_WINDOW_BYTES
    assert seconds(flow(), 0.0, 50_000) == pytest.approx(2 * RTT + 8 * left / RATE)


def test_a_warm_connection_does_not_wait_and_an_idle_one_does_again():
    one = flow()
    for at_s in (0.0, 0.1, 0.2, 0.3):
        warm_s = seconds(one, at_s, 50_000)
    assert warm_s == pytest.approx(8 * 50_000 / RATE)
    assert seconds(one, 30.0, 50_000) > warm_s + RTT, "thirty idle seconds cost the window"


def test_bbr_keeps_its_window_over_idle_time_but_paces_small_messages():
    one = flow(is_paced=True)
    for at_s in (0.0, 1.0, 2.0):
        seconds(one, at_s, 100_000)
    assert seconds(one, 60.0, 100_000) == pytest.approx(8 * 100_000 / RATE)
    assert seconds(one, 61.0, 30_000) > 8 * 30_000 / RATE


def test_transfers_queue_and_a_cancelled_one_makes_room_but_for_what_the_kernel_holds():
    one = flow()
    _, first_end = one.send(0.0, 1_000_000, RTT)
    assert one.send(0.1, 1000, RTT)[0] == first_end
    other = flow()
    _, end_s = other.send(0.0, 1_000_000, RTT)
    other.cut_short(0.1, end_s, 8.0 * 65536)
    assert other.free_s == pytest.approx(0.1 + 8 * 65536 / RATE)


def test_losses_bound_cubic_s_window_and_delay_single_messages():
    lossy = Trace.of_rows([(0.0, 50e6, 50e6, 0.05, 0.05)], 10.0)
    window = float(window_under_loss(lossy)[0])
    assert window == pytest.approx(1.22 / 0.05**0.5 * 1448)  # Reno's, which is larger here
    link = Link(LinkModel(trace=lossy, congestion="cubic"))
    _, end_s = link.up.send(0.0, 1_000_000, 0.05)
    assert 8e6 / end_s == pytest.approx(8 * window / 0.05, rel=0.35), "a window each round trip"
    paced = Link(LinkModel(trace=lossy, congestion="bbr"))
    _, fast_s = paced.up.send(0.0, 1_000_000, 0.05)
    assert end_s > 4 * fast_s
    assert link.loss_delay_s(0.0, 1448, luck=0.99) == 0.0
    assert link.loss_delay_s(0.0, 1448, luck=0.01) == pytest.approx(0.25)
    assert link.loss_delay_s(0.0, 50 * 1448, luck=0.5) == pytest.approx(0.05)
