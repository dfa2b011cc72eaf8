"""Static int8: the float model made ready, ranges from samples, placement, biases mended."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from compression.errors import NotQuantizable
from compression.measuring import Feeds
from compression.quantization.placement import check_names, count, place
from compression.quantization.prepare import prepare
from compression.quantization.ranges import Range, activation_ranges
from compression.quantization.recipe import Int8Recipe, Quantized
from compression.quantization.running import check_samples
from compression.quantization.stems import widen_stems


def quantize(model: onnx.ModelProto, samples: Sequence[Feeds], recipe: Int8Recipe | None = None) -> Quantized:
    """The model in int8, its inputs and outputs float as before.

    The same model, samples and recipe give the same bytes.

    Args:
        model: float32, with its weights; not changed.
        samples: whole inputs of the model; those of a few dozen requests. One is in memory at a time.
        recipe: U8S8 per channel with the ranges that the samples show, unless it says otherwise.

    Raises:
        NotQuantizable: the model, a sample or the recipe does not fit; says what to do.
    """
    recipe = recipe or Int8Recipe()
    prepared = prepare(model)
    check_samples(prepared, samples)
    ranges = activation_ranges(prepared, samples, recipe.ranges)
    placed = _placed(prepared, ranges, recipe)
    n_int8, n_float = count(placed)
    if n_int8 == 0:
        raise NotQuantizable(f"no product became int8 ({n_float} stay float); keep fewer nodes float")
    return Quantized(model=placed, n_int8=n_int8, n_float=n_float)


def _placed(prepared: onnx.ModelProto, ranges: Mapping[str, Range], recipe: Int8Recipe) -> onnx.ModelProto:
    if not recipe.wide_stems:
        return place(prepared, ranges, recipe)
    check_names(prepared, recipe.kept_float, "kept_float")
    wide = widen_stems(prepared, recipe.kept_float)
    known = {**ranges, **{name: ranges[origin] for name, origin in wide.origins.items()}}
    return place(wide.model, known, replace(recipe, kept_float=(*recipe.kept_float, *wide.added)))
