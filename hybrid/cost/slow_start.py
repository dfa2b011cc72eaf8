"""What a connection that is new or was idle adds to a transfer: rounds of TCP's slow start.

Source: RFC 5681 (slow start, restart after idle), RFC 6928 (initial window of 10 segments), RFC 6298 (RTO). Linux
halves the window for each retransmission timeout that the connection was idle, down to the initial one.
"""

from math import ceil, log2
from typing import Final

import numpy as np

INITIAL_WINDOW_BYTES: Final = 10 * 1448
"""Ten segments."""

LEAST_RTO_S: Final = 0.2
"""Linux's lower bound of the retransmission timeout above the round trip."""


def slow_start_s(n_bytes: float, moving_s: float, window_bytes: float, rtt_s: float) -> float:
    """Seconds that a sender waits for acknowledgements because its window is still small.

    Each round sends the window and then waits until the round trip is over; the next one may send twice as much. It
    ends when the window covers the round trip, or the message is sent.

    Args:
        n_bytes: the message.
        moving_s: seconds that its bytes take at the link's goodput.
        window_bytes: what may be sent in the first round.
        rtt_s: the round trip.
    """
    waited_s, sent, window = 0.0, 0.0, max(1.0, window_bytes)
    s_per_byte = moving_s / n_bytes if n_bytes else 0.0
    while sent + window < n_bytes:
        idle_s = rtt_s - window * s_per_byte
        if idle_s <= 0:
            break
        waited_s += idle_s
        sent += window
        window *= 2
    return waited_s


def slow_start_column_s(n_bytes: np.ndarray, s_per_byte: float, window_bytes: float, rtt_s: float) -> np.ndarray:
    """`slow_start_s` of many messages over one link, in closed form.

    After k rounds `window * (2^k - 1)` bytes have left; round k waits `rtt - window * 2^k * s_per_byte`.

    Args:
        n_bytes: the messages.
        s_per_byte: seconds a byte takes at the link's goodput.
        window_bytes: what may be sent in the first round.
        rtt_s: the round trip.
    """
    window = max(1.0, window_bytes)
    if rtt_s <= 0 or window * s_per_byte >= rtt_s:
        return np.zeros_like(n_bytes, dtype=np.float64)
    n_rounds = np.ceil(np.log2(n_bytes / window + 1)) - 1
    if s_per_byte > 0:
        n_rounds = np.minimum(n_rounds, ceil(log2(rtt_s / (window * s_per_byte))))
    n_rounds = np.maximum(n_rounds, 0)
    return np.asarray(n_rounds * rtt_s - s_per_byte * window * (np.exp2(n_rounds) - 1))


def window_after_idle_bytes(window_bytes: float, idle_s: float, rtt_s: float) -> float:
    """What is left of a window after so many idle seconds."""
    halvings = int(idle_s / (rtt_s + LEAST_RTO_S))
    if halvings <= 0:
        return window_bytes
    return max(float(INITIAL_WINDOW_BYTES), window_bytes / 2.0 ** min(halvings, 60))


def moving_part_s(n_bytes: float, taken_s: float, window: float, rtt_s: float, cold_ratio: float) -> float:
    """Of the seconds that a transfer took, those in which its bytes moved: the rest was slow start's waiting.

    Solved by bisection: less moving time means a faster link, on which slow start waits longer.
    """
    if n_bytes <= window or cold_ratio <= 0 or rtt_s <= 0:
        return taken_s
    least_s, most_s = 0.05 * taken_s, taken_s
    for _ in range(9):
        middle_s = 0.5 * (least_s + most_s)
        if middle_s + cold_ratio * slow_start_s(n_bytes, middle_s, window, rtt_s) > taken_s:
            most_s = middle_s
        else:
            least_s = middle_s
    return 0.5 * (least_s + most_s)


def grown_window_bytes(window: float, n_bytes: int, rate_bps: float | None, rtt_s: float) -> float:
    """The window after a transfer: it grows while it is used up, so neither beyond the message nor what the path holds.

    Source: RFC 7661 (a window that was not used is not validated); held against kernel TCP in `docs/simulation.md`.
    """
    used = min(float(n_bytes), rate_bps * rtt_s / 8) if rate_bps else float(n_bytes)
    return max(window, min(window + n_bytes, used), float(INITIAL_WINDOW_BYTES))
