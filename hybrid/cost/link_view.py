"""What is believed of a link at one moment, and what a transfer over it would take."""

from math import inf
from typing import Final

import msgspec

from hybrid.cost.drift import Outlook
from hybrid.cost.slow_start import INITIAL_WINDOW_BYTES, slow_start_s, window_after_idle_bytes

MIN_RATE_SAMPLE_BYTES: Final = 8 * 1024
"""Transfers below this say nothing about goodput."""

LEAST_ACK_S: Final = 0.02

MOST_HOPE: Final = 64.0

CHUNK_BYTES: Final = 16 * 1024
"""Acknowledgements come for pieces of this size: so much more may have arrived than was acknowledged."""


class LinkView(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of a link at one moment.

    Attributes:
        rtt_s: round trip in seconds, None while unknown.
        uplink_bps: goodput device to gateway in bit/s, None while unknown.
        downlink_bps: goodput gateway to device in bit/s, None while unknown.
        rtt_spread_ratio: relative deviation of the round trip.
        uplink_spread_ratio: relative deviation of the uplink's goodput.
        downlink_spread_ratio: relative deviation of the downlink's goodput.
        measured_s: monotonic time of the last request or goodput sample, 0 when there is none.
        up_window_bytes: what the device's side could send in one round trip after the last transfer.
        down_window_bytes: the same for the gateway's side.
        cold_ratio: share of the textbook's slow start that this link shows (0: none, as under BBR after idle time).
        overhead_s: what a request takes beside the round trip and its bytes.
        free_s: monotonic time when what was cancelled has left the uplink.
        epoch: counts jumps of round trip and goodput.
        uplink: where the uplink's goodput tends to while nobody measures it.
        downlink: the same of the downlink.
    """

    rtt_s: float | None = None
    uplink_bps: float | None = None
    downlink_bps: float | None = None
    rtt_spread_ratio: float = 0.0
    uplink_spread_ratio: float = 0.0
    downlink_spread_ratio: float = 0.0
    measured_s: float = 0.0
    up_window_bytes: float = INITIAL_WINDOW_BYTES
    down_window_bytes: float = INITIAL_WINDOW_BYTES
    cold_ratio: float = 1.0
    free_s: float = -inf
    overhead_s: float = 0.0
    epoch: int = 0
    uplink: Outlook | None = None
    downlink: Outlook | None = None

    def transfer_s(self, n_bytes_up: float, n_bytes_down: float, now_s: float | None = None) -> float | None:
        """Seconds that the network takes for a request of these sizes; None while the link is unknown.

        A message too small to measure a rate with takes a round trip, whatever the rate; a direction that was not
        measured yet counts as the other one.

        Args:
            n_bytes_up: bytes of the request.
            n_bytes_down: bytes of the reply.
            now_s: when it departs; None for a connection in full swing (no slow start, nothing ahead of it).
        """
        if self.rtt_s is None:
            return None
        up_bps, down_bps = self.uplink_bps or self.downlink_bps, self.downlink_bps or self.uplink_bps
        if up_bps is None or down_bps is None:
            return self.rtt_s + self.overhead_s if n_bytes_up + n_bytes_down < MIN_RATE_SAMPLE_BYTES else None
        up_s, down_s = 8 * n_bytes_up / up_bps, 8 * n_bytes_down / down_bps
        if now_s is None:
            return self.rtt_s + self.overhead_s + up_s + down_s
        waited_s = slow_start_s(n_bytes_up, up_s, self.up_window_at(now_s), self.rtt_s)
        waited_s += slow_start_s(n_bytes_down, down_s, self.down_window_at(now_s), self.rtt_s)
        return self.rtt_s + self.overhead_s + up_s + down_s + self.cold_ratio * waited_s + self.backlog_s(now_s)

    def up_window_at(self, now_s: float) -> float:
        """Bytes that may leave in the first round trip of a request that departs now."""
        return window_after_idle_bytes(self.up_window_bytes, now_s - self.measured_s, self.rtt_s or 0.0)

    def down_window_at(self, now_s: float) -> float:
        """The same for the reply."""
        return window_after_idle_bytes(self.down_window_bytes, now_s - self.measured_s, self.rtt_s or 0.0)

    def uplink_at(self, now_s: float) -> tuple[float | None, float]:
        """The uplink's goodput that is expected now, and the spread that the estimate's age adds to transfers."""
        if self.uplink is None:
            return self.uplink_bps, 0.0
        return self.uplink.after(now_s - self.measured_s)

    def downlink_at(self, now_s: float) -> tuple[float | None, float]:
        """The same of the downlink."""
        if self.downlink is None:
            return self.downlink_bps, 0.0
        return self.downlink.after(now_s - self.measured_s)

    def likely_ratio(self, up_bps: float | None) -> float:
        """How many times as fast as this the uplink is in its good moments; 1 where nothing is known of them."""
        if self.uplink is None or not up_bps:
            return 1.0
        return max(1.0, min(MOST_HOPE, self.uplink.good() / up_bps))

    def backlog_s(self, now_s: float) -> float:
        """Seconds until what was cancelled has left the uplink."""
        return max(0.0, self.free_s - now_s)

    def first_ack_s(self) -> float:
        """Seconds after which something of a large message should have been acknowledged."""
        chunk_s = 8 * CHUNK_BYTES / self.uplink_bps if self.uplink_bps else 0.0
        return 3 * (self.rtt_s or 0.0) + 2 * chunk_s + LEAST_ACK_S
