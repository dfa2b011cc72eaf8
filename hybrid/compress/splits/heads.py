"""Heads of cuts: the cut's own in one file, the same in int8, and their seconds on the device; each made once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from compression.errors import NotQuantizable
from compression.measuring import Timing
from hybrid.calibration.trial import opened
from hybrid.compress.across import N_COMPARED, TOLERANCE, faults
from hybrid.compress.bench import device_key
from hybrid.compress.journal import Journal, Kept
from hybrid.compress.making import Maker
from hybrid.compress.recipe import Recipe
from hybrid.compress.splits.ways import Head
from hybrid.compress.timing import Timer
from hybrid.partition.crossing import crossed, fed
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared

FILE: Final = "head.onnx"


class HeadSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Heads of one cut beside the original in one process on the device; the int8 one where there is one."""

    original: Timing
    own: Timing
    int8: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCut:
    """What a cut takes, and its int8 head.

    Attributes:
        cut: where.
        own_s, int8_s: of its heads on the device; no int8 head where None.
        tail_s: of its tail at the gateway.
        int8: the int8 head.
        notes: remarks of who made that.
        failed: why there is none.
    """

    cut: Cut
    own_s: float
    tail_s: float
    int8_s: float | None = None
    int8: Path | None = None
    notes: tuple[str, ...] = ()
    failed: str = ""

    def head_s(self, head: Head) -> float:
        """Of one of its heads; the input cut has none, and takes no time."""
        if head == "int8":
            assert self.int8_s is not None
            return self.int8_s
        return self.own_s if head else 0.0


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
        kept = self.journal.find(["head", cut.id])
        if kept is None:
            import onnx

            from compression.quantization.prepare import n_weight_bytes

            model = onnx.load(self.prepared.head_path(cut.id))
            if n_weight_bytes(model) > 2**31 - 2**20:
                raise NotQuantizable(f"the head of {cut.id} has more than 2 GB: it cannot be one file")
            content = model.SerializeToString(deterministic=True)
            kept = self.journal.keep(["head", cut.id], None, {FILE: content})
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
            int8=int8.path(FILE) if int8 is not None else None,
            notes=notes,
            failed=failed,
        )

    def seconds(self, cut: Cut, int8: Kept | None) -> HeadSeconds:
        """Seconds of a cut's heads on the device.

        Raises:
            NotMeasurable: it cannot run one of them.
        """
        key = ["head seconds", cut.id, int8.folder.name if int8 is not None else "", *device_key(self.device.told)]
        kept = self.journal.find(key)
        if kept is None:
            self.stage(f"timing heads of {cut.id}")
            paths = [self.maker.path, self.own(cut), *([int8.path(FILE)] if int8 is not None else [])]
            timings = self.device(paths, self.maker.material.feeds[0])
            found = HeadSeconds(original=timings[0], own=timings[1], int8=timings[2] if int8 is not None else None)
            kept = self.journal.keep(key, found)
        return msgspec.json.decode(kept.content, type=HeadSeconds)

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
