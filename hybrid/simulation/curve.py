"""A rate over time as a curve that can be asked both ways: how much passed, and when so much has passed."""

from bisect import bisect_left, bisect_right
from math import inf

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]


class RateCurve:
    """Piecewise constant bits a second that begin anew after each period.

    Design: plain lists and bisection, since the simulator asks for one moment at a time; numpy's calls cost more than
    the answer.

    Args:
        time_s: (n,) rising from 0.
        rate_bps: (n,) bits a second from each of these times on; 0 where nothing passes.
        period_s: where the last piece ends and the first begins again.
    """

    __slots__ = ("_bits", "_edges", "_period_s", "_rates", "_starts", "_total")

    def __init__(self, time_s: Series, rate_bps: Series, period_s: float) -> None:
        lengths = np.diff(np.append(time_s, period_s))
        self._starts: list[float] = time_s.tolist()
        self._edges: list[float] = [*self._starts[1:], period_s]
        self._rates: list[float] = rate_bps.tolist()
        self._bits: list[float] = [0.0, *np.cumsum(lengths * rate_bps).tolist()]
        self._total = self._bits[-1]
        self._period_s = period_s

    def rate_bps(self, at_s: float) -> float:
        """Bits a second at this moment."""
        return self._rates[bisect_right(self._starts, at_s % self._period_s) - 1]

    def passed_bits(self, until_s: float) -> float:
        """Bits that could pass from 0 until this moment."""
        laps, at_s = divmod(until_s, self._period_s)
        piece = bisect_right(self._starts, at_s) - 1
        return laps * self._total + self._bits[piece] + (at_s - self._starts[piece]) * self._rates[piece]

    def done_s(self, start_s: float, n_bits: float) -> float:
        """When `n_bits` have passed that began at `start_s`; infinity where nothing ever passes."""
        laps, at_s = divmod(start_s, self._period_s)
        piece = bisect_right(self._starts, at_s) - 1
        rate = self._rates[piece]
        if n_bits <= rate * (self._edges[piece] - at_s):
            return start_s + (n_bits / rate if rate else 0.0)
        if not self._total:
            return inf
        more, wanted = divmod(self._bits[piece] + (at_s - self._starts[piece]) * rate + n_bits, self._total)
        if not wanted:
            more, wanted = more - 1.0, self._total
        last = bisect_left(self._bits, wanted) - 1
        return (laps + more) * self._period_s + self._starts[last] + (wanted - self._bits[last]) / self._rates[last]

    def still_from(self, start_s: float, end_s: float, patience_s: float) -> float | None:
        """When nothing has passed for `patience_s` between these moments for the first time; None where it never is."""
        at_s = start_s
        while at_s + patience_s <= end_s:
            laps, lap_s = divmod(at_s, self._period_s)
            piece = bisect_right(self._starts, lap_s) - 1
            edge_s = laps * self._period_s + self._edges[piece]
            if not self._rates[piece]:
                while edge_s < min(end_s, at_s + patience_s) and not self.rate_bps(edge_s):
                    laps, lap_s = divmod(edge_s, self._period_s)
                    edge_s = laps * self._period_s + self._edges[bisect_right(self._starts, lap_s) - 1]
                if min(edge_s, end_s) - at_s >= patience_s:
                    return at_s + patience_s
            at_s = max(edge_s, at_s + 1e-9)
        return None


class Steps:
    """A value over time, piecewise constant, that begins anew after each period."""

    __slots__ = ("_period_s", "_starts", "_values")

    def __init__(self, time_s: Series, values: Series, period_s: float) -> None:
        self._starts: list[float] = time_s.tolist()
        self._values: list[float] = values.tolist()
        self._period_s = period_s

    @classmethod
    def steady(cls, value: float) -> "Steps":
        """The same value for ever."""
        return cls(np.zeros(1), np.full(1, value), 1.0)

    def at(self, at_s: float) -> float:
        """The value at this moment."""
        if len(self._values) == 1:
            return self._values[0]
        return self._values[bisect_right(self._starts, at_s % self._period_s) - 1]
