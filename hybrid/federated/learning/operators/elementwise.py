"""Operators that work element by element."""

from collections.abc import Callable
from typing import Final

import numpy as np

from hybrid.federated.learning.operators.call import Call, Operator, Pull, no_gradient, to_shape

_FLOAT: Final = 1
_SQRT_2: Final = np.float32(np.sqrt(2.0))
_BELL: Final = np.float32(2.0 / np.sqrt(np.pi))
_TANH_SCALE: Final = np.float32(np.sqrt(2.0 / np.pi))
_TANH_CUBE: Final = np.float32(0.044715)


def add(call: Call) -> tuple[np.ndarray, Pull]:
    """Add, spread where shapes differ."""
    a, b = call[0], call[1]
    return a + b, lambda g: (
        to_shape(g, a.shape) if call.needs[0] else None,
        to_shape(g, b.shape) if call.needs[1] else None,
    )


def subtract(call: Call) -> tuple[np.ndarray, Pull]:
    """Sub."""
    a, b = call[0], call[1]
    return a - b, lambda g: (
        to_shape(g, a.shape) if call.needs[0] else None,
        to_shape(-g, b.shape) if call.needs[1] else None,
    )


def multiply(call: Call) -> tuple[np.ndarray, Pull]:
    """Mul, also of two activations."""
    a, b = call[0], call[1]
    return a * b, lambda g: (
        to_shape(g * b, a.shape) if call.needs[0] else None,
        to_shape(g * a, b.shape) if call.needs[1] else None,
    )


def divide(call: Call) -> tuple[np.ndarray, Pull]:
    """Div."""
    a, b = call[0], call[1]
    if a.dtype.kind in "iu":
        return a // b, no_gradient
    return a / b, lambda g: (
        to_shape(g / b, a.shape) if call.needs[0] else None,
        to_shape(-g * a / (b * b), b.shape) if call.needs[1] else None,
    )


def power(call: Call) -> tuple[np.ndarray, Pull]:
    """A constant exponent."""
    a, exponent = call[0], call[1]
    if call.needs[1]:
        call.refuse("learns its exponent")
    answer = np.power(a, exponent).astype(a.dtype)
    return answer, lambda g: (to_shape((g * exponent * np.power(a, exponent - 1)).astype(a.dtype), a.shape), None)


def negate(call: Call) -> tuple[np.ndarray, Pull]:
    """Neg."""
    return -call[0], lambda g: (-g,)


def square_root(call: Call) -> tuple[np.ndarray, Pull]:
    """Sqrt."""
    answer = np.sqrt(call[0])
    return answer, lambda g: (g * np.float32(0.5) / answer,)


def relu(call: Call) -> tuple[np.ndarray, Pull]:
    """Relu; its slope at zero is zero."""
    answer = np.maximum(call[0], 0)
    return answer, lambda g: (g * (answer > 0),)


def leaky_relu(call: Call) -> tuple[np.ndarray, Pull]:
    """LeakyRelu."""
    x, slope = call[0], np.float32(call.attribute("alpha", 0.01))
    return np.where(x < 0, x * slope, x), lambda g: (np.where(x < 0, g * slope, g),)


def p_relu(call: Call) -> tuple[np.ndarray, Pull]:
    """PRelu, its slope learning."""
    x, slope = call[0], call[1]
    return np.where(x < 0, x * slope, x), lambda g: (
        np.where(x < 0, g * slope, g) if call.needs[0] else None,
        to_shape(np.where(x < 0, g * x, np.float32(0)), slope.shape) if call.needs[1] else None,
    )


def elu(call: Call) -> tuple[np.ndarray, Pull]:
    """Elu."""
    x, scale = call[0], np.float32(call.attribute("alpha", 1.0))
    below = scale * np.expm1(np.minimum(x, 0))
    return np.where(x < 0, below, x), lambda g: (np.where(x < 0, g * (below + scale), g),)


def clip(call: Call) -> tuple[np.ndarray, Pull]:
    """Clip, and Relu6."""
    x = call[0]
    low, high = call.given(1), call.given(2)
    least = call.attribute("min", -np.inf) if low is None else low
    most = call.attribute("max", np.inf) if high is None else high
    answer = np.clip(x, x.dtype.type(least), x.dtype.type(most))
    return answer, lambda g: (g * ((x > least) & (x < most)), None, None)


