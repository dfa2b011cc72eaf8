"""The link as the simulation has it: a trace's rate and round trip under TCP's window, losses and idle restarts.

Design: one transfer is a handful of additions, not packets. While the window of the connection is smaller than what
fits on the path, one window leaves each round trip and the window doubles (slow start); from then on bytes leave at the
trace's rate. Under cubic, a connection that was idle for longer than its retransmission timeout has lost half of its
window for each such time (`tcp_slow_start_after_idle`; RFC 2861), and losses keep the window small (RFC 8312). BBR is
exempt from both, but sends a message that the path could swallow at once no faster than 2.89 of them a round trip: its
estimate of the bandwidth is what the application gave it to send, and it paces at that times its startup gain. A lost
packet delays its message by a round trip, and by a retransmission timeout more where the last segments are hit.

Held against real TCP in the lab (`benchmarks/lab_transfers.py`, docs/simulation.md).
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import numpy as np

from devices.trace import Trace
from hybrid.simulation.curve import RateCurve, Series, Steps

MSS_BYTES: Final = 1448
INITIAL_WINDOW_BYTES: Final = 10 * MSS_BYTES
"""RFC 6928."""

LEAST_TIMEOUT_S: Final = 0.2
"""Linux's least retransmission timeout is this above the smoothed round trip."""

BBR_GAIN: Final = 2.885
"""Startup gain of BBR, 2 / ln 2: an application that sends little never leaves startup."""

QUANTUM_BYTES: Final = 2 * MSS_BYTES
"""What BBR sends at once."""

TAIL_SEGMENTS: Final = 3
"""A loss among the last segments is not told by the acknowledgements of later ones."""

Congestion = Literal["cubic", "bbr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """What a link is made of.

    Attributes:
        trace: goodput each way, round trip and loss over time.
        jitter_s: standard deviation of the round trip.
        congestion: which congestion control either side uses.
        residue_bytes: what was handed to the kernel of a transfer that is cancelled: it still goes out.
    """

    trace: Trace
    jitter_s: float = 0.0
    congestion: Congestion = "cubic"
    residue_bytes: int = 64 * 1024


class Link:
    """One connection over such a link."""

    def __init__(self, model: LinkModel) -> None:
        trace = model.trace
        self._rtt = Steps(trace.time_s, trace.rtt_s, trace.duration_s)
        self._loss = Steps(trace.time_s, trace.loss_ratio, trace.duration_s)
        self.is_lossy = bool((trace.loss_ratio > 0).any())
        self.has_outages = bool((trace.up_bps == 0).any() or (trace.down_bps == 0).any())
        self.residue_bits = 8.0 * model.residue_bytes
        self.jitter_each_way_s = model.jitter_s * 1.5**0.5  # uniform within ± this, both ways: that deviation in sum
        is_bbr = model.congestion == "bbr"
        resent = 1.0 - trace.loss_ratio if is_bbr else np.ones_like(trace.loss_ratio)
        most = None if is_bbr or not self.is_lossy else Steps(trace.time_s, window_under_loss(trace), trace.duration_s)
        self.up, self.down = (
            Flow(RateCurve(trace.time_s, rate * resent, trace.duration_s), is_paced=is_bbr, most_bytes=most)
            for rate in (trace.up_bps, trace.down_bps)
        )
        self.ideal_up = RateCurve(trace.time_s, trace.up_bps, trace.duration_s)
        self.ideal_down = RateCurve(trace.time_s, trace.down_bps, trace.duration_s)

    def rtt_s(self, at_s: float) -> float:
        """The round trip of the idle link at this moment."""
        return self._rtt.at(at_s)

    def loss_delay_s(self, at_s: float, n_bytes: float, luck: float) -> float:
        """What losses cost one message: `luck`, from 0 to 1, is drawn once for each."""
        loss = self._loss.at(at_s)
        if not loss:
            return 0.0
        n_segments = max(1.0, n_bytes / MSS_BYTES)
        passes = 1.0 - loss
        in_tail = 1.0 - passes ** min(TAIL_SEGMENTS, n_segments)
        if luck < in_tail:
            return self.rtt_s(at_s) + LEAST_TIMEOUT_S
        return self.rtt_s(at_s) if luck < 1.0 - passes**n_segments else 0.0

    def reconnected(self, at_s: float) -> None:
        """A new connection: its windows begin anew."""
        for flow in (self.up, self.down):
            flow.window_bytes = INITIAL_WINDOW_BYTES
            flow.free_s = min(flow.free_s, at_s)


class Flow:
    """One direction of the connection: transfers leave one after the other.

    Args:
        curve: the rate over time.
        is_paced: whether the congestion control is BBR.
        most_bytes: the window that losses allow over time; None for no bound.
    """

    __slots__ = ("_is_paced", "_most_bytes", "curve", "free_s", "window_bytes")

    def __init__(self, curve: RateCurve, *, is_paced: bool, most_bytes: Steps | None = None) -> None:
        self.curve = curve
        self._is_paced, self._most_bytes = is_paced, most_bytes
        self.window_bytes: float = INITIAL_WINDOW_BYTES
        self.free_s = -inf

    def send(self, ready_s: float, n_bytes: float, rtt_s: float) -> tuple[float, float]:
        """When this transfer begins to leave and when its last byte has left; half a round trip later it is there."""
        start_s = max(ready_s, self.free_s)
        window = self.window_bytes
        if not self._is_paced and window > INITIAL_WINDOW_BYTES:
            n_timeouts = int((start_s - self.free_s) / (rtt_s + LEAST_TIMEOUT_S)) if self.free_s > -inf else 60
            if n_timeouts > 0:
                window = max(INITIAL_WINDOW_BYTES, window / 2.0 ** min(n_timeouts, 60))
        first, at_s, left = window, start_s, float(n_bytes)
        most = inf if self._most_bytes is None else self._most_bytes.at(start_s)
        done_s = self.curve.done_s
        while left > window:
            if done_s(at_s, 8.0 * window) - at_s >= rtt_s:
                break  # the path is full: from here on the rate decides
            at_s += rtt_s
            left -= window
            window = min(2.0 * window, most)
        end_s = done_s(at_s, 8.0 * left)
        if self._is_paced:
            end_s = max(end_s, start_s + rtt_s / BBR_GAIN * max(0.0, 1.0 - QUANTUM_BYTES / n_bytes))
        # A window grows by what is acknowledged while it is used up: not beyond the message, nor what the path holds.
        used = min(float(n_bytes), self.curve.rate_bps(at_s) * rtt_s / 8.0)
        self.window_bytes = min(most, max(first, min(window + left, used)))
        self.free_s = end_s
        return start_s, end_s

    def cut_short(self, at_s: float, end_s: float, residue_bits: float) -> None:
        """The transfer that ends at `end_s` is given up at `at_s`; what the kernel holds of it still leaves."""
        if self.free_s == end_s and at_s < end_s:
            self.free_s = min(end_s, self.curve.done_s(at_s, residue_bits))


def window_under_loss(trace: Trace) -> Series:
    """The mean window in bytes that losses leave cubic: the larger of its own and of Reno's.

    Source: RFC 8312, section 5.1.
    """
    loss = np.maximum(trace.loss_ratio, 1e-12)
    rtt_s = np.maximum(trace.rtt_s, 1e-4)
    segments = np.maximum(1.054 * rtt_s**0.75 / loss**0.75, 1.22 / np.sqrt(loss))
    return np.asarray(np.maximum(segments, 2.0) * MSS_BYTES)
