"""Learned bottlenecks: where the module can be cut, and the encoders, decoders and priors trained there, each once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from compression.errors import CompressionError, NotExportable, NotTrainable
from compression.tensor import TensorSpec
from hybrid.artifact.splits import Role
from hybrid.calibration.trial import opened
from hybrid.compress.journal import Journal, Kept
from hybrid.compress.material import Material
from hybrid.partition.crossing import crossed
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared

if TYPE_CHECKING:
    from compression.bottleneck.bottleneck_recipe import BottleneckRecipe, BottleneckShape
    from compression.bottleneck.graph import Crossing
    from compression.bottleneck.training import Bottleneck
    from compression.training.training_set import TrainingSet

WHAT: Final = "learned bottlenecks"
MOST_CUTS: Final = 2
_PARTS: Final[tuple[Role, ...]] = ("encoder", "decoder", "prior")
STEPS: Final = (1.0, 1.5)
"""Rounding steps of one training: two rates at each cut."""

LEAST_S: Final = 5.0
"""A training that is begun gets so many seconds, also where the budget has less."""

LEAST_RATIO: Final = 0.1
"""A training that the budget ended before so much of it says nothing about bottlenecks there."""

_HEAD_SHARES: Final = (0.02, 0.8)
_BITS: Final = {1: 0.25, 2: 0.12, 4: 0.06}
"""Wanted bits an element by the encoder's stride."""


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """Of a finished training: so many bottlenecks lie beside it, with a remark each; or why there is none."""

    notes: tuple[str, ...] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottlenecks:
    """Trains the bottlenecks of one job.

    Attributes:
        prepared: the model with its cuts.
        material: samples.
        journal: keeps what was trained.
        training_set: its module is the teacher; inputs are named as the model's.
        seed: of every training.
        stage: told what is done.
    """

    prepared: Prepared
    material: Material
    journal: Journal
    training_set: "TrainingSet"
    seed: int
    stage: Callable[[str], None] = lambda _text: None

    def submodule(self, cut: Cut) -> str:
        """The submodule whose output crosses.

        Raises:
            NotTrainable: there is none; the message says what to change.
        """
        import torch

        from compression.bottleneck.submodules import find_submodule

        feeds = self.material.calibrate[0]
        crossing, _ = crossed(opened(self.prepared.head_path(cut.id)), cut, feeds)
        example = tuple(torch.from_numpy(feeds[name].copy()) for name in self.training_set.inputs)
        return find_submodule(self.training_set.module, example, crossing[cut.tensors[0].name])

    def trained(self, cut: Cut, at: str, budget_s: float) -> tuple[Kept, tuple[str, ...]]:
        """The bottlenecks of a cut, of rates from 1 on (see `places_of`), and a remark for each of them.

        Args:
            cut: where.
            at: the submodule there.
            budget_s: for a training; what was trained before costs nothing.

        Raises:
            NotTrainable: it cannot be trained, now or before; the message says why.
            CutShort: the budget was too small; this is not remembered.
        """
        from compression.bottleneck.graph import Crossing

        tensor = cut.tensors[0]
        crossing = Crossing(name=tensor.name, shape=_sizes(tensor))
        shape = _shape_for(crossing.planes, is_picture=len(tensor.shape) == 4)
        recipe = _recipe(shape)
        key = ["bottleneck", cut.id, at, shape, recipe, _versions()]
        kept = self.journal.find(key)
        if kept is None:
            self.stage(f"a bottleneck at {at}")
            try:
                found = self._train(at, crossing, shape, recipe, budget_s)
            except (NotTrainable, NotExportable) as error:
                kept = self.journal.keep(key, _Told(failed=str(error)))
            else:
                kept = self.journal.keep(key, _Told(notes=tuple(map(_note, found))), _contents(found))
        told = msgspec.json.decode(kept.content, type=_Told)
        if told.failed:
            raise NotTrainable(told.failed)
        return kept, told.notes

    def _train(
        self, at: str, crossing: "Crossing", shape: "BottleneckShape", recipe: "BottleneckRecipe", budget_s: float
    ) -> "list[Bottleneck]":
        from compression.bottleneck.training import train_bottlenecks

        steps = (0, 1)

        def stepped(done: int, total: int) -> None:
            nonlocal steps
            steps = done, total

        found = train_bottlenecks(
            self.training_set,
            at,
            crossing=crossing,
            shape=shape,
            recipe=recipe,
            seed=self.seed,
            budget_s=budget_s,
            stepped=stepped,
        )
        done, total = steps
        if done < LEAST_RATIO * total:
            raise CutShort(f"the budget ended its training after {done} of {total} steps: give more with --budget")
        return found


class CutShort(CompressionError):
    """A training that the budget ended too early to say anything; a call with more budget begins it anew."""


def fits(cut: Cut) -> bool:
    """Whether a bottleneck can stand there: one float32 tensor of known shape, and a head worth its name."""
    low, high = _HEAD_SHARES
    if cut.kind != "interior" or not cut.sized or len(cut.tensors) != 1 or not low <= cut.head_work_ratio <= high:
        return False
    (tensor,) = cut.tensors
    return tensor.dtype == "FP32" and 2 <= len(tensor.shape) <= 4 and tensor.n_elements is not None


def places_of(kept: Kept, rate: int) -> dict[Role, Path]:
    """Where the parts of one bottleneck of a training lie."""
    return {role: kept.path(_part_name(rate, role)) for role in _PARTS}


def _part_name(rate: int, role: Role) -> str:
    return f"{role}-{rate}.{'json' if role == 'prior' else 'onnx'}"


def _note(made: "Bottleneck") -> str:
    trained = made.trained
    return f"{trained.n_steps} steps of training in {trained.seconds:.0f} s, rounding step {trained.step:g}"


def _contents(found: "Sequence[Bottleneck]") -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for rate, made in enumerate(found, 1):
        graphs = (made.encoder.SerializeToString(), made.decoder.SerializeToString(), made.prior.to_json().encode())
        contents |= {_part_name(rate, role): content for role, content in zip(_PARTS, graphs, strict=True)}
    return contents


def _versions() -> list[str]:
    """What else decides about the outcome of a training."""
    import onnx
    import torch

    return [str(torch.__version__), str(onnx.__version__)]


def _sizes(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size is not None)


def _recipe(shape: "BottleneckShape") -> "BottleneckRecipe":
    from compression.bottleneck.bottleneck_recipe import BottleneckRecipe

    return BottleneckRecipe(
        bits_per_element=_BITS[shape.stride], epochs=6, decoder_epochs=3, learning_rate=4e-3, steps=STEPS
    )


def _shape_for(planes: tuple[int, int, int, int], *, is_picture: bool) -> "BottleneckShape":
    """Larger patches where there are many points."""
    from compression.bottleneck.bottleneck_recipe import BottleneckShape

    _, channels, height, width = planes
    points = min(height, width) if is_picture else 1
    stride = 4 if points >= 48 else 2 if points >= 12 else 1
    return BottleneckShape(channels=min(16, channels * stride**2), stride=stride, width=48)
