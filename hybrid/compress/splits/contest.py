"""All ways of one job against one another and against the device alone: who is shipped, and why others are not."""

from dataclasses import dataclass, field
from typing import Final

from hybrid.calibration.record import Cell
from hybrid.compress.material import Material
from hybrid.compress.report.report import SplitStatus, SplitTold
from hybrid.compress.splits.front import Weighed, beaten
from hybrid.compress.splits.heads import MeasuredCut
from hybrid.compress.splits.prices import Prices, Spent
from hybrid.compress.splits.trying import Tries, promised
from hybrid.compress.splits.ways import Head, ShippedWay, Tried, Way
from hybrid.partition.cut import Cut

MOST_JUDGED: Final = 6
"""Each one more is one more chance to pass by luck."""

MOST_SHIPPED: Final = 4
"""Splits and permitted codecs of an artifact."""

LOCAL: Final = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A form of the model that answers on the device alone."""

    id: str
    spent: Spent
    drop: float = 0.0
    high: float = 0.0


@dataclass(slots=True, kw_only=True)
class Contest:
    """What is known of all ways.

    Attributes:
        prices: of the device, the link and the gateway.
        max_drop: the floor.
        material: samples.
        tries: judges.
        cuts: what was measured of each cut, by id.
        alone: the model on the device, and its shipped variants.
        tried: ways by id.
        failed: what could not be tried, and what was not worth it.
        n_judged: ways that the judging part has seen.
    """

    prices: Prices
    max_drop: float
    material: Material
    tries: Tries
    cuts: dict[str, MeasuredCut] = field(default_factory=dict)
    alone: list[Alone] = field(default_factory=list)
    tried: dict[str, Tried] = field(default_factory=dict)
    failed: list[SplitTold] = field(default_factory=list)
    n_judged: int = 0

    def add(self, found: list[Tried]) -> None:
        """Takes in what was tried."""
        self.tried |= {each.way.id: each for each in found}

    def leave_out(self, name: str, cut: Cut, head: Head, status: SplitStatus, reason: str) -> None:
        """Something that was not tried, or that failed."""
        known = self.cuts.get(cut.id)
        is_timed = known is not None and (head != "int8" or known.int8_s is not None)
        self.failed.append(
            SplitTold(
                id=name,
                cut=cut.id,
                at=_at(cut),
                head=head,
                codec="",
                status=status,
                reason=reason,
                raw_bytes=float(cut.n_bytes),
                head_s=known.head_s(head) if known is not None and is_timed else None,
            )
        )

    def spent(self, one: Tried) -> Spent:
        """What a request costs by a way."""
        cut, cell, known = one.way.cut, one.cell, self.cuts[one.way.cut.id]
        return self.prices.divided(
            head_s=known.head_s(one.way.head, one.way.codec),
            encode_s=known.encode_s(one.way.head, one.way.codec, cell.encode_s),
            up_bytes=cell.n_bytes,
            decode_s=cell.decode_s,
            tail_s=known.tail_s,
            down_bytes=cut.reply_bytes,
        )

    def best(self) -> Weighed:
        """The cheapest that holds the floor, as far as is known."""
        return min(self._weighed(), key=lambda one: one.cost)

    def judge(self) -> None:
        """Judges what no other beats, until nothing unjudged is left among it, or enough were judged."""
        while fresh := self._unjudged()[: MOST_JUDGED - self.n_judged]:
            ways = [one.way for one in fresh]
            judged = {each.way.id: each for each in self.tries.judged(ways)}
            self.n_judged += len(ways)
            self.tried |= judged
            for way in ways:
                if way.id not in judged:
                    del self.tried[way.id]
                    self.leave_out(way.id, way.cut, way.head, "failed", "it carries nothing of the judging part")

    def shipped(self) -> list[ShippedWay]:
        """What the artifact gets, the cheapest first."""
        worse = beaten(self._weighed())
        found = [one for one in self.tried.values() if one.is_judged and self._holds(one) and one.way.id not in worse]
        found.sort(key=self._cost)
        return [ShippedWay(way=one.way, cell=one.cell) for one in found[:MOST_SHIPPED]]

    def told(self) -> list[SplitTold]:
        """Everything that was tried: what is shipped, then by cost, then what failed."""
        worse, shipped = beaten(self._weighed()), [one.way.id for one in self.shipped()]
        rows = [self._told_alone(one, worse) for one in self.alone]
        rows += [self._told(one, worse, shipped) for one in self.tried.values()]
        rows.sort(key=lambda row: (row.status != "shipped", row.total_s or 0.0, row.id))
        return [*rows, *self.failed]

    @property
    def remarks(self) -> list[str]:
        """What a reader must know of the judgement."""
        if self.n_judged < 2:
            return []
        return [f"splits: {self.n_judged} ways were judged on the same samples, each at 95 %"]

    def _cost(self, one: Tried) -> float:
        return self.prices.cost(self.spent(one))

    def _high(self, one: Tried) -> float:
        if not one.cell.is_lossy:
            return 0.0
        return one.cell.drop_high if one.is_judged else promised(one.cell, self.material)

    def _holds(self, one: Tried) -> bool:
        return self._high(one) <= self.max_drop

    def _weighed(self) -> list[Weighed]:
        """All that holds the floor, as far as is known."""
        found = [
            Weighed(id=one.id, cost=self.prices.cost(one.spent), high=max(0.0, one.high), is_free=True)
            for one in self.alone
        ]
        return found + [
            Weighed(id=name, cost=self._cost(one), high=max(0.0, self._high(one)), is_free=one.way.is_exact)
            for name, one in self.tried.items()
            if self._holds(one)
        ]

    def _unjudged(self) -> list[Tried]:
        worse = beaten(self._weighed())
        found = [
            one
            for name, one in self.tried.items()
            if not one.is_judged and not one.way.is_exact and self._holds(one) and name not in worse
        ]
        return sorted(found, key=self._cost)

    def _told_alone(self, one: Alone, worse: dict[str, Weighed]) -> SplitTold:
        what = "the model on the device" if one.id == LOCAL else "a shipped variant on the device"
        by = worse.get(one.id)
        return SplitTold(
            id=one.id,
            head="all",
            status="always there",
            reason=f"{what}; {_beaten(by, self.prices.cost(one.spent))}" if by is not None else what,
            drop=one.drop,
            high=one.high,
            head_s=one.spent.head_s,
            total_s=one.spent.total_s,
            energy_j=one.spent.energy_j,
        )

    def _told(self, one: Tried, worse: dict[str, Weighed], shipped: list[str]) -> SplitTold:
        way, cell, spent = one.way, one.cell, self.spent(one)
        status, reason = self._outcome(one, worse, shipped)
        return SplitTold(
            id=way.id,
            cut=way.cut.id if way.head else "",
            at=_at(way.cut),
            head=way.head,
            codec=way.codec,
            status=status,
            reason=reason,
            notes=self._notes(way),
            n=cell.n,
            drop=cell.drop,
            low=cell.drop_low,
            high=cell.drop_high,
            is_judged=one.is_judged,
            raw_bytes=cell.raw_bytes,
            n_bytes=cell.n_bytes,
            head_s=spent.head_s,
            encode_s=spent.encode_s,
            network_s=spent.network_s,
            gateway_s=spent.gateway_s,
            total_s=spent.total_s,
            energy_j=spent.energy_j,
        )

    def _notes(self, way: Way) -> tuple[str, ...]:
        return (*(self.cuts[way.cut.id].notes if way.head == "int8" else ()), *way.notes)

    def _outcome(self, one: Tried, worse: dict[str, Weighed], shipped: list[str]) -> tuple[SplitStatus, str]:
        by = worse.get(one.way.id)
        if one.way.is_exact:
            said = "it changes nothing, so that no session has to be permitted to take it"
            return "always there", f"{said}; {_beaten(by, self._cost(one))}" if by is not None else said
        if one.way.id in shipped:
            files = "" if one.way.files is not None else "; it takes no file, only the calibration's word"
            return "shipped", f"within the floor, and nothing that loses no more is as cheap{files}"
        if not self._holds(one):
            return "kept off", _beyond(one.cell, self._high(one), self.max_drop, is_judged=one.is_judged)
        if by is not None:
            return "kept off", _beaten(by, self._cost(one))
        if one.is_judged:
            return "kept off", f"{MOST_SHIPPED} cheaper ones are shipped"
        return "kept off", f"not judged: {MOST_JUDGED} cheaper ones were"


def _at(cut: Cut) -> str:
    return ", ".join(tensor.name for tensor in cut.tensors)


def _beaten(by: Weighed, cost: float) -> str:
    return f"beaten by {by.id}: {by.cost / cost:.0%} of its cost, and it loses no more"


def _beyond(cell: Cell, high: float, max_drop: float, *, is_judged: bool) -> str:
    part = f"{cell.n} samples" if is_judged else f"choosing part, {cell.n} samples"
    verb = "is" if is_judged else "promises"
    return f"beyond the floor: a drop of {cell.drop:.2%} {verb} at most {high:.2%}, {max_drop:.2%} is allowed ({part})"
