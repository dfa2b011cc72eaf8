"""What a connection that is new or was idle adds to a transfer: rounds of TCP's slow start.

Source: RFC 5681 (slow start, restart after idle), RFC 6928 (initial window of 10 segments), RFC 6298 (RTO). Linux
halves the window for each retransmission timeout that the connection was idle, down to the initial one.
"""

from bisect import bisect_left
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

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


class Rounds(NamedTuple):
    """`slow_start_s` of any message over one link: the k-th size is the most that k rounds hold back, with their wait.

    Attributes:
        most_bytes: rising; a message above the k-th waits for one round more.
        waited_s: after so many rounds; one more than sizes.
    """

    most_bytes: list[float]
    waited_s: list[float]

    def of(self, n_bytes: float) -> float:
        """Seconds that this message waits."""
        return self.waited_s[bisect_left(self.most_bytes, n_bytes)]

    def of_all(self, n_bytes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The same of many."""
        return np.array(self.waited_s).take(np.array(self.most_bytes).searchsorted(n_bytes))


def slow_start_rounds(most_bytes: float, s_per_byte: float, window_bytes: float, rtt_s: float) -> Rounds:
    """The rounds that messages of up to `most_bytes` may wait for; see `slow_start_s` for the rest."""
    sizes: list[float] = []
    waits_s = [0.0]
    sent, window, waited_s = 0.0, max(1.0, window_bytes), 0.0
    while sent + window < most_bytes:
        idle_s = rtt_s - window * s_per_byte
        if idle_s <= 0:
            break
        waited_s += idle_s
        sent += window
        window *= 2
        sizes.append(sent)
        waits_s.append(waited_s)
    return Rounds(sizes, waits_s)


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
