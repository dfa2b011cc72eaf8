"""Learned bottlenecks as splits of the artifact: trained at a few cuts, kept where the floor holds when judged."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from compression.errors import CompressionError, NotTrainable
from compression.tensor import TensorSpec
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.manifest import SCHEMA, FileEntry, Manifest, Split
from hybrid.artifact.splits import SplitFiles, found_splits
from hybrid.calibration.calibrate import WHOLE
from hybrid.calibration.judge import Judge
from hybrid.calibration.record import Cell
from hybrid.calibration.trial import Trial, opened, try_cuts
from hybrid.calibration.trial import Watch as TrialWatch
from hybrid.compress.material import Material
from hybrid.compress.report import Refused
from hybrid.compress.uncompressed import Base
from hybrid.partition.crossing import crossed
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare

if TYPE_CHECKING:
    from compression.bottleneck.bottleneck_recipe import BottleneckShape
    from compression.bottleneck.training import Bottleneck
    from compression.training.training_set import TrainingSet

WHAT: Final = "learned bottlenecks"
MOST_CUTS: Final = 2
STEPS: Final = (1.0, 1.5)
"""Rounding steps of one training: two rates at each cut."""

LEAST_S: Final = 5.0
"""A training that is begun gets so many seconds, also where the budget has less."""

_MOST_TRIED: Final = 12
_LEAST_APART: Final = 0.15
"""In the head's share of the work, between two cuts."""

_HEAD_SHARES: Final = (0.02, 0.8)
_BITS: Final = {1: 0.25, 2: 0.12, 4: 0.06}
"""Wanted bits an element by the encoder's stride."""

