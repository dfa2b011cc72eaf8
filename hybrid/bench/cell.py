"""One cell of the matrix: one model, device and link, every policy over the same stream, each objective's costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from time import process_time

import numpy as np
import numpy.typing as npt

from hybrid.cost.energy import GENERIC_POWER, Power
from hybrid.schedule.options import Objective
from hybrid.schedule.prices import PRICES, Prices
from hybrid.schedule.prospect import Constraints, refusal
from hybrid.simulation.oracle import Foresight, Oracle, Spent
from hybrid.simulation.outcome import Outcome
from hybrid.simulation.policy import Policy, Static
from hybrid.simulation.scene import Scene
from hybrid.simulation.scheduled import Scheduled
from hybrid.simulation.world import World

Floats = npt.NDArray[np.float64]

OBJECTIVES: tuple[Objective, ...] = ("latency", "energy", "bytes")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One policy's stream.

    Attributes:
        name: of the policy.
        outcome: what it left behind.
        seconds: that the simulation took, of processor time.
    """

    name: str
    outcome: Outcome
    seconds: float = 0.0

    def costs(self, prices: Prices, power: Power) -> Floats:
        """(n,) cost of each request in seconds: latency, and joules and bytes at these prices."""
        outcome = self.outcome
        return outcome.latency_s + prices.s_per_j * self.energy_j(power) + prices.s_per_byte * self.n_bytes()

    def energy_j(self, power: Power) -> Floats:
        """(n,) modelled joules of each request."""
        outcome = self.outcome
        return np.asarray(
            power.idle_w * outcome.latency_s
            + (power.compute_w - power.idle_w) * outcome.device_s
            + (power.transmit_w - power.idle_w) * outcome.up_s
            + (power.receive_w - power.idle_w) * outcome.down_s
        )

    def n_bytes(self) -> Floats:
        """(n,) bytes of each request, both ways."""
        return self.outcome.bytes_up + self.outcome.bytes_down


