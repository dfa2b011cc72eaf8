"""Static int8: the float model made ready, ranges from samples, placement, biases mended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from compression.errors import NotQuantizable
from compression.measuring import Feeds
from compression.quantization.answers import Answers
from compression.quantization.biases import corrected, mean_errors
from compression.quantization.compaction import compact
from compression.quantization.equalisation import equalize
from compression.quantization.placement import check_names, count, place
from compression.quantization.prepare import prepare
from compression.quantization.ranges import Range, activation_ranges, float_tensors
from compression.quantization.recipe import Int8Recipe, Quantized
from compression.quantization.running import check_samples
from compression.quantization.smoothing import smooth
from compression.quantization.stems import widen_stems


def quantize(
    model: onnx.ModelProto,
    samples: Sequence[Feeds],
    recipe: Int8Recipe | None = None,
    *,
    ranges: Mapping[str, Range] | None = None,
) -> Quantized:
    """The model in int8, its inputs and outputs float as before.

    The same model, samples and recipe give the same bytes.

    Args:
        model: float32, with its weights; not changed.
        samples: whole inputs of the model; those of a few dozen requests. What they make inside the model is in
            memory for one sample at a time.
        recipe: U8S8 per channel with the ranges that the samples show, unless it says otherwise.
        ranges: of tensors whose range is known better than from samples, learned in training, say.

    Raises:
        NotQuantizable: the model, a sample or the recipe does not fit; says what to do.
    """
    recipe = recipe or Int8Recipe()
    prepared = prepare(model)
    check_samples(prepared, samples)
    check_names(prepared, recipe.kept_float, "kept_float")
    ready, notes = _ready(prepared, samples, recipe)
    known = {**activation_ranges(ready, samples, recipe.ranges), **_checked(ready, ranges or {})}
    floats = _Floats.of(ready, known, recipe)
    placed = floats.placed()
    n_int8, n_float = count(placed)
    if n_int8 == 0:
        raise NotQuantizable(f"no product became int8 ({n_float} stay float); keep fewer nodes float")
    if recipe.bias_corrected:
        placed, note = _mended(floats, placed, samples)
        notes.append(note)
    compact(placed)
    return Quantized(model=placed, n_int8=n_int8, n_float=n_float, notes=tuple(notes))


def _checked(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    floats = set(float_tensors(model))
    for name, (low, high) in ranges.items():
        if name not in floats:
            raise NotQuantizable(f"ranges: the prepared model has no float tensor {name!r}; take names from prepare")
        if not -np.inf < low <= high < np.inf:
            raise NotQuantizable(f"ranges: {name!r} goes from {low} to {high}, wanted two finite ends in this order")
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in ranges.items()}


def _ready(
    prepared: onnx.ModelProto, samples: Sequence[Feeds], recipe: Int8Recipe
) -> tuple[onnx.ModelProto, list[str]]:
    """The float model with ranges that int8 takes better, and what was done."""
    notes = []
    if recipe.smoothed is not None:
        prepared, n_sites = smooth(prepared, samples, recipe.smoothed)
        notes.append(
            f"SmoothQuant: {n_sites} inputs calmed, alpha {recipe.smoothed:g}."
            if n_sites
            else "SmoothQuant: skipped, no matrix product reads a layer normalisation."
        )
    if recipe.equalized:
        prepared, n_pairs = equalize(prepared, samples)
        notes.append(
            f"Equalisation: {n_pairs} pairs of layers."
            if n_pairs
            else "Equalisation: skipped, no layer is read by one other alone."
        )
    return prepared, notes


@dataclass(frozen=True, slots=True)
class _Floats:
    """The float model that is placed, with its ranges."""

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    recipe: Int8Recipe

    @classmethod
    def of(cls, ready: onnx.ModelProto, ranges: Mapping[str, Range], recipe: Int8Recipe) -> "_Floats":
        if not recipe.wide_stems:
            return cls(ready, ranges, recipe)
        wide = widen_stems(ready, recipe.kept_float)
        known = {**ranges, **{name: ranges[origin] for name, origin in wide.origins.items()}}
        return cls(wide.model, known, replace(recipe, kept_float=(*recipe.kept_float, *wide.added)))

    def placed(self, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
        return place(model or self.model, self.ranges, self.recipe)


def _mended(floats: _Floats, placed: onnx.ModelProto, samples: Sequence[Feeds]) -> tuple[onnx.ModelProto, str]:
    """With corrected biases if the outputs come nearer on samples that the correction has not seen."""
    judged = samples[1::2] or samples
    answers = Answers(floats.model, judged)
    before = answers.distance(placed)
    tried, n_layers = corrected(floats.model, mean_errors(floats.model, placed, samples[::2]))
    after = answers.distance(floats.placed(tried))
    said = f"the outputs' distance {before:.4f} became {after:.4f}"
    if not after < before:
        return placed, f"Bias correction: skipped, {said}."
    whole, _ = corrected(floats.model, mean_errors(floats.model, placed, samples))
    return floats.placed(whole), f"Bias correction: {n_layers} layers, {said}."
