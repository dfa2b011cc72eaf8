"""The link to a gateway: round trip and goodput each way, measured on the transfers that happen anyway.

Design: no clock of the other side is used. The gateway says how long it received, queued and computed; what remains of
the total is the network. Small messages teach the round trip, large ones the goodput: one that is too small to tell a
rate from the round trip's noise teaches nothing about the rate.
"""

from dataclasses import dataclass
from threading import Lock

from hybrid.cost.running import RunningEstimate

MIN_RATE_SAMPLE_BYTES = 8 * 1024
"""Transfers below this say nothing about goodput."""

LEAST_MOVING_S = 1e-4
"""On a link that is faster than the round trip's noise, bytes count as moving for at least so long."""

STALE_S = 10.0
"""Age at which an estimate deserves a fresh sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """What is believed of a link at one moment.

    Attributes:
        rtt_s: round trip in seconds, None while unknown.
        uplink_bps: goodput device to gateway in bit/s, None while unknown.
        downlink_bps: goodput gateway to device in bit/s, None while unknown.
        rtt_spread_ratio: relative deviation of the round trip.
        uplink_spread_ratio: relative deviation of the uplink's goodput.
        measured_s: monotonic time of the last request or goodput sample, 0 when there is none.
    """

    rtt_s: float | None = None
    uplink_bps: float | None = None
    downlink_bps: float | None = None
    rtt_spread_ratio: float = 0.0
    uplink_spread_ratio: float = 0.0
    measured_s: float = 0.0

    def transfer_s(self, n_bytes_up: int, n_bytes_down: int) -> float | None:
        """Seconds that the network takes for a request of these sizes; None while the link is unknown.

        A message too small to measure a rate with takes a round trip, whatever the rate; a direction that was not
        measured yet counts as the other one.
        """
        if self.rtt_s is None:
            return None
        up_bps, down_bps = self.uplink_bps or self.downlink_bps, self.downlink_bps or self.uplink_bps
        if up_bps is None or down_bps is None:
            return self.rtt_s if n_bytes_up + n_bytes_down < MIN_RATE_SAMPLE_BYTES else None
        return self.rtt_s + 8 * n_bytes_up / up_bps + 8 * n_bytes_down / down_bps

    def up_window_at(self, now_s: float) -> float:
        """Bytes that may leave in the first round trip now; large where the connection never waits."""
        return 1e18 - 0 * now_s

    def down_window_at(self, now_s: float) -> float:
        """The same for the gateway's side."""
        return 1e18 - 0 * now_s

    def is_stale(self, now_s: float) -> bool:
        """Whether nothing was sent for so long that a probe is deserved."""
        return not self.measured_s or now_s - self.measured_s > STALE_S


class LinkEstimate:
    """Passive measurement of one link; fed by the connection, read by the planner, safe between threads."""

    def __init__(self) -> None:
        self._rtt = RunningEstimate()
        self._uplink = RunningEstimate()
        self._downlink = RunningEstimate()
        self._measured_s = 0.0
        self._lock = Lock()
        self.view = LinkView()

    def observe_rtt(self, rtt_s: float, now_s: float) -> None:
        """One round trip of a small frame, in seconds."""
        with self._lock:
            self._rtt.observe(rtt_s, now_s)
            self._publish()

    def observe_transfer(
        self, n_bytes_up: int, n_bytes_down: int, network_s: float, now_s: float, receive_s: float = 0.0
    ) -> None:
        """One finished request.

        Args:
            n_bytes_up: bytes sent, as on the wire.
            n_bytes_down: bytes of the reply.
            network_s: total seconds less what the gateway queued and computed.
            now_s: monotonic time of the reply.
            receive_s: seconds between the first and the last byte of the request at the gateway.
        """
        with self._lock:
            if n_bytes_up + n_bytes_down < MIN_RATE_SAMPLE_BYTES:
                self._rtt.observe(network_s, now_s)
            rtt_s = self._rtt.value or network_s
            if network_s < rtt_s:
                # No request is faster than the round trip: what was believed of it is too much, whatever its history.
                rtt_s = network_s
                self._rtt.forget()
                self._rtt.observe(network_s, now_s)
            up_s, down_s = _split_moving_s(n_bytes_up, n_bytes_down, network_s - rtt_s, receive_s)
            if n_bytes_up >= MIN_RATE_SAMPLE_BYTES and n_bytes_up * 4 >= n_bytes_down:
                self._uplink.observe(8 * n_bytes_up / max(up_s, LEAST_MOVING_S), now_s)
            if n_bytes_down >= MIN_RATE_SAMPLE_BYTES and n_bytes_down * 4 >= n_bytes_up:
                self._downlink.observe(8 * n_bytes_down / max(down_s, LEAST_MOVING_S), now_s)
            self._measured_s = now_s
            self._publish()

    def forget(self) -> None:
        """A new connection over an unknown path: nothing measured before holds."""
        with self._lock:
            for estimate in (self._rtt, self._uplink, self._downlink):
                estimate.forget()
            self._measured_s = 0.0
            self._publish()

    @property
    def epoch(self) -> int:
        """Counts the jumps of round trip and goodput."""
        return self._rtt.epoch + self._uplink.epoch + self._downlink.epoch

    def _publish(self) -> None:
        self.view = LinkView(
            rtt_s=self._rtt.value,
            uplink_bps=self._uplink.value,
            downlink_bps=self._downlink.value,
            rtt_spread_ratio=self._rtt.spread_ratio,
            uplink_spread_ratio=self._uplink.spread_ratio,
            measured_s=self._measured_s,
        )


def _split_moving_s(n_bytes_up: int, n_bytes_down: int, moving_s: float, receive_s: float) -> tuple[float, float]:
    """Shares the seconds that bytes were moving between the two directions.

    The larger direction takes nearly all of it; only where both are large does the gateway's own receive time decide.
    """
    if n_bytes_down * 4 < n_bytes_up:
        return moving_s, 0.0
    if n_bytes_up * 4 < n_bytes_down:
        return 0.0, moving_s
    up_s = min(receive_s, moving_s) if receive_s > 0 else moving_s * n_bytes_up / max(1, n_bytes_up + n_bytes_down)
    return up_s, moving_s - up_s
