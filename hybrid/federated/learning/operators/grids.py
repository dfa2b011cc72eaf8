"""Operators that lay out elements anew or pick the largest, by torch: Pad, Resize to the nearest, ReduceMax."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Final

import numpy as np

from hybrid.federated.learning.operators.by_torch import Tensors, by_torch, loaded
from hybrid.federated.learning.operators.call import Call

_WAYS: Final = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
_NEAREST: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
}


def _pad(call: Call, tensors: Tensors) -> Any:
    x, way = tensors[0], call.attribute("mode", "constant")
    pads, named = call.numbers(1, "pads") or [], call.numbers(3, "axes")
    axes = [axis % x.ndim for axis in named] if named is not None else list(range(x.ndim))
    if way not in _WAYS or len(pads) != 2 * len(axes):
        call.refuse(f"pads by {way}")
    amounts = {axis: (pads[at], pads[at + len(axes)]) for at, axis in enumerate(axes)}
    first = min((axis for axis, amount in amounts.items() if any(amount)), default=x.ndim)
    turned = list(chain.from_iterable(amounts.get(axis, (0, 0)) for axis in range(x.ndim - 1, first - 1, -1)))
    if not turned:
        return x * 1
    if way == "constant":
        given = call.given(2)
        value = call.attribute("value", 0.0) if given is None else given.reshape(-1)[0]
        return loaded().nn.functional.pad(x, turned, value=float(value))
    return loaded().nn.functional.pad(x, turned, mode=_WAYS[way])


def _resize(call: Call, tensors: Tensors) -> Any:
    torch, x = loaded(), tensors[0]
    way, nearest = call.attribute("mode", "nearest"), call.attribute("nearest_mode", "round_prefer_floor")
    where = call.attribute("coordinate_transformation_mode", "half_pixel")
    if way != "nearest" or where not in ("asymmetric", "half_pixel", "pytorch_half_pixel") or call.attribute("axes"):
        call.refuse(f"resizes {way} with {where}")
    scales, sizes = call.given(2), call.given(3)
    if sizes is not None and sizes.size:
        wanted = [int(size) for size in sizes]
        ratios = [new / old for new, old in zip(wanted, x.shape, strict=True)]
    else:
        ratios = [float(one) for one in scales] if scales is not None else [1.0] * x.ndim
        wanted = [int(np.floor(old * ratio)) for old, ratio in zip(x.shape, ratios, strict=True)]
    for axis, (size, ratio) in enumerate(zip(wanted, ratios, strict=True)):
        if size == x.shape[axis]:
            continue
        places = np.arange(size, dtype=np.float64)
        if where == "asymmetric":
            places = places / ratio
        else:
            is_one = where == "pytorch_half_pixel" and size == 1
            places = np.zeros(1) if is_one else (places + 0.5) / ratio - 0.5
        picked = np.clip(_NEAREST[nearest](places), 0, x.shape[axis] - 1).astype(np.int64)
        x = x.index_select(axis, torch.from_numpy(picked))
    return x


def _reduce_max(call: Call, tensors: Tensors) -> Any:
    axes = call.numbers(1, "axes")
    if not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(tensors[0].ndim))
    return tensors[0].amax(dim=axes, keepdim=bool(call.attribute("keepdims", 1))) if axes else tensors[0] * 1


pad: Final = by_torch(_pad)
resize: Final = by_torch(_resize)
reduce_max: Final = by_torch(_reduce_max)