def sigmoid(call: Call) -> tuple[np.ndarray, Pull]:
    """Sigmoid."""
    answer = logistic(call[0])
    return answer, lambda g: (g * answer * (1 - answer),)


def hard_sigmoid(call: Call) -> tuple[np.ndarray, Pull]:
    """HardSigmoid."""
    slope, offset = np.float32(call.attribute("alpha", 0.2)), np.float32(call.attribute("beta", 0.5))
    answer = np.clip(slope * call[0] + offset, np.float32(0), np.float32(1))
    return answer, lambda g: (g * slope * ((answer > 0) & (answer < 1)),)


def hard_swish(call: Call) -> tuple[np.ndarray, Pull]:
    """HardSwish."""
    x = call[0]
    gate = np.clip(x / np.float32(6) + np.float32(0.5), np.float32(0), np.float32(1))
    return x * gate, lambda g: (g * (gate + x / np.float32(6) * ((gate > 0) & (gate < 1))),)


def tanh(call: Call) -> tuple[np.ndarray, Pull]:
    """Tanh."""
    answer = np.tanh(call[0])
    return answer, lambda g: (g * (1 - answer * answer),)


def erf(call: Call) -> tuple[np.ndarray, Pull]:
    """Erf."""
    x = call[0]
    return error_function(x), lambda g: (g * _BELL * np.exp(-x * x),)


def gelu(call: Call) -> tuple[np.ndarray, Pull]:
    """Gelu, exact or by tanh."""
    x = call[0]
    if call.attribute("approximate", "none") == "tanh":
        bent = np.tanh(_TANH_SCALE * (x + _TANH_CUBE * x**3))
        slope = (1 - bent * bent) * _TANH_SCALE * (1 + 3 * _TANH_CUBE * x * x)
        half = np.float32(0.5)
        return half * x * (1 + bent), lambda g: (g * half * (1 + bent + x * slope),)
    below = np.float32(0.5) * (1 + error_function(x / _SQRT_2))
    bell = np.exp(np.float32(-0.5) * x * x) / np.float32(np.sqrt(2 * np.pi))
    return x * below, lambda g: (g * (below + x * bell),)


def exponential(call: Call) -> tuple[np.ndarray, Pull]:
    """Exp."""
    answer = np.exp(call[0])
    return answer, lambda g: (g * answer,)


def logarithm(call: Call) -> tuple[np.ndarray, Pull]:
    """Log."""
    x = call[0]
    return np.log(x), lambda g: (g / x,)


def same(call: Call) -> tuple[np.ndarray, Pull]:
    """Identity, and Dropout, which only training with it would switch on."""
    return call[0], lambda g: (g,)


def cast(call: Call) -> tuple[np.ndarray, Pull]:
    """Cast; what learns stays float32."""
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(int(call.attribute("to", _FLOAT)))
    x = call[0]
    if any(call.needs) and (kind != np.float32 or x.dtype != np.float32):
        call.refuse(f"makes {kind} of what learns")
    return x.astype(kind), lambda g: (g,)


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    found: np.ndarray = np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)
    return found


def error_function(x: np.ndarray) -> np.ndarray:
    """The error function to 1.5e-7. Source: Abramowitz and Stegun, 1964, 7.1.26."""
    size = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * size)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    found: np.ndarray = (np.sign(x) * (1 - series * np.exp(-size * size))).astype(x.dtype)
    return found


def extreme(pick: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Operator:
    """Max or Min of two."""

    def between(call: Call) -> tuple[np.ndarray, Pull]:
        a, b = call[0], call[1]
        if len(call.arrays) != 2:
            call.refuse(f"has {len(call.arrays)} inputs")
        answer = pick(a, b)
        return answer, lambda g: (
            to_shape(g * (answer == a), a.shape) if call.needs[0] else None,
            to_shape(g * ((answer == b) & (answer != a)), b.shape) if call.needs[1] else None,
        )

    return between
