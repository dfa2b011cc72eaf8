"""The gateway as the simulation has it: how long it computes, who else waits there, and when it is away."""

from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import numpy as np

from hybrid.simulation.curve import Steps

TENANT_HORIZON_S: Final = 600.0
"""Other tenants' requests are drawn for so long, and then come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The gateway is away: `crash` resets its connections at once, `freeze` says nothing until it goes on."""

    start_s: float
    end_s: float
    kind: Literal["crash", "freeze"] = "crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayModel:
    """What the gateway is like beside the profile of its tails.

    Attributes:
        load: factor on its seconds over time: how much slower than in the profile it computes.
        noise_ratio: deviation of the logarithm of its seconds.
        tenant_share: share of its time that other tenants' requests take, 0 to below 1.
        tenant_s: seconds of one such request.
        overhead_s: from the last byte in to computing, and from computing to the first byte out.
        faults: when it is away, in order.
    """

    load: Steps = Steps.steady(1.0)
    noise_ratio: float = 0.02
    tenant_share: float = 0.0
    tenant_s: float = 0.02
    overhead_s: float = 0.0003
    faults: tuple[Fault, ...] = ()


class Gateway:
    """One gateway that serves first come, first served."""

    def __init__(self, model: GatewayModel, rng: np.random.Generator) -> None:
        self.model = model
        self.free_s = -inf
        self._arrivals, self._backlogs = _tenants(model, rng)
        self._fault_starts = [fault.start_s for fault in model.faults]

    def queued_s(self, at_s: float) -> float:
        """Seconds that a request waits which arrives now."""
        wait_s = max(0.0, self.free_s - at_s)
        if self._arrivals:
            lap_s = at_s % TENANT_HORIZON_S
            last = bisect_right(self._arrivals, lap_s) - 1
            if last >= 0:
                wait_s = max(wait_s, self._backlogs[last] - (lap_s - self._arrivals[last]))
        return wait_s

    def computes_s(self, tail_s: float, at_s: float, luck: float) -> float:
        """Seconds that a tail of this profile takes if it begins now."""
        return tail_s * self.model.load.at(at_s) * luck

    def fault_at(self, at_s: float) -> Fault | None:
        """The fault that lasts at this moment, if any."""
        last = bisect_right(self._fault_starts, at_s) - 1
        if last >= 0 and at_s < self.model.faults[last].end_s:
            return self.model.faults[last]
        return None

    def fault_within(self, start_s: float, end_s: float) -> Fault | None:
        """The first fault that lasts at some moment between these two."""
        if not self._fault_starts:
            return None
        first = self.fault_at(start_s)
        if first is not None:
            return first
        following = bisect_right(self._fault_starts, start_s)
        if following < len(self._fault_starts) and self._fault_starts[following] < end_s:
            return self.model.faults[following]
        return None


def _tenants(model: GatewayModel, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Moments at which others' requests come, and the backlog right after each.

    A Poisson stream of exponential requests; the backlog follows Lindley's recursion.
    """
    if not model.tenant_share:
        return [], []
    n_arrivals = max(1, int(TENANT_HORIZON_S * model.tenant_share / model.tenant_s))
    arrivals = np.sort(rng.uniform(0.0, TENANT_HORIZON_S, n_arrivals))
    service = rng.exponential(model.tenant_s, n_arrivals)
    backlogs: list[float] = []
    backlog = last_s = 0.0
    for arrival_s, service_s in zip(arrivals.tolist(), service.tolist(), strict=True):
        backlog = max(0.0, backlog - (arrival_s - last_s)) + service_s
        last_s = arrival_s
        backlogs.append(backlog)
    return arrivals.tolist(), backlogs