def spent(prices: Prices, power: Power) -> Spent:
    """The cost of one request at these prices, for the oracle."""

    def cost(  # noqa: PLR0917
        latency_s: float, device_s: float, up_s: float, down_s: float, bytes_up: float, bytes_down: float
    ) -> float:
        if latency_s == inf:
            return inf
        energy_j = power.energy_j(total_s=latency_s, compute_s=device_s, transmit_s=up_s, receive_s=down_s)
        return latency_s + prices.s_per_j * energy_j + prices.s_per_byte * (bytes_up + bytes_down)

    return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is compared under one roof.

    Attributes:
        model: name of the model.
        device: name of the device.
        link: name of the link class.
        trace: `steady` or `changing`.
        scene: everything but the policies.
        power: of the device, modelled.
        constraints: what plans must keep.
        fixed: further policies whose choice needs figures of the model: Neurosurgeon's, DADS's.
        elsewhere: policies that need a scene of their own (Sedna's small model is one more way to answer).
    """

    model: str
    device: str
    link: str
    trace: str
    scene: Scene
    power: Power = GENERIC_POWER
    constraints: Constraints = field(default_factory=Constraints)
    fixed: tuple[Policy, ...] = ()
    elsewhere: tuple[tuple[Scene, Policy], ...] = ()

    @property
    def permitted(self) -> tuple[int, ...]:
        """Numbers of the prospects that may be used at all."""
        prospects = self.scene.work.prospects
        return tuple(at for at, prospect in enumerate(prospects) if not refusal(prospect, self.constraints))

    @property
    def worth_running(self) -> tuple[int, ...]:
        """The permitted ones but those that another of their kind beats in every part: bytes and seconds."""
        work = self.scene.work
        truth = work.truth()
        parts = {
            at: (
                truth.head_s[at] + truth.encode_s[at],
                truth.bytes_up[at],
                truth.bytes_down[at],
                truth.tail_s[at] + truth.decode_s[at],
            )
            for at in self.permitted
        }

        def is_beaten(at: int) -> bool:
            return any(
                other != at and theirs != parts[at] and all(a <= b for a, b in zip(theirs, parts[at], strict=True))
                for other, theirs in parts.items()
                if work.prospects[other].placement == work.prospects[at].placement
            )

        raw = [at for at in parts if work.prospects[at].placement == "offload" and work.prospects[at].codec == "none"]
        return tuple(at for at in parts if at == 0 or at in raw or not is_beaten(at))


@dataclass(slots=True, kw_only=True, eq=False)
class CellRuns:
    """All runs of a cell.

    Attributes:
        cell: what was compared.
        statics: a run for each permitted prospect, by its number.
        others: Neurosurgeon's, DADS's and Sedna's, by name.
        ours: the scheduler's run for each objective.
        foresight: for each objective, the clairvoyant's choices carried out over the real link.
        oracle: for each objective, the least cost of every request of our run, and the prospect that has it.
    """

    cell: Cell
    statics: dict[int, Run]
    others: dict[str, Run]
    ours: dict[Objective, Run]
    foresight: dict[Objective, Run]
    oracle: dict[Objective, tuple[Floats, npt.NDArray[np.int64]]]

    def best_static(self, objective: Objective) -> int:
        """The prospect that would have been best for the whole stream, seen afterwards."""
        return min(self.statics, key=lambda at: self.mean_cost(self.statics[at], objective))

    def offload(self, objective: Objective, *, encoded: bool) -> int | None:
        """The best offload in hindsight: raw, or with a permitted codec; None where there is none."""
        prospects = self.cell.scene.work.prospects
        numbers = [
            at
            for at in self.statics
            if prospects[at].placement == "offload" and (prospects[at].codec != "none") == encoded
        ]
        return min(numbers, key=lambda at: self.mean_cost(self.statics[at], objective), default=None)

    def costs(self, run: Run, objective: Objective) -> Floats:
        """Costs of a run under an objective; latency alone for `latency`."""
        if objective == "latency":
            return run.outcome.latency_s
        return run.costs(PRICES[objective], self.cell.power)

    def mean_cost(self, run: Run, objective: Objective) -> float:
        """The mean of them; infinity for a run without an answer."""
        costs = self.costs(run, objective)
        return float(costs.mean()) if len(costs) else inf


def carry_out(cell: Cell, objectives: Sequence[Objective] = OBJECTIVES, *, foresight: bool = True) -> CellRuns:
    """Runs every policy of a cell over the same stream."""
    scene, prospects = cell.scene, cell.scene.work.prospects
    statics = {at: _run(scene, Static(at, "/".join(filter(None, prospects[at].key[:3])))) for at in cell.worth_running}
    others = {policy.name: _run(scene, policy) for policy in cell.fixed}
    others |= {policy.name: _run(place, policy) for place, policy in cell.elsewhere}
    ours, foreseen, oracle = {}, {}, {}
    for objective in objectives:
        policy = Scheduled(
            scene.work,
            PRICES[objective],
            power=cell.power,
            constraints=cell.constraints,
            n_cores=scene.device.n_cores,
            congestion=scene.link.congestion,
            seed=scene.seed,
        )
        ours[objective] = run = _run(scene, policy)
        cost = spent(Prices() if objective == "latency" else PRICES[objective], cell.power)
        if foresight:
            foreseen[objective] = _run(scene, Foresight(scene, cost, cell.permitted))
        oracle[objective] = Oracle(scene, cost, cell.permitted).costs(run.outcome.slot, run.outcome.start_s)
    return CellRuns(cell=cell, statics=statics, others=others, ours=ours, foresight=foreseen, oracle=oracle)


def _run(scene: Scene, policy: Policy) -> Run:
    before_s = process_time()
    outcome = World(scene, policy).run()
    return Run(name=policy.name, outcome=outcome, seconds=process_time() - before_s)
