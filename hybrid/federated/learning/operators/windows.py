"""Operators with a window that moves over an image or a signal: convolutions and pooling, by torch.

Design: paddings that torch cannot say (another one at the end than at the beginning, rounding up) are added before.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np

from hybrid.federated.learning.operators.by_torch import Tensors, by_torch, loaded
from hybrid.federated.learning.operators.call import Call, Pull, Step
from hybrid.federated.learning.operators.products import pointwise_conv

_MOST_AXES: Final = 3


class _Window(NamedTuple):
    """Of each axis that it moves over: its size, how far it moves, and how far apart its places lie."""

    sizes: list[int]
    strides: list[int]
    dilations: list[int]

    @property
    def covered(self) -> list[int]:
        return [(size - 1) * dilation + 1 for size, dilation in zip(self.sizes, self.dilations, strict=True)]


def is_pointwise(step: Step, size: tuple[int, ...] | None) -> bool:
    """Whether a convolution is a product at each place, which numpy computes.

    Args:
        step: the convolution.
        size: of its window, where the weights are known; else what the node says of it.
    """
    said = size if size is not None else step.attributes.get("kernel_shape")
    if said is None or set(said) - {1} or step.attributes.get("group", 1) != 1:
        return False
    return set(step.attributes.get("strides", [1])) <= {1} and set(step.attributes.get("pads", [0])) <= {0}


def with_window(step: Step, sizes: Mapping[str, tuple[int, ...]]) -> Step:
    """A convolution with the size of its window, which the node may leave to its weights; any other step as it is."""
    if step.op != "Conv" or "kernel_shape" in step.attributes or step.inputs[1] not in sizes:
        return step
    return replace(step, attributes={**step.attributes, "kernel_shape": list(sizes[step.inputs[1]])})


def conv(call: Call) -> tuple[np.ndarray, Pull]:
    """Any Conv; of size 1 by numpy."""
    return pointwise_conv(call) if is_pointwise(call.step, call[1].shape[2:]) else _CONV(call)


def _conv(call: Call, tensors: Tensors) -> Any:
    x, w, bias = tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None
    n_axes, window = len(w.shape) - 2, _window(call, x, list(w.shape[2:]))
    starts, ends = _pads(call, x, window)
    if starts != ends:
        x, starts = _padded(x, starts, ends), [0] * n_axes
    made = getattr(loaded().nn.functional, f"conv{n_axes}d")
    return made(x, w, bias, window.strides, starts, window.dilations, int(call.attribute("group", 1)))


def _transposed(call: Call, tensors: Tensors) -> Any:
    x, w, bias = tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None
    n_axes = _n_axes(call, x)
    if call.attribute("output_shape") or call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        call.refuse("names the shape of what it gives")
    strides, dilations = _whole(call, "strides", n_axes), _whole(call, "dilations", n_axes)
    more = _whole(call, "output_padding", n_axes, 0)
    pads = _whole(call, "pads", 2 * n_axes, 0)
    made = getattr(loaded().nn.functional, f"conv_transpose{n_axes}d")
    whole = made(x, w, bias, strides, 0, more, int(call.attribute("group", 1)), dilations)
    places = [
        slice(start, size - end) for start, end, size in zip(pads[:n_axes], pads[n_axes:], whole.shape[2:], strict=True)
    ]
    return whole[(slice(None), slice(None), *places)]


def _max_pool(call: Call, tensors: Tensors) -> Any:
    x = tensors[0]
    window = _window(call, x, call.attribute("kernel_shape"))
    starts, ends = _pads(call, x, window)
    more = _rounding_up(call, x, (starts, ends), window)
    x = _padded(x, starts, [end + one for end, one in zip(ends, more, strict=True)], float("-inf"))
    made = getattr(loaded().nn.functional, f"max_pool{len(starts)}d")
    return made(x, window.sizes, window.strides, 0, window.dilations)


def _average_pool(call: Call, tensors: Tensors) -> Any:
    x = tensors[0]
    window = _window(call, x, call.attribute("kernel_shape"))
    if set(window.dilations) != {1}:
        call.refuse("has dilations")
    starts, ends = _pads(call, x, window)
    more, none = _rounding_up(call, x, (starts, ends), window), [0] * len(starts)
    mean = getattr(loaded().nn.functional, f"avg_pool{len(starts)}d")
    if not any((*starts, *ends, *more)):
        return mean(x, window.sizes, window.strides)
    counts = _padded(loaded().ones_like(x[:1, :1]), starts, ends, float(call.attribute("count_include_pad", 0)))
    counts, x = (_padded(one, none, more) for one in (counts, _padded(x, starts, ends)))
    return mean(x, window.sizes, window.strides) / mean(counts, window.sizes, window.strides)


def _global_max(_call: Call, tensors: Tensors) -> Any:
    return tensors[0].amax(dim=tuple(range(2, tensors[0].ndim)), keepdim=True)


def _n_axes(call: Call, x: Any) -> int:
    n_axes = x.ndim - 2
    if not 1 <= n_axes <= _MOST_AXES:
        call.refuse(f"moves over {n_axes} axes")
    return int(n_axes)


def _whole(call: Call, name: str, n: int, default: int = 1) -> list[int]:
    return [int(one) for one in call.attribute(name) or [default] * n]


def _window(call: Call, x: Any, sizes: list[int]) -> _Window:
    n_axes = _n_axes(call, x)
    return _Window(sizes, _whole(call, "strides", n_axes), _whole(call, "dilations", n_axes))


def _pads(call: Call, x: Any, window: _Window) -> tuple[list[int], list[int]]:
    """What is added before and behind each axis."""
    way, n = call.attribute("auto_pad", "NOTSET"), len(window.sizes)
    if way in ("NOTSET", ""):
        pads = _whole(call, "pads", 2 * n, 0)
        return pads[:n], pads[n:]
    if way == "VALID":
        return [0] * n, [0] * n
    short = [
        max(0, (-(-size // stride) - 1) * stride + covered - size)
        for size, stride, covered in zip(x.shape[2:], window.strides, window.covered, strict=True)
    ]
    less, more = [one // 2 for one in short], [one - one // 2 for one in short]
    return (less, more) if way == "SAME_UPPER" else (more, less)


def _rounding_up(call: Call, x: Any, pads: tuple[list[int], list[int]], window: _Window) -> list[int]:
    """What is missing behind each axis for a last window that begins inside it."""
    if not call.attribute("ceil_mode", 0):
        return [0] * len(window.sizes)
    found = []
    for size, start, end, stride, covered in zip(x.shape[2:], *pads, window.strides, window.covered, strict=True):
        n_places = -(-(size + start + end - covered) // stride) + 1
        if (n_places - 1) * stride >= size + start:
            n_places -= 1
        found.append(max(0, (n_places - 1) * stride + covered - size - start - end))
    return found


def _padded(x: Any, starts: list[int], ends: list[int], value: float = 0.0) -> Any:
    if not any((*starts, *ends)):
        return x
    pairs = list(chain.from_iterable(zip(starts, ends, strict=True)))
    turned = [one for at in range(len(pairs) - 2, -1, -2) for one in pairs[at : at + 2]]  # torch begins with the last
    return loaded().nn.functional.pad(x, turned, value=value)


_CONV: Final = by_torch(_conv)
conv_by_torch: Final = _CONV
conv_transpose: Final = by_torch(_transposed)
max_pool: Final = by_torch(_max_pool)
average_pool: Final = by_torch(_average_pool)
global_max: Final = by_torch(_global_max)
