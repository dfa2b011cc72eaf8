"""Rounding to whole numbers and back, as quantized models have it; gradients go straight through where nothing is cut.

Source: Bengio et al.: Estimating or propagating gradients through stochastic neurons for conditional computation, 2013.
"""

from typing import Final

import numpy as np

from hybrid.federated.learning.operators.call import Call, Pull

_KINDS: Final = ("uint8", "int8", "uint16", "int16")


def quantize(call: Call) -> tuple[np.ndarray, Pull]:
    """QuantizeLinear."""
    x, scale, zero = call[0], call[1], call.given(2)
    zero = np.zeros((), np.uint8) if zero is None else zero
    if zero.dtype.name not in _KINDS or call.attribute("block_size", 0):
        call.refuse(f"rounds to {zero.dtype.name} or in blocks")
    across = _across(call, x, scale)
    limits = np.iinfo(zero.dtype)
    steps = np.rint(x / scale.reshape(across)) + zero.astype(np.float32).reshape(across)
    inside = (steps >= limits.min) & (steps <= limits.max)
    answer = np.clip(steps, limits.min, limits.max).astype(zero.dtype)
    return answer, lambda g: (g * inside / scale.reshape(across), None, None)


def dequantize(call: Call) -> tuple[np.ndarray, Pull]:
    """DequantizeLinear."""
    x, scale, zero = call[0], call[1], call.given(2)
    if call.attribute("block_size", 0):
        call.refuse("rounds in blocks")
    across = _across(call, x, scale)
    whole = x.astype(np.float32) if zero is None else x.astype(np.float32) - zero.astype(np.float32).reshape(across)
    return whole * scale.reshape(across), lambda g: (g * scale.reshape(across), None, None)


def _across(call: Call, x: np.ndarray, scale: np.ndarray) -> tuple[int, ...]:
    """The shape in which a scale for each channel is spread; () for one scale of all."""
    if scale.size == 1:
        return ()
    shape = [1] * x.ndim
    shape[int(call.attribute("axis", 1)) % x.ndim] = scale.size
    return tuple(shape)
