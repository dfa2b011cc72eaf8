"""Boxes with the new version against boxes without it, over the same time: errors, crashes, latency.

Design: compared with are all boxes that do not have the version yet: the control group, which is always there, and
those of later stages. Who is in which stage was drawn by a hash, so all of them are one random sample, and the larger
it is, the less a chance among few boxes decides. docs/fleet.md has the statistics in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloud_gateway.fleet.rollouts.rollout import Course, Member, Plan, Tally
from cloud_gateway.fleet.rollouts.statistics import boxes_p, events_p, least_ranks_p, ranks_p

Metric = Literal["errors", "crashes", "latency"]
METRICS: Final[tuple[Metric, ...]] = ("errors", "crashes", "latency")
LEVEL: Final = 0.01
"""The chance of halting a sound version by any of its comparisons, all stages and looks together."""
_LEAST_BOX_RUNS: Final = 10
_ENOUGH_BOXES: Final = 5
_PLAIN_LATENCY: Final = 2.0
"""Where there are too few boxes for a test of latency, it must be worse by so many times the tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison.

    Attributes:
        new, old: the figure of both sides: errors a run, boxes with a crash, or median time over their own former one.
        chance: how likely so great a difference is where there is none.
        level: the share of the 1 % that this look had.
    """

    metric: Metric
    new: float
    old: float
    chance: float
    level: float
    is_worse: bool

    @property
    def text(self) -> str:
        """For people."""
        new, old = (f"{x:.2f}x" if self.metric == "latency" else f"{100 * x:.2f} %" for x in (self.new, self.old))
        verdict = "worse" if self.is_worse else "not worse"
        return f"{self.metric} {new} against {old} without it: {verdict} (p={self.chance:.2g}, of {self.level:.2g})"


def level_of(plan: Plan, course: Course) -> float:
    """What the next look of a stage may spend of the 1 %, so that all looks together stay below it.

    A tenth goes to the early look, six tenths to the first after the whole time (which decides as a rule), the rest to
    those of a stage that lasts longer, each half of the one before.
    """
    if course.n_looks >= 2:
        share = 0.3 / 2.0 ** (course.n_looks - 1)
    else:
        share = 0.1 if course.clock_s - course.stage_s < plan.soak_s else 0.6
    return LEVEL / len(METRICS) / max(1, plan.last_stage) * share


def compare(plan: Plan, new: Sequence[Member], old: Sequence[Member], level: float) -> list[Finding]:
    """All comparisons for which there is enough to compare."""
    found = (_errors(plan, new, old, level), _crashes(plan, new, old, level), _latency(plan, new, old, level))
    return [finding for finding in found if finding is not None]


def _errors(plan: Plan, new: Sequence[Member], old: Sequence[Member], level: float) -> Finding | None:
    """Errors a run: by runs (exact binomial), and, so that one bad box is not a bad version, by boxes (ranks)."""
    fresh = [(m.now.since(m.mark), m) for m in new if m.now.digest == plan.artifact_digest]
    held = [(m.now.since(m.mark), m) for m in old] if old else [(m.before, m) for m in new]
    n_new, n_old = sum(t.n_runs for t, _ in fresh), sum(t.n_runs for t, _ in held)
    if min(n_new, n_old) < max(1, plan.min_runs):
        return None
    e_new, e_old = sum(t.n_errors for t, _ in fresh), sum(t.n_errors for t, _ in held)
    chance = events_p(e_new, n_new, e_old, n_old)
    rates_new = [t.n_errors / t.n_runs for t, _ in fresh if t.n_runs >= _LEAST_BOX_RUNS]
    rates_old = [t.n_errors / t.n_runs for t, _ in held if t.n_runs >= _LEAST_BOX_RUNS] if old else []
    if least_ranks_p(len(rates_new), len(rates_old)) <= level:
        own_new, own_old = _own_errors(fresh), _own_errors(held)
        both = (own_new, own_old) if own_new and own_old else (rates_new, rates_old)
        chance = max(chance, ranks_p(*both))
    elif len(fresh) >= 2:
        worst, _ = max(fresh, key=lambda pair: pair[0].n_errors)
        chance = max(chance, events_p(e_new - worst.n_errors, n_new - worst.n_runs, e_old, n_old))
    rate_new, rate_old = e_new / n_new, e_old / n_old
    worse = chance <= level and _usual_rate(fresh) > _usual_rate(held) + plan.tolerance.errors_ratio
    return Finding(metric="errors", new=rate_new, old=rate_old, chance=chance, level=level, is_worse=worse)


def _usual_rate(pairs: Sequence[tuple[Tally, Member]]) -> float:
    """Errors a run without the twentieth of the boxes that err most, at least one of five: cameras are no versions."""
    tallies = sorted((tally for tally, _ in pairs if tally.n_runs), key=lambda tally: tally.n_errors / tally.n_runs)
    kept = tallies[: len(tallies) - math.ceil(len(tallies) / 20)] if len(tallies) >= _ENOUGH_BOXES else tallies
    n_runs = sum(tally.n_runs for tally in kept)
    return sum(tally.n_errors for tally in kept) / n_runs if n_runs else 0.0


def _own_errors(pairs: Sequence[tuple[Tally, Member]]) -> list[float]:
    """How much more each box errs than it did before the rollout; empty unless nearly all have a past."""
    changes = []
    for tally, member in pairs:
        if tally.n_runs >= _LEAST_BOX_RUNS and member.before.n_runs >= _LEAST_BOX_RUNS:
            changes.append(tally.n_errors / tally.n_runs - member.before.n_errors / member.before.n_runs)
    return changes if len(changes) >= 0.9 * len(pairs) else []


def _crashes(plan: Plan, new: Sequence[Member], old: Sequence[Member], level: float) -> Finding | None:
    """Boxes on which the service crashed at all since they have it, or since the rollout began (exact, Fisher).

    Crashes of one box are not independent, so boxes are counted. Those without the version were watched for longer,
    which favours the new one a little, and lets crashes of earlier stages count on.
    """
    if not new or not old:
        return None
    c_new = sum(m.failed != "" or m.now.n_crashes > 0 for m in new)
    c_old = sum(m.now.since(m.before).n_crashes > 0 for m in old)
    chance = boxes_p(c_new, len(new), c_old, len(old))
    share_new, share_old = c_new / len(new), c_old / len(old)
    worse = chance <= level and share_new > share_old + plan.tolerance.crashes_ratio
    return Finding(metric="crashes", new=share_new, old=share_old, chance=chance, level=level, is_worse=worse)


def _latency(plan: Plan, new: Sequence[Member], old: Sequence[Member], level: float) -> Finding | None:
    """Median time of each box over its own before the rollout, boxes against boxes (ranks)."""
    fresh, held = _slowdowns([m for m in new if m.now.digest == plan.artifact_digest]), _slowdowns(old)
    if not fresh:
        return None
    middle_new = math.exp(_median(fresh))
    if not held or least_ranks_p(len(fresh), len(held)) > level:
        rest = math.exp(_median(held)) if held else 1.0
        limit = 1.0 + _PLAIN_LATENCY * plan.tolerance.latency_ratio
        n_runs = sum(m.now.since(m.mark).n_runs for m in new)
        worse = n_runs >= plan.min_runs and math.exp(min(fresh)) / max(1.0, rest) > limit
        return Finding(metric="latency", new=middle_new, old=rest, chance=1.0, level=level, is_worse=worse)
    chance = ranks_p(fresh, held)
    middle_old = math.exp(_median(held))
    worse = chance <= level and middle_new > middle_old * (1.0 + plan.tolerance.latency_ratio)
    return Finding(metric="latency", new=middle_new, old=middle_old, chance=chance, level=level, is_worse=worse)


def _slowdowns(members: Sequence[Member]) -> list[float]:
    """Logarithms of each box's median time over its own former one; boxes without a past are left out."""
    return [math.log(m.p50_s / m.before_p50_s) for m in members if m.p50_s > 0 and m.before_p50_s > 0]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0
