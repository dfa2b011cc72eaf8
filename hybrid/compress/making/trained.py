"""What only training can do: pruned modules that learn from the whole one, students, and rounding that is trained."""

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from compression.errors import InvalidTrainingSet
from compression.training.training_set import TrainingSet
from hybrid.calibration.judge import distance
from hybrid.calibration.samples import Feeds
from hybrid.compress.journal import Journal
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.making.trainable_heads import nodes_of_head

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

    from compression.quantization.recipe import Int8Recipe

N_EXAMPLE: Final = 2
LEAST_S: Final = 5.0
"""A training that is begun gets so many seconds, also where the budget has less."""

ROUNDING_RATE: Final = 2e-3
"""Highest learning rate of quantization-aware training; what docs/training.md measured with, for short trainings."""

N_TOLD: Final = 20
"""How often a training says how far it is."""

WEIGHTS: Final = "weights.pt"
SAME: Final = 1e-2
"""Relative distance up to which the script's module counts as the model that was named."""

Requantized = Callable[["ModelProto", Mapping[str, tuple[float, float]]], "ModelProto"]


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says of a training."""

    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Trains for one job.

    Attributes:
        training_set: of the script, its outputs named as the uncompressed model's.
        journal: where trained weights are kept.
        seed: of everything that is drawn.
        left_s: seconds of the budget that are left.
        stage: told what is done.
    """

    training_set: TrainingSet
    journal: Journal
    seed: int
    left_s: Callable[[], float]
    stage: Callable[[str], None] = lambda _text: None

    def whole(self) -> "ModelProto":
        """The script's module as it is, as float32 ONNX; raises `CompressionError`."""
        return self._exported(self.training_set.module)

    def reduced(self, recipe: Recipe) -> "tuple[ModelProto, tuple[str, ...]]":
        """A pruned module or a student as float32 ONNX, trained for the recipe's epochs; raises `CompressionError`."""
        module, notes = self._module(recipe)
        return self._exported(module), notes

    def rounded(
        self, recipe: Recipe, quantize: Requantized
    ) -> "tuple[ModelProto, dict[str, tuple[float, float]], tuple[str, ...]]":
        """A float32 model whose weights have learned to be rounded, the ranges that belong to it, and remarks.

        Raises:
            CompressionError: it cannot be trained so.
        """
        module, notes = self._module(recipe.float_part)
        stepped = self._stepped(recipe.text)
        if recipe.trained_int8 == "adaround":
            from compression.training.rounding import adaround

            left_s = self._budget_s()
            found: Any = adaround(module, self.training_set, quantize, seed=self.seed, budget_s=left_s, stepped=stepped)
        else:
            from compression.training.quantization_aware import RECIPE, quantization_aware

            found = quantization_aware(
                module,
                self.training_set,
                quantize,
                teacher=self.training_set.module,
                recipe=replace(RECIPE, epochs=max(1, recipe.epochs // 2), learning_rate=ROUNDING_RATE),
                seed=self.seed,
                budget_s=self._budget_s(),
                stepped=stepped,
            )
        return found.model, dict(found.ranges), notes

    def example(self, n: int = N_EXAMPLE) -> dict[str, np.ndarray]:
        """The inputs of some samples by name."""
        return {name: np.asarray(array[:n]) for name, array in self.training_set.inputs.items()}

    def lite(self, recipe: Recipe, example: Feeds) -> tuple[bytes, tuple[str, ...]]:
        """The float32 part of a recipe as a TensorFlow Lite file of the example's shapes; raises `CompressionError`."""
        from compression.tflite.export import export

        module, notes = self._module(recipe.float_part)
        return export(module, example, self.output_names), notes

    def lite_body(
        self, recipe: Recipe, twin: Path, feature_tensor: str, feeds: Sequence[Feeds]
    ) -> tuple[bytes, tuple[str, ...]]:
        """The part before the head of a float recipe's model, `twin`, as a TensorFlow Lite file, and remarks.

        Raises:
            CompressionError, ModelUntrainable: as `hybrid.compress.making.lite_heads.body_file`.
        """
        from hybrid.compress.making.lite_heads import body_file

        module, notes = self._module(recipe)
        return body_file(module, twin, feature_tensor, feeds), notes

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the uncompressed model."""
        return self.training_set.output_names

    def _exported(self, module: "torch.nn.Module") -> "ModelProto":
        from compression.training.exporting import export

        return export(module, self.example(), self.training_set.output_names)

    def _module(self, recipe: Recipe) -> "tuple[torch.nn.Module, tuple[str, ...]]":
        module, notes = self._begun(recipe)
        if not recipe.epochs or (not recipe.pruned and recipe.source == "given"):
            return module, notes
        import torch

        kept = self.journal.find(["weights", recipe])
        if kept is None:
            kept = self._fitted(recipe, module)
        module.load_state_dict(torch.load(kept.path(WEIGHTS), weights_only=True))
        return module.eval(), (*notes, msgspec.json.decode(kept.content, type=Fit).note)

    def _begun(self, recipe: Recipe) -> "tuple[torch.nn.Module, tuple[str, ...]]":
        """The module before it is trained."""
        if recipe.source == "student":
            from compression.training.students import student

            return student(self.training_set, seed=self.seed), ()
        if not recipe.pruned:
            return self.training_set.module, ()
        from compression.pruning.structured import prune

        found = prune(
            self.training_set.module, self.training_set.example(), recipe.ratio, recipe.multiple, local=recipe.local
        )
        told = f"{found.ratio:.0%} of the channels gone, {found.macs_ratio:.0%} of the products left"
        return found.module, (told, *(f"{name} stays whole: {reason}" for name, reason in found.left))

    def _fitted(self, recipe: Recipe, module: "torch.nn.Module") -> Any:
        import torch

        from compression.training.fit_recipe import FitRecipe
        from compression.training.fitting import fit

        started_s = time.monotonic()
        found = fit(
            module,
            self.training_set,
            teacher=self.training_set.module,
            recipe=FitRecipe(epochs=recipe.epochs),
            seed=self.seed,
            budget_s=self._budget_s(),
            stepped=self._stepped(recipe.text),
        )
        buffer = io.BytesIO()
        torch.save(found.module.state_dict(), buffer)
        epochs = "epoch" if found.n_epochs == 1 else "epochs"
        note = f"trained {found.n_epochs} {epochs} in {time.monotonic() - started_s:.0f} s ({found.ended})"
        return self.journal.keep(["weights", recipe], Fit(note=note), {WEIGHTS: buffer.getvalue()})

    def _budget_s(self) -> float:
        return max(LEAST_S, self.left_s())

    def _stepped(self, text: str) -> Callable[[int, int], None]:
        def stepped(done: int, total: int) -> None:
            if total < N_TOLD or done == total or not done % (total // N_TOLD):
                self.stage(f"training {text}, {done / total:.0%}")

        return stepped


def quantizer(samples: Any, recipe: "Int8Recipe", head: str = "") -> Requantized:
    """What trained rounding is handed to quantize with; a trainable head on this tensor stays in float."""
    from compression.quantization.static import quantize

    def small(model: "ModelProto", ranges: Mapping[str, tuple[float, float]]) -> "ModelProto":
        kept = (*recipe.kept_float, *(nodes_of_head(model, head) if head else ()))
        return quantize(model, samples, replace(recipe, kept_float=kept), ranges=ranges).model

    return small


def matched(
    found: TrainingSet, path: Path, inputs: Sequence[str], outputs: Sequence[str], *, is_its_own: bool = False
) -> TrainingSet:
    """The training set with its outputs named as the uncompressed model's.

    Args:
        found: of the script.
        path: the uncompressed model.
        inputs, outputs: its own.
        is_its_own: it was exported from the script's module, and needs no comparing.

    Raises:
        InvalidTrainingSet: the script's module is another model.
    """
    from compression.training.exporting import export

    if set(found.inputs) != set(inputs):
        raise InvalidTrainingSet(
            f"the script's inputs are {', '.join(found.inputs)}, the model's {', '.join(inputs)}; name them alike"
        )
    named = replace(found, output_names=tuple(outputs))
    if is_its_own:
        return named
    _check_shapes(found, path)
    example = {name: np.asarray(array[:N_EXAMPLE]) for name, array in named.inputs.items()}
    mine = _first(export(named.module, example, named.output_names).SerializeToString(), example, outputs)
    theirs = _first(path, example, outputs)
    for name, one, other in zip(outputs, mine, theirs, strict=True):
        apart = distance(one, other)
        if apart > SAME:
            raise InvalidTrainingSet(
                f"the script's module answers otherwise than {path.name}: output {name!r} is {apart:.1%} apart; give "
                "the module that the model was exported from, or leave the model out"
            )
    return named


def _check_shapes(found: TrainingSet, path: Path) -> None:
    """What the script trains on must be inputs of the model."""
    from hybrid.calibration.calibrate import signature
    from hybrid.calibration.trial import opened

    for spec in signature(path, opened(path))[0]:
        array = found.inputs[spec.name]
        shape = (1, *array.shape[1:])
        if not spec.accepts(spec.dtype, shape):
            seen, wanted = (
                "x".join("?" if size is None else str(size) for size in each) for each in (shape, spec.shape)
            )
            raise InvalidTrainingSet(
                f"the script's {spec.name!r} is {seen}, the model wants {wanted}: this is another model, or its inputs "
                "are prepared otherwise; give the module that the model was exported from, or leave the model out"
            )


def _first(model: Path | bytes, example: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
    """What a model answers to the first sample of the example, in float."""
    import onnxruntime

    from devices.onnx_engine import open_session

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = open_session(model, options, ["CPUExecutionProvider"])
    return list(session.run(list(outputs), {name: array[:1] for name, array in example.items()}))


def digest(found: TrainingSet) -> str:
    """SHA-256 of all that a training depends on: weights, inputs, labels; not of the code that augments."""
    sums = hashlib.sha256()
    for name, tensor in found.module.state_dict().items():
        sums.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    for name, array in found.inputs.items():
        sums.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    if found.labels is not None:
        sums.update(np.ascontiguousarray(found.labels).tobytes())
    return sums.hexdigest()