_JUDGED_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedSplit:
    """A split that holds the floor.

    Attributes:
        entry: as the manifest declares it.
        files: its files, below the folder that was given.
        cell: what the judging part says of it.
    """

    entry: Split
    files: SplitFiles
    cell: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What came of all cuts: splits to ship, and why there are not more."""

    splits: tuple[LearnedSplit, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitWork:
    """What bottlenecks are learned with.

    Attributes:
        base: the uncompressed model.
        material: samples; only their judging part judges.
        training_set: its module is the teacher; inputs are named as the model's.
        max_drop: the floor.
        folder: where graphs and files lie until the artifact is written.
        seed: of every training.
        left_s: seconds of the budget that are left; each cut gets an even share.
        stage: told what is done.
    """

    base: Base
    material: Material
    training_set: "TrainingSet"
    max_drop: float
    folder: Path
    seed: int
    left_s: Callable[[], float]
    stage: Callable[[str], None] = lambda _text: None

    def learned(self) -> Learned:
        """Trains and judges.

        Raises:
            ModelError, PlanError, StorageError: the model has no cuts to be had, or there is no room for its graphs.
        """
        self.stage("cuts")
        prepared = prepare(self.base.path, self.base.digest, self.material.shape_key, self.folder / "graphs")
        refused: list[Refused] = []
        made: list[tuple[Cut, Split]] = []
        entries: dict[str, FileEntry] = {}
        places = self._places(prepared, refused)
        for number, (cut, at) in enumerate(places):
            self.stage(f"a bottleneck at {at}")
            try:
                trained = self._trained(cut, at, max(LEAST_S, self.left_s() / (len(places) - number)))
            except CompressionError as error:
                refused.append(Refused(what=f"{WHAT} at {at}", why=str(error)))
                continue
            made += [(cut, self._written(cut, rate, each, entries)) for rate, each in enumerate(trained, 1)]
        return self._judged(prepared, made, entries, refused)

    def _places(self, prepared: Prepared, refused: list[Refused]) -> list[tuple[Cut, str]]:
        """The cuts to learn at, each with the submodule that makes its tensor."""
        found: list[tuple[Cut, str]] = []
        fitting = [cut for cut in prepared.table.interior if _fits(cut)]
        if not fitting:
            why = "no cut with one float32 tensor of known shape crosses after a part of the work"
            refused.append(Refused(what=WHAT, why=why))
        input_bytes = max(1, prepared.table.cuts[0].n_bytes)
        fitting.sort(key=lambda cut: cut.n_bytes / input_bytes + cut.head_work_ratio)
        last = ""
        for cut in fitting[:_MOST_TRIED]:
            if any(abs(cut.head_work_ratio - other.head_work_ratio) < _LEAST_APART for other, _ in found):
                continue
            try:
                found.append((cut, self._submodule(prepared, cut)))
            except NotTrainable as error:
                last = str(error)
            if len(found) == MOST_CUTS:
                break
        if fitting and not found:
            refused.append(Refused(what=WHAT, why=last))
        return found

    def _submodule(self, prepared: Prepared, cut: Cut) -> str:
        import torch

        from compression.bottleneck.submodules import find_submodule

        feeds = self.material.calibrate[0]
        crossing, _ = crossed(opened(prepared.head_path(cut.id)), cut, feeds)
        example = tuple(torch.from_numpy(feeds[name].copy()) for name in self.training_set.inputs)
        return find_submodule(self.training_set.module, example, crossing[cut.tensors[0].name])

    def _trained(self, cut: Cut, at: str, budget_s: float) -> "list[Bottleneck]":
        from compression.bottleneck.bottleneck_recipe import BottleneckRecipe
        from compression.bottleneck.graph import Crossing
        from compression.bottleneck.training import train_bottlenecks

        tensor = cut.tensors[0]
        crossing = Crossing(name=tensor.name, shape=_sizes(tensor))
        shape = _shape_for(crossing.planes, is_picture=len(tensor.shape) == 4)
        recipe = BottleneckRecipe(
            bits_per_element=_BITS[shape.stride], epochs=6, decoder_epochs=3, learning_rate=4e-3, steps=STEPS
        )
        return train_bottlenecks(
            self.training_set,
            at,
            crossing=crossing,
            shape=shape,
            recipe=recipe,
            seed=self.seed,
            budget_s=budget_s,
        )

    def _written(self, cut: Cut, rate: int, made: "Bottleneck", entries: dict[str, FileEntry]) -> Split:
        split_id = f"learned-{cut.id[:8]}-{rate}"
        contents = {
            "encoder.onnx": made.encoder.SerializeToString(),
            "decoder.onnx": made.decoder.SerializeToString(),
            "prior.json": made.prior.to_json().encode(),
        }
        names = []
        for file, content in contents.items():
            name = f"splits/{split_id}/{file}"
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, content)
            entries[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            names.append(name)
        return Split(
            id=split_id,
            cut=cut.id,
            shape_key=self.material.shape_key.text,
            files=tuple(names),
            encoder=names[0],
            decoder=names[1],
            prior=names[2],
        )

    def _judged(
        self,
        prepared: Prepared,
        made: Sequence[tuple[Cut, Split]],
        entries: dict[str, FileEntry],
        refused: list[Refused],
    ) -> Learned:
        """Those within the floor, by samples that neither training nor choice has seen."""
        if not made:
            return Learned(splits=(), refused=tuple(refused))
        self.stage("judging bottlenecks")
        manifest = Manifest(
            schema=SCHEMA,
            name="splits",
            version="1",
            sequence=1,
            model_digest=self.base.digest,
            files=entries,
            variants=(),
            splits=tuple(split for _, split in made),
        )
        files = found_splits(manifest, lambda name, _entry: self.folder / name)
        part = self.material.parts.judge
        trial = Trial(
            prepared=prepared,
            samples=[self.material.feeds[index] for index in part],
            judge=self._judge(part),
            codecs=(),
            splits=files,
        )
        cuts = list({cut.id: cut for cut, _ in made}.values())
        cells = {cell.codec: cell for cell in try_cuts(trial, cuts, _JUDGED_S, watch=TrialWatch())}
        input_bytes = prepared.table.cuts[0].n_bytes
        kept = []
        for (_, entry), one in zip(made, files, strict=True):
            cell = cells[one.codec]
            why = self._why_not(cell, input_bytes)
            if why:
                refused.append(Refused(what=one.codec, why=why))
            else:
                kept.append(LearnedSplit(entry=entry, files=one, cell=cell))
        return Learned(splits=tuple(kept), refused=tuple(refused))

    def _why_not(self, cell: Cell, input_bytes: int) -> str:
        if cell.drop_high > self.max_drop:
            return f"beyond the floor: the drop is at most {cell.drop_high:.4f} (95 %), {self.max_drop:g} is allowed"
        if cell.n_bytes >= input_bytes:
            return f"not smaller: {cell.n_bytes:.0f} bytes a request, the input has {input_bytes}"
        return ""

    def _judge(self, part: Sequence[int]) -> Judge:
        """A judge of these samples, in their order, who knows the uncompressed model's answers."""
        given = self.material.judge
        labels = [given.labels[index] for index in part] if given.labels else ()
        judge = Judge(metric=given.metric, outputs=given.outputs, tolerance=given.tolerance, labels=labels)
        session = opened(self.base.path)
        names = [port.name for port in session.get_outputs()]
        for place, index in enumerate(part):
            answers = session.run(names, self.material.feeds[index])
            judge.learn(place, dict(zip(names, answers, strict=True)))
        return judge


def laid_out(splits: Sequence[LearnedSplit], folder: Path, entries: dict[str, FileEntry]) -> tuple[Split, ...]:
    """Copies the files into an artifact's folder; adds to `entries`, and gives what the manifest declares."""
    for split in splits:
        for name, file in zip(split.entry.files, split.files.files.values(), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, file.path.read_bytes())
            entries[name] = FileEntry(sha256=file.sha256, size=file.size)
    return tuple(split.entry for split in splits)


def _fits(cut: Cut) -> bool:
    """Whether a bottleneck can stand there: one float32 tensor of known shape, and a head worth its name."""
    low, high = _HEAD_SHARES
    if not cut.sized or len(cut.tensors) != 1 or not low <= cut.head_work_ratio <= high or cut.id == WHOLE:
        return False
    (tensor,) = cut.tensors
    return tensor.dtype == "FP32" and 2 <= len(tensor.shape) <= 4 and tensor.n_elements is not None


def _sizes(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size is not None)


def _shape_for(planes: tuple[int, int, int, int], *, is_picture: bool) -> "BottleneckShape":
    """Larger patches where there are many points."""
    from compression.bottleneck.bottleneck_recipe import BottleneckShape

    _, channels, height, width = planes
    points = min(height, width) if is_picture else 1
    stride = 4 if points >= 48 else 2 if points >= 12 else 1
    return BottleneckShape(channels=min(16, channels * stride**2), stride=stride, width=48)
