"""Training while rounding as the quantized model will, with the float module as the teacher.

What comes out is a float model whose weights lie on their grids, and the ranges of its activations: handed to the same
quantizer again, they give the model that was trained.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx
import torch

from compression.training.answering import evaluating
from compression.training.fake_quantization import fake_quantized
from compression.training.fit_recipe import FitRecipe
from compression.training.fitting import Fitted, Stepped, fit
from compression.training.grids import grids
from compression.training.tracing import traced
from compression.training.training_set import Loss, TrainingSet

Quantize = Callable[[onnx.ModelProto, Mapping[str, tuple[float, float]]], onnx.ModelProto]
"""A float model, and ranges of some of its tensors, to QuantizeLinear and DequantizeLinear; others are calibrated."""

RECIPE: Final = FitRecipe(epochs=5, learning_rate=5e-4, rise_ratio=0.1, weight_decay=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationAware:
    """What was trained.

    Attributes:
        model: float; weights on their grids.
        ranges: of activations, by tensor of the model.
        quantized: the model in int8, with these ranges.
        fitted: how the training went; its module rounds.
        unplaced: what the quantizer rounds and the training did not.
    """

    model: onnx.ModelProto
    ranges: dict[str, tuple[float, float]]
    quantized: onnx.ModelProto
    fitted: Fitted
    unplaced: tuple[str, ...]


def quantization_aware(
    module: torch.nn.Module,
    training_set: TrainingSet,
    quantize: Quantize,
    *,
    teacher: torch.nn.Module | None = None,
    recipe: FitRecipe = RECIPE,
    seed: int = 0,
    budget_s: float | None = None,
    stepped: Stepped | None = None,
) -> QuantizationAware:
    """Trains a copy of a trained module so that it loses less in int8.

    Args:
        module: float; left as it is.
        training_set: samples and labels; without labels the teacher's answers count alone.
        quantize: makes the int8 model of an exported one, always in the same way.
        teacher: None: the module itself.
        recipe: a short training at a small rate, unless it says otherwise.
        seed: as `fit` has it.
        budget_s: as `fit` has it.
        stepped: as `fit` has it.

    Raises:
        NotQuantizable: the quantized graph does not fit the module.
        NotExportable: the module cannot be written as ONNX.
        NotTrainable: as `fit` does.
    """
    example = {name: values[:4] for name, values in training_set.inputs.items()}
    trace = traced(module, example, training_set.output_names)
    found = fake_quantized(trace, grids(quantize(trace.model, {}), trace.model))
    fitted = fit(
        found.module,
        _flat(training_set),
        teacher=teacher or module,
        recipe=recipe,
        seed=seed,
        budget_s=budget_s,
        stepped=stepped,
    )
    model, ranges = trace.written(found.on_grid(fitted.module)), found.ranges(fitted.module)
    return QuantizationAware(
        model=model,
        ranges=ranges,
        quantized=quantize(model, ranges),
        fitted=fitted,
        unplaced=found.unplaced,
    )


def _flat(training_set: TrainingSet) -> TrainingSet:
    """The same, with a loss that takes the tensor or the tuple that a traced module answers with."""
    if training_set.loss is None:
        return training_set
    with evaluating(training_set.module):
        answer = training_set.module(*training_set.example(2))
    return dataclasses.replace(training_set, loss=_rebuilding(training_set.loss, answer))


def _rebuilding(loss: Loss, answer: object) -> Loss:
    keys = list(answer) if isinstance(answer, Mapping) else []
    kind = list if isinstance(answer, list) else tuple

    def of_flat(flat: Any, labels: torch.Tensor) -> torch.Tensor:
        outputs = flat if isinstance(flat, tuple) else (flat,)
        if keys:
            return loss(dict(zip(keys, outputs, strict=True)), labels)
        return loss(flat if isinstance(answer, torch.Tensor) else kind(outputs), labels)

    return of_flat
