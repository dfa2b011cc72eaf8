"""A decision that lasts for the next few requests: where the device answers in milliseconds, deciding is dear.

Design: only the device's own plans last, and only while nothing that the decision rested on has moved: ways, prices,
constraints, the device's speed, breakers, change points of a link. It lasts a hundred times as long as it took to
make, so that deciding takes about one per cent of the time, and for a few requests at most, so that a change is still
followed within as many. Requests with a deadline, in company or by a remote way are each decided about.
"""

from collections.abc import Collection
from time import perf_counter
from typing import Final

from hybrid.schedule.beliefs import Decision
from hybrid.schedule.prospect import Constraints
from hybrid.schedule.scheduler import Scheduler

COST_RATIO: Final = 0.01
"""Share of the time that deciding may take."""

MOST_REPEATS: Final = 3
"""Requests that follow one decision beside its own."""

MOST_S: Final = 0.25
SPEED_RATIO: Final = 0.1
"""So far may the device's speed move meanwhile."""


class Lasting:
    """The last decision of a route, as long as it lasts."""

    def __init__(self) -> None:
        self._decision: Decision | None = None
        self._until_s = 0.0
        self._n_left = 0

    def decide(
        self,
        scheduler: Scheduler,
        constraints: Constraints,
        now_s: float,
        *,
        left_s: float | None,
        n_device_runs: int,
        n_in_flight: int,
        down: Collection[str],
    ) -> Decision:
        """The scheduler's decision about a request that comes now, or the one before where that still holds."""
        is_alone = left_s is None and not n_device_runs and not n_in_flight
        last = self._decision
        if is_alone and last is not None and self._holds(last, scheduler, constraints, now_s, down):
            self._n_left -= 1
            scheduler.repeat()
            return last
        before_s = perf_counter()
        decision = scheduler.decide(
            now_s,
            constraints=constraints,
            deadline_left_s=left_s,
            n_device_runs=n_device_runs,
            n_in_flight=n_in_flight,
            down=down,
        )
        cost_s = perf_counter() - before_s
        is_local = scheduler.table.prospects[decision.index].placement == "local"
        lasts = is_alone and is_local and not decision.is_trial and not decision.regret_s and decision.predicted_s
        self._decision = decision if lasts else None
        self._until_s, self._n_left = now_s + min(MOST_S, cost_s / COST_RATIO), MOST_REPEATS
        return decision

    def _holds(
        self, last: Decision, scheduler: Scheduler, constraints: Constraints, now_s: float, down: Collection[str]
    ) -> bool:
        inputs = last.inputs
        if inputs is None or self._n_left <= 0 or now_s >= self._until_s or inputs.table != scheduler.table.id:
            return False
        if inputs.prices != scheduler.prices or inputs.constraints != constraints:
            return False
        moved_ratio = abs(scheduler.device_speed_ratio / inputs.device_speed_ratio - 1)
        return moved_ratio < SPEED_RATIO and not scheduler.has_news(now_s, down)
