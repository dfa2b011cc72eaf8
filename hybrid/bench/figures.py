"""What is kept of a cell: each policy's figures, the bars, and where a split truly wins."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from hybrid.bench.bars import bars, to_foresight
from hybrid.bench.cell import CellRuns, Run
from hybrid.schedule.options import Objective

WIN_RATIO: Final = 0.95
"""A split wins where it costs at most this share of the best of local and offload: less would be noise."""

PLACEMENTS: Final = ("local", "offload", "split")


class BarFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One bar; see `bars.Bar`."""

    name: str
    measured: float
    limit: float
    at_least: bool
    held: bool
    note: str = ""


class PolicyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One policy in one cell.

    Attributes:
        policy: its name.
        way: what it chose most often: placement, cut, codec.
        n_requests: answered.
        mean_s, p50_s, p95_s, p99_s: latency.
        cost: mean cost by the objective, in seconds.
        energy_j: modelled joules a request.
        n_bytes: bytes a request, both ways.
        wasted_s: device seconds in vain a request.
        shares: of requests planned local, offloaded, split.
    """

    policy: str
    way: str
    n_requests: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    cost: float
    energy_j: float
    n_bytes: float
    wasted_s: float
    shares: tuple[float, float, float]


class ObjectiveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One objective in one cell.

    Attributes:
        objective: what is least.
        policies: local, offload raw, offload encoded, best static, the peers, hybrid.
        oracle: mean cost of the clairvoyant over an ideal link, in seconds.
        oracle_shares: of its requests local, offloaded, split.
        bars: passed and missed.
        to_foresight: our mean cost over that of the clairvoyant's choices over the real link, of the requests that both
            answered; None where it did not take part.
        prediction_error: median of |expected - measured| / measured; None where nothing was expected.
        changes_mean, changes_max: of the plan in ten seconds.
        hedged_ratio: share of requests with a hedge, races included.
        raced_ratio: share of races.
        split: the best static split and its cost over the best of local and offload; None where there is none.
    """

    objective: Objective
    policies: tuple[PolicyFigures, ...]
    oracle: float
    oracle_shares: tuple[float, float, float]
    bars: tuple[BarFigure, ...]
    to_foresight: float | None
    prediction_error: float | None
    changes_mean: float
    changes_max: float
    hedged_ratio: float
    raced_ratio: float
    split: tuple[str, float] | None

    @property
    def split_wins(self) -> bool:
        """Whether a cut, with a permitted codec, truly wins here."""
        return self.split is not None and self.split[1] <= WIN_RATIO

    def of(self, policy: str) -> PolicyFigures | None:
        """The figures of one policy, where it took part."""
        return next((figures for figures in self.policies if figures.policy == policy), None)


class CellFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One cell.

    Attributes:
        model, device, link, trace: its name.
        fingerprint: of all that it rests on; a cell with the same one need not be run again.
        local_s: the device's own seconds.
        period_s: of the stream.
        objectives: figures for each.
        front: (price of a joule in s, mean latency in s, mean joules) of the scheduler; empty where it was not drawn.
        requests_a_second: how many requests of the scheduler's the simulation did in a second of processor time.
    """

    model: str
    device: str
    link: str
    trace: str
    fingerprint: str
    local_s: float
    period_s: float
    objectives: tuple[ObjectiveFigures, ...]
    front: tuple[tuple[float, float, float], ...] = ()
    requests_a_second: float = 0.0

    @property
    def name(self) -> str:
        """Model, device, link and trace."""
        return f"{self.model} / {self.device} / {self.link} / {self.trace}"

    def of(self, objective: Objective) -> ObjectiveFigures | None:
        """The figures of one objective, where it was run."""
        return next((figures for figures in self.objectives if figures.objective == objective), None)


def figures_of(runs: CellRuns, fingerprint: str, front: Sequence[tuple[float, float, float]] = ()) -> CellFigures:
    """What is kept of these runs."""
    cell = runs.cell
    n_requests = sum(run.outcome.n_requests for run in runs.ours.values())
    return CellFigures(
        model=cell.model,
        device=cell.device,
        link=cell.link,
        trace=cell.trace,
        fingerprint=fingerprint,
        local_s=cell.scene.work.local_s,
        period_s=cell.scene.stream.period_s,
        objectives=tuple(_objective(runs, objective) for objective in runs.ours),
        front=tuple(front),
        requests_a_second=n_requests / max(1e-9, sum(run.seconds for run in runs.ours.values())),
    )


def _objective(runs: CellRuns, objective: Objective) -> ObjectiveFigures:
    ours = runs.ours[objective]
    named: list[tuple[str, Run | None]] = [("local", runs.statics[0])]
    for name, encoded in (("offload raw", False), ("offload encoded", True)):
        number = runs.offload(objective, encoded=encoded)
        named.append((name, None if number is None else runs.statics[number]))
    named.append(("best static", runs.statics[runs.best_static(objective)]))
    named += [(name, run) for name, run in runs.others.items()]
    named.append(("foresight", runs.foresight.get(objective)))
    named.append(("hybrid", ours))
    costs, chosen = runs.oracle[objective]
    errors = ours.outcome.prediction_error()
    changes = ours.outcome.changes_a_window()
    hedged = ~np.isnan(ours.outcome.hedge_s)
    return ObjectiveFigures(
        objective=objective,
        policies=tuple(
            _policy(runs, name, run, objective) for name, run in named if run is not None and run.outcome.n_requests
        ),
        oracle=float(costs.mean()),
        oracle_shares=_shares(runs, chosen),
        bars=tuple(
            BarFigure(
                name=bar.name,
                measured=bar.measured,
                limit=bar.limit,
                at_least=bar.at_least,
                held=bar.held,
                note=bar.note,
            )
            for bar in bars(runs, objective)
        ),
        to_foresight=to_foresight(runs, objective),
        prediction_error=float(np.median(errors)) if len(errors) else None,
        changes_mean=float(changes.mean()),
        changes_max=float(changes.max()),
        hedged_ratio=float(hedged.mean()),
        raced_ratio=float((ours.outcome.hedge_s == 0).mean()),
        split=_best_split(runs, objective),
    )


def _policy(runs: CellRuns, name: str, run: Run, objective: Objective) -> PolicyFigures:
    outcome, power = run.outcome, runs.cell.power
    p50_s, p95_s, p99_s = np.quantile(outcome.latency_s, (0.5, 0.95, 0.99)).tolist()
    planned = outcome.planned.astype(np.int64)
    return PolicyFigures(
        policy=name,
        way=way_of(runs, int(np.bincount(planned).argmax())),
        n_requests=outcome.n_requests,
        mean_s=float(outcome.latency_s.mean()),
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        cost=runs.mean_cost(run, objective),
        energy_j=float(run.energy_j(power).mean()),
        n_bytes=float(run.n_bytes().mean()),
        wasted_s=float(outcome.wasted_s.mean()),
        shares=_shares(runs, planned),
    )


def way_of(runs: CellRuns, number: int) -> str:
    """A prospect in words: `local`, `offload q8`, `split 1a2b3c4d q8`."""
    prospects = runs.cell.scene.work.prospects
    if number >= len(prospects):
        return "small model, then JSON"
    prospect = prospects[number]
    if prospect.placement == "local":
        return "local"
    return " ".join(filter(None, (prospect.placement, prospect.cut[:8], prospect.codec)))


def _shares(runs: CellRuns, planned: np.ndarray) -> tuple[float, float, float]:
    prospects = runs.cell.scene.work.prospects
    kinds = np.array([PLACEMENTS.index(prospect.placement) for prospect in prospects] + [1])
    local, offload, split = np.bincount(kinds[planned], minlength=3) / max(1, len(planned))
    return float(local), float(offload), float(split)


def _best_split(runs: CellRuns, objective: Objective) -> tuple[str, float] | None:
    prospects = runs.cell.scene.work.prospects
    costs = {at: runs.mean_cost(run, objective) for at, run in runs.statics.items()}
    splits = [at for at in costs if prospects[at].placement == "split"]
    if not splits:
        return None
    best = min(splits, key=lambda at: costs[at])
    return way_of(runs, best), costs[best] / min(cost for at, cost in costs.items() if at not in splits)
