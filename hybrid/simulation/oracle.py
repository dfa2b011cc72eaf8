"""A clairvoyant choice for each request: the best of all prospects, knowing the link's future and every machine's luck.

Design: made of a link without protocol (the trace's rate and round trip; no slow start, no losses, no queue of our own
making) and of the seconds that onnxruntime took offline; nothing of the scheduler's parts is in it. It pays for one
prospect only, never for a hedge. So no policy can be ahead of it on any single request, and part of the distance to it
(slow start on an idle connection) is the network's and nobody's to win: `clairvoyant_index` therefore also serves as a
policy over the real link (`Foresight`), which tells the two apart.

Source: the clairvoyant choice that the field's study of recorded uplinks compares with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from hybrid.simulation.gateway import Gateway
from hybrid.simulation.link import Link
from hybrid.simulation.luck import N_DRAWS
from hybrid.simulation.policy import Deaf, Load, Move, Static
from hybrid.simulation.scene import Scene

Spent = Callable[[float, float, float, float, float, float], float]
"""Cost of one request from (latency_s, device_s, up_s, down_s, bytes_up, bytes_down)."""


def latency_alone(latency_s: float, *_: float) -> float:
    """The cost of objective `latency`."""
    return latency_s


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one prospect would cost one request."""

    latency_s: float
    device_s: float
    up_s: float
    down_s: float
    bytes_up: float
    bytes_down: float

    def cost(self, spent: Spent) -> float:
        """In the unit of `spent`."""
        return spent(self.latency_s, self.device_s, self.up_s, self.down_s, self.bytes_up, self.bytes_down)


class Oracle:
    """Knows the whole scene.

    Args:
        scene: what the policies meet.
        spent: what is to be least; latency unless given.
        allowed: numbers of the prospects that it may take; all unless given.
    """

    def __init__(self, scene: Scene, spent: Spent = latency_alone, allowed: Sequence[int] | None = None) -> None:
        self._truth = scene.work.truth()
        self._luck = scene.luck()
        self._link = Link(scene.link)
        self._gateway = Gateway(scene.gateway, np.random.default_rng([scene.seed, 2]))
        self._slowdown = scene.device.slowdown
        self._spent = spent
        self._allowed = tuple(range(len(scene.work.prospects))) if allowed is None else tuple(allowed)

    def outlook(self, index: int, slot: int, start_s: float) -> Outlook:
        """What this prospect costs the request of this slot if it starts now; infinite where it never ends."""
        truth, number = self._truth, slot % N_DRAWS
        here = self._slowdown.at(start_s) * self._luck.device[number]
        head_s = (truth.head_s[index] + (truth.encode_s[index] if index else 0.0)) * here
        if index == 0:
            return Outlook(head_s, head_s, 0.0, 0.0, 0.0, 0.0)
        link, gateway, jitter_s = self._link, self._gateway, self._link.jitter_each_way_s
        n_up, n_down = truth.bytes_of(index, self._luck.sample[number]), truth.bytes_down[index]
        depart_s = start_s + head_s
        sent_s = link.ideal_up.done_s(depart_s, 8.0 * n_up)
        if sent_s == inf:
            return Outlook(inf, head_s, inf, 0.0, n_up, n_down)
        there_s = sent_s + max(0.0, 0.5 * link.rtt_s(depart_s) + jitter_s * self._luck.jitter_up[number])
        while (fault := gateway.fault_at(there_s)) is not None:
            there_s = fault.end_s
        done_s = there_s + gateway.queued_s(there_s)
        done_s += gateway.computes_s(truth.tail_s[index], done_s, self._luck.gateway[number]) + truth.decode_s[index]
        back_s = link.ideal_down.done_s(done_s, 8.0 * n_down)
        if back_s == inf:
            return Outlook(inf, head_s, inf, inf, n_up, n_down)
        down_s = back_s - done_s
        back_s += max(0.0, 0.5 * link.rtt_s(done_s) + jitter_s * self._luck.jitter_down[number])
        return Outlook(back_s - start_s, head_s, sent_s - depart_s, down_s, n_up, n_down)

    def best(self, slot: int, start_s: float) -> tuple[int, float]:
        """The best prospect of this request, and its cost."""
        best, best_cost = 0, inf
        for index in self._allowed:
            cost = self.outlook(index, slot, start_s).cost(self._spent)
            if cost < best_cost:
                best, best_cost = index, cost
        return best, best_cost

    def costs(
        self, slots: npt.NDArray[np.float64], starts_s: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """For each of these requests, the least cost and the prospect that has it."""
        found = [self.best(int(slot), start_s) for slot, start_s in zip(slots.tolist(), starts_s.tolist(), strict=True)]
        return np.array([cost for _, cost in found]), np.array([index for index, _ in found], np.int64)


class Foresight(Deaf):
    """The oracle's choice carried out over the real link: what foresight without hedging could reach.

    It is asked in the order of a paced stream, whose slot it tells from the time.
    """

    name = "foresight"
    conduct = Static.conduct

    def __init__(self, scene: Scene, spent: Spent = latency_alone, allowed: Sequence[int] | None = None) -> None:
        self._oracle = Oracle(scene, spent, allowed)
        self._period_s = scene.stream.period_s

    def choose(self, now_s: float, load: Load) -> Move:  # noqa: ARG002
        """The best prospect of the request that is due now."""
        return Move(self._oracle.best(round(now_s / self._period_s), now_s)[0])
