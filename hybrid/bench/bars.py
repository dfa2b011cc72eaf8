"""The bars of the design's promises, held against one cell: each passed or missed, with its figure."""

from dataclasses import dataclass

import numpy as np

from hybrid.bench.cell import CellRuns
from hybrid.schedule.options import Objective
from hybrid.simulation.windows import better_side, ratios, share_within


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
    ours = runs.ours["latency"]
    sides = [runs.statics[0]]
    encoded = runs.offload("latency", encoded=True)
    if encoded is not None:
        sides.append(runs.statics[encoded])
    reference = better_side(*(runs.windows(side, "latency") for side in sides))
    shares = ratios(runs.windows(ours, "latency"), reference)
    latency_s = ours.outcome.latency_s
    p95 = min(float(np.quantile(side.outcome.latency_s, 0.95)) for side in sides if side.outcome.n_requests)
    to_oracle = float(latency_s.mean() / runs.oracle["latency"][0].mean())
    return (
        Bar(name="windows within 1.05 x better side", measured=share_within(shares, 1.05), limit=0.99, at_least=True),
        Bar(name="worst window / better side", measured=float(shares.max(initial=0.0)), limit=1.25),
        Bar(name="mean / oracle", measured=to_oracle, limit=1.03, note=_why_behind(runs, to_oracle)),
        Bar(name="p95 / better side's p95", measured=float(np.quantile(latency_s, 0.95)) / p95, limit=1.0),
    )


def _why_behind(runs: CellRuns, to_oracle: float) -> str:
    """How much of the distance to the oracle is the network's own: foresight over the real link has it too."""
    foresight = runs.others.get("foresight")
    if to_oracle <= 1.03 or foresight is None or not foresight.outcome.n_requests:
        return ""
    ideal = runs.oracle["latency"][0].mean()
    return f"a clairvoyant over the same TCP: {foresight.outcome.latency_s.mean() / ideal:.3f}"


def _thrift_bars(runs: CellRuns, objective: Objective) -> tuple[Bar, ...]:
    ours = runs.ours[objective]
    costs, oracle = runs.costs(ours, objective), runs.oracle[objective][0]
    number = (ours.outcome.start_s // 10.0).astype(int)
    counts = np.bincount(number)
    used = counts > 0
    by_window = (np.bincount(number, costs)[used] / counts[used]) / (np.bincount(number, oracle)[used] / counts[used])
    static = runs.mean_cost(runs.statics[runs.best_static(objective)], objective)
    mean = float(costs.mean())
    return (
        Bar(name="mean / oracle", measured=mean / float(oracle.mean()), limit=1.15),
        Bar(name="windows within 1.3 x oracle", measured=share_within(by_window, 1.3), limit=0.9, at_least=True),
        Bar(name="mean / best static", measured=mean / static, limit=1.02),
    )
