"""The window of unacknowledged bytes over a simulated bottleneck with a deep buffer."""

import pytest

from hybrid.wire.flight import FLOOR_BYTES, Flight


def worst_queue_s(rate_bps: float, rtt_s: float, n_bytes: int) -> tuple[float, float]:
    """Sends over a bottleneck that buffers everything: the longest late queueing delay, and the seconds it took."""
    flight = Flight()
    now_s = free_s = 0.0
    sent = acked = 0
    acks: list[float] = []
    worst_s = 0.0
    while acked < n_bytes:
        while sent < n_bytes and flight.room_bytes > 0:
            flight.sent(16_384, now_s)
            sent += 16_384
            free_s = max(free_s, now_s) + 16_384 * 8 / rate_bps
            acks.append(free_s + rtt_s)
            if sent > n_bytes / 3:
                worst_s = max(worst_s, free_s - now_s)
        now_s = acks.pop(0)
        flight.acked(16_384, now_s)
        acked += 16_384
    return worst_s, now_s


@pytest.mark.parametrize(("rate_bps", "rtt_s"), [(2e6, 0.06), (10e6, 0.04), (100e6, 0.01), (100e6, 0.1)])
def test_the_queue_stays_short_and_the_link_full(rate_bps, rtt_s):
    n_bytes = int(rate_bps / 8 * 10)
    worst_s, total_s = worst_queue_s(rate_bps, rtt_s, n_bytes)
    assert worst_s <= max(0.35, 8 * FLOOR_BYTES / rate_bps + 0.1)
    assert total_s <= 10 * 1.25


def test_what_is_dropped_is_not_waited_for():
    flight = Flight()
    flight.sent(1 << 20, 0.0)
    assert flight.room_bytes < 0
    flight.dropped(1 << 20)
    assert flight.room_bytes > 0
    assert flight.unacked_bytes == 0
