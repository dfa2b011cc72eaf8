"""The link to a gateway: round trip and goodput each way, measured on the transfers that happen anyway.

Design: no clock of the other side is used. The gateway says how long it received, queued and computed; what remains of
the total is the network. Small messages teach the round trip, large ones the goodput: one that is too small to tell a
rate from the round trip's noise teaches nothing about the rate. What slow start adds is taken out before a rate is
learnt and put back where a transfer is predicted, so that a connection that was idle is not taken for a slow link.
"""

from copy import copy
from math import inf, log
from threading import Lock
from typing import Final

from hybrid.cost.drift import Drift
from hybrid.cost.link_view import CHUNK_BYTES, MIN_RATE_SAMPLE_BYTES, LinkView
from hybrid.cost.running import RunningEstimate
from hybrid.cost.slow_start import (
    INITIAL_WINDOW_BYTES,
    grown_window_bytes,
    moving_part_s,
    slow_start_s,
)

LEAST_MOVING_S: Final = 1e-4
"""On a link that is faster than the round trip's noise, bytes count as moving for at least so long."""

MOST_UNSENT_BYTES: Final = 64 * 1024
"""So much of a cancelled request may still be in the kernel's hands, and leaves before the next one."""

LARGE_RATIO: Final = 4
"""A direction that carries this many times the other's bytes takes nearly all of the moving time."""

PACING: Final = frozenset({"bbr", "bbr2", "bbr3"})
"""Congestion controls that pace by an estimate of the bandwidth."""

OVERHEAD_GAIN: Final = 0.15

LEAST_STALL_S: Final = 0.02

UNTOLD_LOG_RATIO: Final = 0.2

LEAST_RTT_NOISE: Final = 0.1

MODEL_GAIN: Final = 0.2
MODEL_MARGIN: Final = 0.7
"""One explanation of the uploads gives way to the other when that one's error is below this share of its own."""


