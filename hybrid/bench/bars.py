"""The bars of the design's promises, held against one cell: each passed or missed, with its figure."""

from dataclasses import dataclass

import numpy as np

from hybrid.bench.cell import CellRuns
from hybrid.schedule.options import Objective
from hybrid.simulation.outcome import Outcome
from hybrid.simulation.windows import ratios, share_within, shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One limit.

    Attributes:
        name: what is limited.
        measured: the figure.
        limit: its bound.
        at_least: whether the figure must reach the limit instead of staying below it.
        note: why it is missed, where that is known.
    """

    name: str
    measured: float
    limit: float
    at_least: bool = False
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether it is kept."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def bars(runs: CellRuns, objective: Objective) -> tuple[Bar, ...]:
    """The bars of this objective; see the issue and DESIGN section 7 (P7)."""
    return _latency_bars(runs) if objective == "latency" else _thrift_bars(runs, objective)


def _latency_bars(runs: CellRuns) -> tuple[Bar, ...]:
    """Ours against the better side: against each of the two over the requests that both answered."""
    ours = runs.ours["latency"].outcome
    encoded = runs.offload("latency", encoded=True)
    sides = [runs.statics[number].outcome for number in (0, encoded) if number is not None]
    sides = [side for side in sides if len(shared(ours, side)[0])]
    latency_s = ours.latency_s
    by_side = np.stack([ratios(ours, latency_s, side, side.latency_s) for side in sides])
    shares = np.fmax.reduce(by_side, axis=0)
    shares = shares[~np.isnan(shares)]
    to_oracle = float(latency_s.mean() / runs.oracle["latency"][0].mean())
    return (
        Bar(name="windows within 1.05 x better side", measured=share_within(shares, 1.05), limit=0.99, at_least=True),
        Bar(name="worst window / better side", measured=float(shares.max(initial=0.0)), limit=1.25),
        Bar(name="mean / oracle", measured=to_oracle, limit=1.03, note=_why_behind(runs, "latency", to_oracle, 1.03)),
        Bar(name="p95 / better side's p95", measured=max(_p95_ratio(ours, side) for side in sides), limit=1.0),
    )


def _p95_ratio(ours: Outcome, side: Outcome) -> float:
    here, there = shared(ours, side)
    return float(np.quantile(ours.latency_s[here], 0.95) / np.quantile(side.latency_s[there], 0.95))


def to_foresight(runs: CellRuns, objective: Objective) -> float | None:
    """Our mean cost over that of foresight carried out over the real link, of the requests that both answered."""
    foresight = runs.foresight.get(objective)
    if foresight is None:
        return None
    ours = runs.ours[objective]
    here, there = shared(ours.outcome, foresight.outcome)
    if not len(here):
        return None
    return float(runs.costs(ours, objective)[here].mean() / runs.costs(foresight, objective)[there].mean())


def _why_behind(runs: CellRuns, objective: Objective, to_oracle: float, limit: float) -> str:
    """How much of the distance to the oracle is the network's own: foresight over the real link has it too."""
    ratio = to_foresight(runs, objective)
    if to_oracle <= limit or ratio is None:
        return ""
    return f"{ratio:.3f} of a clairvoyant over the same TCP"


def _thrift_bars(runs: CellRuns, objective: Objective) -> tuple[Bar, ...]:
    ours = runs.ours[objective]
    costs, oracle = runs.costs(ours, objective), runs.oracle[objective][0]
    number = (ours.outcome.start_s // 10.0).astype(int)
    counts = np.bincount(number)
    used = counts > 0
    by_window = (np.bincount(number, costs)[used] / counts[used]) / (np.bincount(number, oracle)[used] / counts[used])
    to_oracle = float(costs.mean() / oracle.mean())
    static = runs.statics[runs.best_static(objective)]
    here, there = shared(ours.outcome, static.outcome)
    to_static = float(costs[here].mean() / runs.costs(static, objective)[there].mean())
    return (
        Bar(name="mean / oracle", measured=to_oracle, limit=1.15, note=_why_behind(runs, objective, to_oracle, 1.15)),
        Bar(name="windows within 1.3 x oracle", measured=share_within(by_window, 1.3), limit=0.9, at_least=True),
        Bar(name="mean / best static", measured=to_static, limit=1.02),
    )
