"""The search for ways to divide requests: which cuts may win, what is made and tried there, what of it is shipped."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from compression.codecs.catalog import decodable
from compression.errors import NotTrainable
from compression.measuring import Timing
from devices.link_class import LinkClass
from devices.machine import processor
from hybrid.artifact.splits import Role
from hybrid.compress.interruption import hides_interrupt
from hybrid.compress.job import Job
from hybrid.compress.journal import SPLITS
from hybrid.compress.judging import Judged
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.report.report import Refused, SplitTold
from hybrid.compress.search.bench import FAILURES, Bench
from hybrid.compress.splits.bottlenecks import LEAST_S, MOST_CUTS, WHAT, Bottlenecks, fits, places_of
from hybrid.compress.splits.contest import LOCAL, Alone, Contest
from hybrid.compress.splits.filing import filed
from hybrid.compress.splits.heads import Heads, MeasuredCut
from hybrid.compress.splits.places import FLOAT_HOPE, INT8_HOPE, LEARNED_HOPE, Hope, hopeful, least_cost
from hybrid.compress.splits.prices import Prices
from hybrid.compress.splits.trying import Tries
from hybrid.compress.splits.ways import CARRIERS, CODECS, LEARNED, Head, ShippedWay, Way
from hybrid.compress.timing.timer import Timer
from hybrid.compress.uncompressed import Base
from hybrid.errors import HybridError, StorageError
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare

if TYPE_CHECKING:
    from compression.training.training_set import TrainingSet

log = logging.getLogger("hybrid.compress")

SPLITTING: Final = "splits"
INT8_HEADS: Final = "int8 heads"

OVER: Final = "not tried: the budget was over; give more with --budget"

_MOST_LOOKED_AT: Final = 12
"""Cuts at which a submodule is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it: what to ship, everything that was tried, what could not be, and what a reader must know."""

    shipped: tuple[ShippedWay, ...] = ()
    told: tuple[SplitTold, ...] = ()
    refused: tuple[Refused, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitWork:
    """What ways are searched with.

    Attributes:
        job: what was asked for.
        base: the uncompressed model.
        bench: of the search, with the device, the samples and the journal.
        link: over which requests are divided.
        gateway: times at the gateway, for which this machine stands.
        original: seconds of the model on the device in the last judgement.
        variants: what is shipped for the device alone, by id.
        int8: how heads become int8; None where int8 gains nothing on the device.
        training_set: for bottlenecks; its inputs are named as the model's.
        left_s: seconds of the budget that are left.
    """

    job: Job
    base: Base
    bench: Bench
    link: LinkClass
    gateway: Timer
    original: Timing
    variants: Mapping[str, Judged]
    int8: Recipe | None
    left_s: Callable[[], float]
    training_set: "TrainingSet | None" = None

    def found(self) -> Found:
        """Searches, judges, tells; what cannot be done is told too.

        Raises:
            DiskFull, StorageError: there is no room.
        """
        try:
            return self._found()
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 (what the search has won is shipped whatever happens here)
            return Found(refused=(Refused(what=SPLITTING, why=_why(error)),))

    def _found(self) -> Found:
        bench, material = self.bench, self.bench.material
        bench.stage("cuts")
        graphs = bench.journal.folder / SPLITS / "graphs"
        prepared = prepare(self.base.path, self.base.digest, material.shape_key, graphs)
        heads = Heads(
            prepared=prepared,
            maker=bench.maker,
            journal=bench.journal,
            device=bench.timer,
            gateway=self.gateway,
            stage=bench.stage,
        )
        prices = self._prices(heads)
        tries = Tries(prepared=prepared, material=material, journal=bench.journal, stage=bench.stage)
        contest = Contest(prices=prices, max_drop=self.job.max_drop, material=material, tries=tries)
        run = _Run(work=self, prepared=prepared, heads=heads, prices=prices, tries=tries, contest=contest, refused=[])
        run.alone()
        run.offload()
        run.heads_of_cuts()
        run.bottlenecks()
        contest.judge()
        return Found(
            shipped=tuple(contest.shipped()),
            told=tuple(contest.told()),
            refused=tuple(run.refused),
            remarks=(self._assumed(prices), *contest.remarks),
        )

    def _prices(self, heads: Heads) -> Prices:
        whole_s, told = heads.whole_s(), self.bench.timer.told
        timings = [self.original, *(each.original for each in self.bench.timed.values() if each.original is not None)]
        local_s = median(each.p50_s for each in timings)  # one of them alone may have met other work on the machine
        return Prices(
            link=self.link,
            power=self.bench.timer.power,
            objective=self.job.objective,
            local_s=local_s,
            gateway_s=whole_s,
            pace=local_s / whole_s if told.kind == "agent" else told.factor,
        )

    def _assumed(self, prices: Prices) -> str:
        told, link = self.gateway.told, self.link
        threads = "one thread" if told.threads == 1 else f"{told.threads} threads"
        return (
            f"splits: for the gateway stands this machine ({processor()}, {threads}: the whole model in "
            f"{1e3 * prices.gateway_s:.3g} ms), for the link the medians of {link.name} ({1e3 * link.rtt_s:.3g} ms, "
            f"{link.up_bps / 1e6:.3g} Mbit/s up, {link.down_bps / 1e6:.3g} down); encoding was measured here and "
            f"multiplied by {prices.pace:.3g}; a session measures all of that anew before it takes a way"
        )


def _why(error: Exception) -> str:
    """The message of a failure that was expected; of any other one too, which is then logged as a whole.

    Raises:
        KeyboardInterrupt: Ctrl-C, which the error hides.
    """
    if hides_interrupt(error):
        raise KeyboardInterrupt from error
    if isinstance(error, (*FAILURES, HybridError)):
        return str(error)
    log.error("compress.splits_failed", exc_info=error)
    return f"{type(error).__name__}: {error} (a fault of this program; please report it)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One search, step by step."""

    work: SplitWork
    prepared: Prepared
    heads: Heads
    prices: Prices
    tries: Tries
    contest: Contest
    refused: list[Refused]

    def alone(self) -> None:
        """The device alone: the model, and the variants that are shipped for it."""
        work = self.work
        self.contest.alone.append(Alone(id=LOCAL, spent=self.prices.local(self.prices.local_s)))
        for name, each in work.variants.items():
            if each.recipe.engine != "onnxruntime":
                continue
            seconds = each.timing.p50_s / each.original.p50_s * self.prices.local_s
            high = each.grade.interval[1]
            self.contest.alone.append(
                Alone(id=f"{LOCAL} {name}", spent=self.prices.local(seconds), drop=each.grade.drop, high=high)
            )

    def offload(self) -> None:
        """The whole request to the gateway, its inputs encoded."""
        cut = self.prepared.table.cuts[0]
        self.contest.cuts[cut.id] = MeasuredCut(cut=cut, own_s=0.0, tail_s=self.prices.gateway_s)
        codecs = [codec for codec in decodable() if codec != "none"]
        self._try([Way(cut=cut, head="", codec=codec) for codec in codecs], self._share_s(3))

    def heads_of_cuts(self) -> None:
        """The cuts that may win: their own heads and int8 ones, each with the codecs of the catalog."""
        work, table = self.work, self.prepared.table
        if not table.promising:
            self.refused.append(Refused(what=SPLITTING, why=table.note or "the model has no cut worth a transfer"))
            return
        if work.int8 is None:
            why = f"int8 as a whole gained nothing on {work.bench.timer.told.words}, or was not timed"
            self.refused.append(Refused(what=INT8_HEADS, why=why))
        hope = FLOAT_HOPE if work.int8 is None else INT8_HOPE
        cuts = hopeful(table.promising, self.prices, hope, self.contest.best().cost)
        self._tell_hopeless(table.promising, cuts, hope)
        for number, cut in enumerate(cuts):
            if work.left_s() <= 0:
                self.contest.leave_out(f"cut-{cut.id[:8]}", cut, "", "kept off", OVER)
                continue
            try:
                self._cut(cut, self._share_s(len(cuts) - number))
            except Exception as error:  # noqa: BLE001 (it costs this cut alone)
                self._failed(f"cut-{cut.id[:8]}", cut, error)

    def bottlenecks(self) -> None:
        """Bottlenecks at the cuts that may win by one, where there is a training set."""
        work, table = self.work, self.prepared.table
        if work.training_set is None:
            return
        fitting = [cut for cut in table.interior if fits(cut)]
        if not fitting:
            why = "no cut with one float32 tensor of known shape crosses after a part of the work"
            self.refused.append(Refused(what=WHAT, why=why))
            return
        best = self.contest.best()
        hope = replace(LEARNED_HOPE, head_ratio=INT8_HOPE.head_ratio) if work.int8 is not None else LEARNED_HOPE
        cuts = hopeful(fitting, self.prices, hope, best.cost, most=_MOST_LOOKED_AT, known=self.contest.cuts)
        if not cuts:
            why = self._hopeless(fitting, hope, "a quarter of a bit a value")
            self.refused.append(Refused(what=WHAT, why=why))
            return
        self._learn(cuts)

    def _learn(self, cuts: Sequence[Cut]) -> None:
        work = self.work
        assert work.training_set is not None
        learner = Bottlenecks(
            prepared=self.prepared,
            material=work.bench.material,
            journal=work.bench.journal,
            training_set=work.training_set,
            seed=work.job.seed,
            stage=work.bench.stage,
        )
        found, last = [], ""
        for cut in cuts:
            try:
                found.append((cut, learner.submodule(cut)))
            except NotTrainable as error:
                last = str(error)
            if len(found) == MOST_CUTS:
                break
        if not found:
            self.refused.append(Refused(what=WHAT, why=last))
        for number, (cut, at) in enumerate(found):
            if work.left_s() <= 0:
                self.contest.leave_out(f"{LEARNED}-{cut.id[:8]}", cut, "", "kept off", OVER)
                continue
            budget_s = max(LEAST_S, work.left_s() / (len(found) - number))
            try:
                self._bottleneck(learner, cut, at, budget_s)
            except Exception as error:  # noqa: BLE001 (it costs this cut alone)
                self._failed(f"{LEARNED}-{cut.id[:8]}", cut, error)

    def _cut(self, cut: Cut, budget_s: float) -> None:
        """A cut's own head and its int8 head, if they may still win now that they are timed."""
        known = self._measured(cut)
        if known.failed:
            self.contest.leave_out(f"int8-{cut.id[:8]}", cut, "int8", "failed", known.failed)
        ways: list[Way] = []
        if self._may_win(known, "float"):
            ways += [Way(cut=cut, head="float", codec=codec) for codec in CODECS]
        if known.int8 is not None and self._may_win(known, "int8"):
            heads: dict[Role, Path] = {"head": known.int8}
            ways += [filed(cut, "int8", codec, shape_key=self._key, places=heads) for codec in CARRIERS]
        if ways:
            self._try(ways, budget_s)

    def _bottleneck(self, learner: Bottlenecks, cut: Cut, at: str, budget_s: float) -> None:
        known = self._measured(cut)
        kept, notes = learner.trained(cut, at, budget_s)
        ways = []
        for rate, note in enumerate(notes, 1):
            places = places_of(kept, rate)
            ways.append(filed(cut, "float", LEARNED, shape_key=self._key, places=places, rate=rate, note=note))
            if known.int8 is not None:
                places["head"] = known.int8
                ways.append(filed(cut, "int8", LEARNED, shape_key=self._key, places=places, rate=rate, note=note))
        self._try(ways, max(LEAST_S, budget_s / 2))

    def _measured(self, cut: Cut) -> MeasuredCut:
        found = self.contest.cuts.get(cut.id)
        if found is None:
            found = self.heads.measured(cut, self.work.int8, self.prices.local_s)
            self.contest.cuts[cut.id] = found
        return found

    def _may_win(self, known: MeasuredCut, head: Head) -> bool:
        """Whether a head may win with the fewest bytes that may be hoped for; told where it may not."""
        cut, best = known.cut, self.contest.best()
        least = self.prices.divided(
            head_s=known.head_s(head),
            encode_s=0.0,
            up_bytes=FLOAT_HOPE.bytes_ratio * cut.n_bytes,
            decode_s=0.0,
            tail_s=known.tail_s,
            down_bytes=cut.reply_bytes,
        )
        if self.prices.cost(least) <= best.cost:
            return True
        why = (
            f"not tried: at two bits a value a request takes {1e3 * least.total_s:.3g} ms, head and tail as measured; "
            f"{best.id} costs less"
        )
        self.contest.leave_out(f"{head}-{cut.id[:8]}", cut, head, "kept off", why)
        return False

    @property
    def _key(self) -> str:
        return self.work.bench.material.shape_key.text

    def _try(self, ways: Sequence[Way], budget_s: float) -> None:
        self.contest.add(self.tries.chosen(ways, budget_s))

    def _failed(self, name: str, cut: Cut, error: Exception) -> None:
        if isinstance(error, StorageError):
            raise error
        self.contest.leave_out(name, cut, "", "failed", _why(error))

    def _share_s(self, n: int) -> float:
        """Of the budget that is left, for one of so many tries; half is for bottlenecks where some will be learned."""
        ratio = 0.5 if self.work.training_set is not None else 1.0
        return max(LEAST_S, ratio * self.work.left_s() / n)

    def _hopeless(self, cuts: Sequence[Cut], hope: Hope, bits: str) -> str:
        best = self.contest.best()
        least = min(least_cost(cut, self.prices, hope, self.contest.cuts.get(cut.id)) for cut in cuts)
        unit, scale = "mJ" if self.prices.objective == "energy" else "ms", 1e3
        return (
            f"even with a head in {hope.head_ratio:.0%} of the time that its work lets expect and {bits} a request "
            f"would cost {scale * least:.3g} {unit} or more, {best.id} costs {scale * best.cost:.3g} {unit}"
        )

    def _tell_hopeless(self, cuts: Sequence[Cut], chosen: Sequence[Cut], hope: Hope) -> None:
        limit = self.contest.best().cost
        hopeless = [cut for cut in cuts if cut not in chosen and least_cost(cut, self.prices, hope) > limit]
        if hopeless:
            what = f"splits at {len(hopeless)} of {len(cuts)} cuts"
            self.refused.append(Refused(what=what, why=self._hopeless(hopeless, hope, "two bits a value")))
        n_left = len(cuts) - len(chosen) - len(hopeless)
        if n_left:
            why = f"the {len(chosen)} likeliest that do as different a share of the work on the device were tried"
            self.refused.append(Refused(what=f"splits at {n_left} more cuts", why=why))