class LinkEstimate:
    """Passive measurement of one link; fed by the connection, read by the planner, safe between threads."""

    def __init__(self) -> None:
        self._rtt = RunningEstimate()
        self._uplink = self._cold_uplink = RunningEstimate()
        self._plain_uplink = RunningEstimate()
        self._cold_error = self._plain_error = 0.0
        self._downlink = RunningEstimate()
        self._overhead_s, self._n_overheads = 0.0, 0
        self._up_drift, self._down_drift = Drift(), Drift()
        self._measured_s = 0.0
        self._up_window = self._down_window = float(INITIAL_WINDOW_BYTES)
        self._cold_ratio = self._first_cold_ratio = 1.0
        self._free_s = -inf
        self._n_forgotten = 0
        self._is_proven = False
        self._before: tuple[RunningEstimate, Drift, float] | None = None
        self._lock = Lock()
        self.view = LinkView()

    @property
    def epoch(self) -> int:
        """Counts the jumps of round trip and goodput."""
        return self.view.epoch

    def observe_rtt(self, rtt_s: float, now_s: float) -> None:
        """One round trip of a small frame, in seconds."""
        with self._lock:
            self._rtt.observe(rtt_s, now_s)
            self._publish()

    def observe_transfer(
        self,
        n_bytes_up: int,
        n_bytes_down: int,
        network_s: float,
        now_s: float,
        receive_s: float = 0.0,
        *,
        reply_s: float = 0.0,
    ) -> None:
        """One finished request.

        Args:
            n_bytes_up: bytes sent, as on the wire.
            n_bytes_down: bytes of the reply.
            network_s: total seconds less what the gateway queued and computed.
            now_s: monotonic time of the reply.
            receive_s: seconds between the first and the last byte of the request at the gateway; 0 if not known.
            reply_s: seconds between the first and the last byte of the reply at the device; 0 if not known.
        """
        with self._lock:
            network_s = max(network_s - max(0.0, self._free_s - (now_s - network_s)), 0.1 * network_s)
            is_small = n_bytes_up + n_bytes_down < MIN_RATE_SAMPLE_BYTES
            if is_small and self._rtt.value is None:
                self._rtt.observe(network_s, now_s)
            rtt_s = self._rtt.value or network_s
            if network_s < rtt_s:
                # No request is faster than the round trip: what was believed of it is too much, whatever its history.
                rtt_s = network_s
                self._rtt.forget()
                self._rtt.observe(network_s, now_s)
            if is_small:
                self._add_overhead(network_s - rtt_s)
            up_s, down_s = self._shares(n_bytes_up, n_bytes_down, network_s - rtt_s, receive_s, reply_s)
            started_s = now_s - network_s
            view = self.view
            if n_bytes_up >= MIN_RATE_SAMPLE_BYTES and up_s > 0:
                self._learn(self._uplink, n_bytes_up, up_s, window=view.up_window_at(started_s), now_s=now_s)
                self._is_proven, self._before = self._uplink.value is not None, None
            if n_bytes_down >= MIN_RATE_SAMPLE_BYTES and down_s > 0:
                window = view.down_window_at(started_s)
                self._learn(self._downlink, n_bytes_down, down_s, window=window, now_s=now_s)
            self._up_window = grown_window_bytes(view.up_window_at(started_s), n_bytes_up, self._uplink.value, rtt_s)
            self._down_window = grown_window_bytes(
                view.down_window_at(started_s), n_bytes_down, self._downlink.value, rtt_s
            )
            self._measured_s = now_s
            self._publish()

    def observe_cut_short(
        self,
        n_bytes_up: int,
        acked_bytes: int,
        waited_s: float,
        now_s: float,
        *,
        acked_after_s: float | None = None,
    ) -> None:
        """A request that was cancelled before its answer came, with what had arrived by then.

        Between the acknowledged bytes and a chunk more have arrived in the time since departure less a round trip: the
        goodput lies between the two rates, and is moved to the nearer one where it is believed to lie outside. One that
        may have arrived as a whole says nothing.

        Args:
            n_bytes_up: bytes that were handed to the connection.
            acked_bytes: bytes of it that the gateway had acknowledged.
            waited_s: seconds from departure to the cancellation.
            now_s: monotonic time of the cancellation.
            acked_after_s: seconds from departure until the last of the acknowledged bytes was acknowledged, if known.
        """
        with self._lock:
            if self._is_proven:
                self._is_proven, self._before = False, (copy(self._uplink), copy(self._up_drift), self._measured_s)
            rtt_s, believed_bps = self._rtt.value or 0.0, self._uplink.value
            ahead_s = max(0.0, self._free_s - (now_s - waited_s))
            moved_s = waited_s - rtt_s - ahead_s
            window = self.view.up_window_at(now_s - waited_s)
            if acked_after_s is not None and acked_bytes >= MIN_RATE_SAMPLE_BYTES:
                taken_s = acked_after_s - rtt_s - ahead_s
                if taken_s > 0:
                    self._learn(self._uplink, acked_bytes, taken_s, window=window, now_s=now_s)
            elif moved_s > LEAST_MOVING_S and acked_bytes + CHUNK_BYTES < n_bytes_up:
                arrived = acked_bytes + CHUNK_BYTES
                most_bps = 8 * arrived / moving_part_s(arrived, moved_s, window, rtt_s, self._cold_ratio)
                least_bps = 8 * acked_bytes / moved_s if acked_bytes >= MIN_RATE_SAMPLE_BYTES else 0.0
                likely_bps = min(max(believed_bps or most_bps, least_bps), most_bps)
                if likely_bps != believed_bps:
                    self._uplink.observe(likely_bps, now_s)
                self._up_drift.observe(likely_bps, believed_bps, now_s - self._measured_s)
                self._measured_s = now_s
            if acked_bytes >= MIN_RATE_SAMPLE_BYTES:
                self._up_window = grown_window_bytes(window, acked_bytes, self._uplink.value, rtt_s)
                self._measured_s = now_s
            rate_bps = self._uplink.value
            if rate_bps:
                left_bytes = min(max(0, n_bytes_up - acked_bytes), MOST_UNSENT_BYTES)
                self._free_s = now_s + 8 * left_bytes / rate_bps
            self._publish()

    def observe_settled(self, n_bytes_up: int, network_s: float, now_s: float) -> None:
        """All that was sent of a cancelled request has arrived, and with it what was on its way before.

        Args:
            n_bytes_up: bytes of both.
            network_s: from the departure to the arrival of the last byte.
            now_s: monotonic time.
        """
        with self._lock:
            moved_s = network_s - (self._rtt.value or 0.0)
            if n_bytes_up >= MIN_RATE_SAMPLE_BYTES and moved_s > LEAST_MOVING_S:
                window = self.view.up_window_at(now_s - network_s)
                self._learn(self._uplink, n_bytes_up, moved_s, window=window, now_s=now_s)
                self._measured_s = now_s
            self._free_s = min(self._free_s, now_s)
            self._publish()

    def forget(self) -> None:
        """A new connection over an unknown path: nothing measured before holds."""
        with self._lock:
            for estimate in (self._rtt, self._cold_uplink, self._plain_uplink, self._downlink):
                estimate.forget()
            self._cold_ratio = self._first_cold_ratio
            self._uplink = self._cold_uplink if self._cold_ratio else self._plain_uplink
            self._cold_error = self._plain_error = 0.0
            self._measured_s, self._free_s = 0.0, -inf
            self._up_window = self._down_window = float(INITIAL_WINDOW_BYTES)
            self._overhead_s, self._n_overheads = 0.0, 0
            self._up_drift, self._down_drift = Drift(), Drift()
            self._n_forgotten += 1
            self._is_proven, self._before = False, None
            self._publish()

    def reconnected(self) -> None:
        """A new connection over the same path: its windows begin anew, and nothing is on its way.

        What requests that were cut short said of the goodput was said of a dying connection: what the last finished
        upload left is believed again, once, until another one finishes.
        """
        with self._lock:
            if self._before is not None:
                uplink, self._up_drift, self._measured_s = self._before
                uplink.epoch = self._uplink.epoch + 1
                if self._uplink is self._cold_uplink:
                    self._cold_uplink = uplink
                else:
                    self._plain_uplink = uplink
                self._uplink, self._before = uplink, None
            self._up_window = self._down_window = float(INITIAL_WINDOW_BYTES)
            self._free_s = -inf
            self._publish()

    def paced(self, congestion: str) -> None:
        """Names the congestion control of this side; what is known of it is where learning begins.

        One that paces itself (BBR) neither starts slowly after idle time nor fills a window in bursts.
        """
        with self._lock:
            self._first_cold_ratio = 0.0 if congestion in PACING else 1.0
            if not self._cold_uplink.n_samples and not self._plain_uplink.n_samples:
                self._cold_ratio = self._first_cold_ratio
                self._uplink = self._cold_uplink if self._cold_ratio else self._plain_uplink
                self._publish()

    def _shares(
        self, n_bytes_up: int, n_bytes_down: int, moving_s: float, receive_s: float, reply_s: float
    ) -> tuple[float, float]:
        """Shares the seconds that bytes were moving between the two directions.

        The seconds that the gateway saw the request arrive decide, and what is left is overhead; else what is believed
        of the rates; else the direction that carried nearly all bytes took all of the time.
        """
        up_bps, down_bps = self._uplink.value, self._downlink.value
        if receive_s > 0 and n_bytes_up >= MIN_RATE_SAMPLE_BYTES:
            down_s = reply_s or min(8 * n_bytes_down / (down_bps or up_bps or inf), max(0.0, moving_s - receive_s))
            self._add_overhead(moving_s - receive_s - down_s)
            return receive_s, down_s
        moving_s = max(moving_s - max(0.0, self._overhead_s), 0.1 * moving_s)
        if receive_s > 0 and reply_s > 0 and 2 * (receive_s + reply_s) > moving_s:
            return receive_s, reply_s
        up_s, down_s = float(n_bytes_up), float(n_bytes_down)
        if receive_s > 0 and reply_s > 0:
            up_s, down_s = receive_s, reply_s
        elif up_bps and down_bps:
            up_s, down_s = n_bytes_up / up_bps, n_bytes_down / down_bps
        elif n_bytes_down * LARGE_RATIO < n_bytes_up:
            down_s = 0.0
        elif n_bytes_up * LARGE_RATIO < n_bytes_down:
            up_s = 0.0
        elif 0 < receive_s < moving_s:
            up_s, down_s = receive_s, moving_s - receive_s
        share = up_s / (up_s + down_s) if up_s + down_s > 0 else 0.5
        # What either side saw arrive took at least so long, however the round trip wavered.
        return max(moving_s * share, receive_s), max(moving_s * (1 - share), reply_s)

    def _add_overhead(self, left_s: float) -> None:
        """What a request took beside round trip and bytes: threads, messages, encryption, on either side."""
        # Much more than ever before is no overhead: it waited for a link that carried nothing.
        left_s = min(left_s, LEAST_STALL_S + (self._rtt.value or 0.0) + 2 * max(0.0, self._overhead_s))
        self._n_overheads += 1
        self._overhead_s += max(OVERHEAD_GAIN, 1 / self._n_overheads) * (left_s - self._overhead_s)

    def _learn(self, estimate: RunningEstimate, n_bytes: int, taken_s: float, *, window: float, now_s: float) -> None:
        """One transfer in one direction that took so long, slow start included."""
        known_bps, rtt_s = estimate.value, self._rtt.value or 0.0
        if estimate is self._uplink:
            self._compare(n_bytes, taken_s, window, now_s)
        expected_s = 8 * n_bytes / known_bps if known_bps else 0.0
        waited_s = self._cold_ratio * slow_start_s(n_bytes, expected_s, window, rtt_s)
        moving_s = moving_part_s(n_bytes, taken_s, window, rtt_s, self._cold_ratio)
        if waited_s > 0.5 * taken_s and abs(log(taken_s / (expected_s + waited_s))) < UNTOLD_LOG_RATIO:
            return  # nearly all of it was slow start, and as expected: it tells next to nothing of the rate
        rate_bps = 8 * n_bytes / max(moving_s, LEAST_MOVING_S)
        # A message whose bytes move for no longer than the round trip wavers says little of the rate.
        noise_s = rtt_s * max(LEAST_RTT_NOISE, self._rtt.spread_ratio)
        weight = moving_s**2 / (moving_s**2 + noise_s**2)
        is_up = estimate is not self._downlink
        drift = self._up_drift if is_up else self._down_drift
        drift.observe(rate_bps, known_bps, now_s - self._measured_s, weight)
        (self._uplink if is_up else estimate).observe(rate_bps, now_s, weight)

    def _compare(self, n_bytes: int, taken_s: float, window: float, now_s: float) -> None:
        """Whether slow start explains this link's uploads better than doing without it.

        It does not where the congestion control paces itself (BBR after idle time), or a proxy keeps connections warm.
        Two estimates of the rate are kept, and the errors of what they would have predicted are compared.
        """
        rtt_s, cold_bps, plain_bps = self._rtt.value or 0.0, self._cold_uplink.value, self._plain_uplink.value
        if cold_bps and plain_bps:
            moving_s = 8 * n_bytes / cold_bps
            waited_s = slow_start_s(n_bytes, moving_s, window, rtt_s)
            if waited_s > 0.1 * moving_s:
                cold = abs(log((moving_s + waited_s) / taken_s))
                plain = abs(log(8 * n_bytes / plain_bps / taken_s))
                self._cold_error += MODEL_GAIN * (cold - self._cold_error)
                self._plain_error += MODEL_GAIN * (plain - self._plain_error)
        if self._cold_ratio and self._plain_error < MODEL_MARGIN * self._cold_error:
            self._cold_ratio, self._uplink = 0.0, self._plain_uplink
        elif not self._cold_ratio and self._cold_error < MODEL_MARGIN * self._plain_error:
            self._cold_ratio, self._uplink = 1.0, self._cold_uplink
        other = self._plain_uplink if self._cold_ratio else self._cold_uplink
        moving_s = moving_part_s(n_bytes, taken_s, window, rtt_s, 1.0 - self._cold_ratio)
        other.observe(8 * n_bytes / max(moving_s, LEAST_MOVING_S), now_s)

    def _publish(self) -> None:
        up_bps, down_bps = self._uplink.value, self._downlink.value
        self.view = LinkView(
            rtt_s=self._rtt.value,
            uplink_bps=up_bps,
            downlink_bps=down_bps,
            rtt_spread_ratio=self._rtt.spread_ratio,
            uplink_spread_ratio=self._uplink.spread_ratio,
            downlink_spread_ratio=self._downlink.spread_ratio,
            measured_s=self._measured_s,
            up_window_bytes=self._up_window,
            down_window_bytes=self._down_window,
            cold_ratio=self._cold_ratio,
            free_s=self._free_s,
            overhead_s=max(0.0, self._overhead_s),
            epoch=self._rtt.epoch + self._uplink.epoch + self._downlink.epoch + self._n_forgotten,
            uplink=self._up_drift.outlook(up_bps) if up_bps else None,
            downlink=self._down_drift.outlook(down_bps) if down_bps else None,
        )
