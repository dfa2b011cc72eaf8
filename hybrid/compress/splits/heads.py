"""Heads of cuts: the cut's own in one file, the same in int8, and their seconds on the device; each made once."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import msgspec
import numpy as np

from compression.codecs.affine import quantized
from compression.errors import NotQuantizable
from compression.measuring import Timing
from hybrid.calibration.trial import opened
from hybrid.compress.across import N_COMPARED, TOLERANCE, faults
from hybrid.compress.journal import Journal, Kept
from hybrid.compress.making.maker import Maker
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.search.bench import device_key
from hybrid.compress.splits.ways import CODECS, Head
from hybrid.compress.timing.timer import Timer
from hybrid.errors import PlanError
from hybrid.partition.crossing import crossed, fed
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.route.levels import n_levels_of
from hybrid.wire.split_coding import carried
from hybrid.wire.tensor import Tensor

FILE: Final = "head.onnx"


LEVELS_OF: Final = {codec: n for codec in CODECS if (n := n_levels_of(codec))}
"""Of the codecs for which a session has a head quantize, the levels that they carry."""

_N_PACKED: Final = 8


class HeadSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Heads of one cut beside the original in one process on the device.

    Attributes:
        original: the whole model.
        own: the cut's own head.
        int8: the same in int8, where there is one.
        levels: the cut's own head that quantizes what crosses, by the number of levels, where there is one.
    """

    original: Timing
    own: Timing
    int8: Timing | None = None
    levels: dict[int, Timing] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCut:
    """What a cut takes, and its int8 head.

    Attributes:
        cut: where.
        own_s, int8_s: of its heads on the device; no int8 head where None.
        levels_s: of its own head where that quantizes for a codec, by codec.
        pack_s: of packing such levels on this machine, by codec.
        tail_s: of its tail at the gateway.
        int8: the int8 head.
        notes: remarks of who made that.
        failed: why there is none.
    """

    cut: Cut
    own_s: float
    tail_s: float
    int8_s: float | None = None
    levels_s: Mapping[str, float] = field(default_factory=dict)
    pack_s: Mapping[str, float] = field(default_factory=dict)
    int8: Path | None = None
    notes: tuple[str, ...] = ()
    failed: str = ""

    def head_s(self, head: Head, codec: str = "") -> float:
        """Of one of its heads, as a session runs it for a codec; the input cut has none, and takes no time."""
        if head == "int8":
            assert self.int8_s is not None
            return self.int8_s
        return self.levels_s.get(codec, self.own_s) if head else 0.0

    def encode_s(self, head: Head, codec: str, measured_s: float) -> float:
        """Of encoding what such a head leaves; `measured_s` where the codec has all of the work."""
        return self.pack_s.get(codec, measured_s) if head == "float" else measured_s


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    notes: tuple[str, ...] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Makes and times the heads of one job.

    Attributes:
        prepared: the model with its cuts.
        maker: of the job: its samples, and what quantization is told.
        journal: keeps heads and seconds.
        device: times on the device.
        gateway: times at the gateway, for which this machine stands.
        stage: told what is done.
    """

    prepared: Prepared
    maker: Maker
    journal: Journal
    device: Timer
    gateway: Timer
    stage: Callable[[str], None] = lambda _text: None

    def own(self, cut: Cut) -> Path:
        """The cut's own head with its weights in it, as it can be sent to a device; raises as `int8`."""
        return self._whole(["head", cut.id], self.prepared.head_path(cut.id))

    def levelled(self, cut: Cut, n_levels: int) -> Path | None:
        """The cut's own head that quantizes what crosses, as sessions run it for some codecs; None for none."""
        if cut.kind != "interior" or not self.prepared.level_names(cut.id):
            return None
        try:
            path = self.prepared.quantizing_head_path(cut.id, n_levels)
        except PlanError:
            return None  # an old opset: the codec quantizes
        return self._whole(["head", cut.id, n_levels], path)

    def _whole(self, key: object, path: Path) -> Path:
        """A graph with its weights in it."""
        kept = self.journal.find(key)
        if kept is None:
            import onnx

            from compression.quantization.prepare import n_weight_bytes

            model = onnx.load(path)
            if n_weight_bytes(model) > 2**31 - 2**20:
                raise NotQuantizable(f"{path.name} has more than 2 GB: it cannot be one file")
            kept = self.journal.keep(key, None, {FILE: model.SerializeToString(deterministic=True)})
        return kept.path(FILE)

    def int8(self, cut: Cut, recipe: Recipe) -> Kept:
        """The head in int8, a file `FILE`, with remarks.

        Raises:
            CompressionError: it cannot be made; the message says why.
        """
        key = ["head", cut.id, msgspec.structs.replace(recipe, cut=cut.id)]
        kept = self.journal.find(key)
        if kept is None:
            kept = self._quantized(cut, recipe, key)
        made = msgspec.json.decode(kept.content, type=_Made)
        if made.failed:
            raise NotQuantizable(made.failed)
        return kept

    def _quantized(self, cut: Cut, recipe: Recipe, key: object) -> Kept:
        import onnx

        from compression.quantization.static import quantize

        model = onnx.load(self.own(cut))
        self.stage(f"an int8 head of {cut.id}")
        try:
            found = quantize(model, self.maker.material.calibrate, self.maker.int8_recipe(recipe))
        except NotQuantizable as error:
            return self.journal.keep(key, _Made(failed=str(error)))
        content = found.model.SerializeToString(deterministic=True)
        return self.journal.keep(key, _Made(notes=found.notes), {FILE: content})

    def differing(self, int8: Kept) -> list[str]:
        """What differs between runtimes that an int8 head may meet."""
        key = ["head runtimes", int8.folder.name]
        kept = self.journal.find(key)
        if kept is None:
            material = self.maker.material
            some = [material.feeds[index] for index in material.parts.judge[:N_COMPARED]]
            kept = self.journal.keep(key, faults(int8.path(FILE), some, tolerance=TOLERANCE))
        return msgspec.json.decode(kept.content, type=list[str])

    def measured(self, cut: Cut, recipe: Recipe | None, local_s: float) -> MeasuredCut:
        """A cut's heads and tail.

        Args:
            cut: where.
            recipe: of int8; None for no such head.
            local_s: of the whole model on the device; heads take their share of it, as measured beside it.

        Raises:
            CompressionError: the device or the gateway cannot run one of them.
        """
        int8: Kept | None = None
        notes: tuple[str, ...] = ()
        failed = ""
        if recipe is not None:
            try:
                int8 = self.int8(cut, recipe)
                notes = msgspec.json.decode(int8.content, type=_Made).notes
                if differing := self.differing(int8):
                    int8, failed = None, f"runtimes differ: {differing[0]}"
            except NotQuantizable as error:
                failed = str(error)
        found = self.seconds(cut, int8)
        scale = local_s / found.original.p50_s
        return MeasuredCut(
            cut=cut,
            own_s=scale * found.own.p50_s,
            tail_s=self.tail_s(cut),
            int8_s=scale * found.int8.p50_s if found.int8 is not None else None,
            levels_s={codec: scale * found.levels[n].p50_s for codec, n in LEVELS_OF.items() if n in found.levels},
            pack_s=self._pack_s(cut) if found.levels else {},
            int8=int8.path(FILE) if int8 is not None else None,
            notes=notes,
            failed=failed,
        )

    def seconds(self, cut: Cut, int8: Kept | None) -> HeadSeconds:
        """Seconds of a cut's heads on the device.

        Raises:
            NotMeasurable: it cannot run one of them.
        """
        key = ["seconds of heads", cut.id, int8.folder.name if int8 is not None else "", *device_key(self.device.told)]
        kept = self.journal.find(key)
        if kept is None:
            self.stage(f"timing heads of {cut.id}")
            levelled = {n: path for n in set(LEVELS_OF.values()) if (path := self.levelled(cut, n)) is not None}
            paths = [self.maker.path, self.own(cut), *levelled.values()]
            paths += [int8.path(FILE)] if int8 is not None else []
            timings = self.device(paths, self.maker.material.feeds[0])
            found = HeadSeconds(
                original=timings[0],
                own=timings[1],
                int8=timings[-1] if int8 is not None else None,
                levels=dict(zip(levelled, timings[2:], strict=False)),
            )
            kept = self.journal.keep(key, found)
        return msgspec.json.decode(kept.content, type=HeadSeconds)

    def _pack_s(self, cut: Cut) -> dict[str, float]:
        """Seconds of packing the levels of what crosses, by codec, on this machine."""
        kept = self.journal.find(["packing", cut.id])
        if kept is None:
            session = opened(self.own(cut))
            names = {one.tensor for one in self.prepared.level_names(cut.id)}
            some = [crossed(session, cut, feeds)[0] for feeds in self.maker.material.calibrate[:_N_PACKED]]
            packed = {codec: median(packing_s(each, names, codec) for each in some) for codec in LEVELS_OF}
            kept = self.journal.keep(["packing", cut.id], packed)
        return msgspec.json.decode(kept.content, type=dict[str, float])

    def tail_s(self, cut: Cut) -> float:
        """Seconds of a cut's tail at the gateway.

        Raises:
            NotMeasurable: it does not run.
        """
        key = ["tail seconds", cut.id, *device_key(self.gateway.told)]
        kept = self.journal.find(key)
        if kept is None:
            self.stage(f"timing the tail of {cut.id}")
            crossing, _ = crossed(opened(self.own(cut)), cut, self.maker.material.feeds[0])
            path = self.prepared.tail_path(cut.id)
            (timing,) = self.gateway([path], fed(opened(path), crossing))
            kept = self.journal.keep(key, timing)
        return msgspec.json.decode(kept.content, type=Timing).p50_s

    def whole_s(self) -> float:
        """Seconds of the whole model at the gateway; raises `NotMeasurable`."""
        key = ["gateway seconds", *device_key(self.gateway.told)]
        kept = self.journal.find(key)
        if kept is None:
            self.stage("timing the gateway")
            (timing,) = self.gateway([self.maker.path], self.maker.material.feeds[0])
            kept = self.journal.keep(key, timing)
        return msgspec.json.decode(kept.content, type=Timing).p50_s


def packing_s(crossing: Mapping[str, np.ndarray], quantizing: Collection[str], codec: str) -> float:
    """Seconds of encoding what crosses where a head has quantized some of it."""
    given = {name: quantized(array, LEVELS_OF[codec]) for name, array in crossing.items() if name in quantizing}
    started_s = perf_counter()
    for name, array in crossing.items():
        if name in given:
            Tensor.of_levels(name, given[name], codec)
        else:
            carried(name, array, codec)
    return perf_counter() - started_s
