"""What a simulated fleet is like: how many boxes, which machines, on which links, and how reliable they are."""

import math
from dataclasses import dataclass
from random import Random
from typing import Final

import msgspec

from cloud_gateway.rounds.simulation.attack import Attack
from cloud_gateway.rounds.simulation.samples import Split
from devices.catalog.load import device, devices, link_class
from devices.link_class import LinkClass, Rates
from hybrid.errors import BadMessage
from hybrid.federated.campaign import Training

STEP_S: Final = 50e-6
"""Of a small batch on the reference core, whatever its size: measured with numpy, rounded."""
OPERATIONS_PER_S: Final = 4e9
"""Of a larger batch on the reference core: measured with numpy on one thread, rounded."""
MOST_BOXES: Final = 10_000
_LADDER: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A simulated fleet; ratios are from 0 to 1.

    Attributes:
        boxes: how many.
        machines: names of the catalog, dealt out in turn; none: all of it.
        links: likewise; none: each machine's own, in turn.
        split, alpha, shards: how samples are divided (`samples.divided`).
        drops_ratio: chance that a box falls over in a task.
        away_ratio: share of the time that boxes are away.
        slow_ratio: share of boxes that are `slow_factor` times slower than their machine: stragglers.
        attackers_ratio: share of boxes that send what `attack` says.
        seed: of everything that is drawn.
        most_s: virtual seconds after which the campaign is stopped.
    """

    boxes: int = 100
    machines: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    split: Split = "dirichlet"
    alpha: float = 0.5
    shards: int = 2
    drops_ratio: float = 0.0
    away_ratio: float = 0.0
    slow_ratio: float = 0.0
    slow_factor: float = 10.0
    attackers_ratio: float = 0.0
    attack: Attack = "flip"
    seed: int = 0
    most_s: float = 86_400.0

    def check(self) -> None:
        """Raises `BadMessage` for what cannot be."""
        ratios = (self.drops_ratio, self.slow_ratio, self.attackers_ratio)
        if not 1 <= self.boxes <= MOST_BOXES or not all(0.0 <= ratio <= 1.0 for ratio in ratios):
            raise BadMessage(f"{self.boxes} boxes with shares {ratios}: 1 to {MOST_BOXES} boxes, shares from 0 to 1")
        if not 0.0 <= self.away_ratio < 1.0:
            raise BadMessage(f"boxes are away for {self.away_ratio} of the time: from 0 to below 1 is possible")
        if not 1.0 <= self.slow_factor < math.inf:
            raise BadMessage(f"slow boxes are {self.slow_factor:g} times slower: 1 or more is possible")
        if not self.most_s > 0.0:
            raise BadMessage(f"the campaign may take {self.most_s:g} virtual seconds: more than 0 are possible")
        if not 0.0 < self.alpha < math.inf or self.shards < 1:
            raise BadMessage(f"alpha is {self.alpha:g} and a box has {self.shards} shards: above 0, and 1 or more")


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a class: each transfer at a rate that is drawn from what was measured of it."""

    kind: LinkClass

    def up_s(self, n_bytes: int, rng: Random) -> float:
        """Seconds until so many bytes are at the gateway."""
        return self._s(n_bytes, self.kind.up, rng)

    def down_s(self, n_bytes: int, rng: Random) -> float:
        """Seconds until so many bytes are at the box."""
        return self._s(n_bytes, self.kind.down, rng)

    def _s(self, n_bytes: int, rates: Rates, rng: Random) -> float:
        half_trip_s = max(0.0, rng.gauss(self.kind.rtt_s, self.kind.jitter_s)) / 2.0
        return half_trip_s + 8.0 * n_bytes / _drawn(rates, rng.random())


def _drawn(rates: Rates, chance: float) -> float:
    """The rate at this quantile, straight between the five that are known; beyond them the outermost."""
    ladder = (rates.p5_bps, rates.p25_bps, rates.median_bps, rates.p75_bps, rates.p95_bps)
    for at in range(1, len(ladder)):
        if chance <= _LADDER[at]:
            share = max(0.0, (chance - _LADDER[at - 1]) / (_LADDER[at] - _LADDER[at - 1]))
            return max(1e3, ladder[at - 1] + share * (ladder[at] - ladder[at - 1]))
    return ladder[-1]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and its link.

    Attributes:
        name: of the catalog.
        slowdown_ratio: one of its cores against the reference core, stragglers' factor included.
        link: to the gateway.
        n_parameters: that learn.
    """

    name: str
    slowdown_ratio: float
    link: Link
    n_parameters: int

    def train_s(self, n_samples: int, n_steps: int, training: Training) -> float:
        """Seconds of a task: a fixed part a batch, and six operations a weight and sample (there and back)."""
        n_seen = min(n_samples * training.epochs, n_steps * training.batch)
        return self.slowdown_ratio * (n_steps * STEP_S + 6.0 * self.n_parameters * n_seen / OPERATIONS_PER_S)


def machines(fleet: Fleet, n_parameters: int) -> list[Machine]:
    """The machine of each box.

    Raises:
        CatalogUnknown: no such machine or link.
    """
    kinds = [device(name) for name in fleet.machines] or list(devices())
    given = [link_class(name) for name in fleet.links]
    order = list(range(fleet.boxes))
    Random(f"{fleet.seed} machines").shuffle(order)  # noqa: S311 (nothing secret is drawn)
    slow = set(order[: round(fleet.slow_ratio * fleet.boxes)])
    found = []
    for at in range(fleet.boxes):
        kind = kinds[at % len(kinds)]
        turn = at // len(kinds)
        own = given[at % len(given)] if given else link_class(kind.links[turn % len(kind.links)])
        factor = fleet.slow_factor if at in slow else 1.0
        found.append(Machine(kind.name, kind.slowdown_ratio * factor, Link(own), n_parameters))
    return found


def attackers(fleet: Fleet) -> frozenset[int]:
    """Which boxes attack."""
    order = list(range(fleet.boxes))
    Random(f"{fleet.seed} attackers").shuffle(order)  # noqa: S311 (nothing secret is drawn)
    return frozenset(order[: round(fleet.attackers_ratio * fleet.boxes)])
