"""Operators that look along axes: means, normalisation, softmax."""

import numpy as np

from hybrid.federated.learning.operators.call import Call, Gradients, Pull, to_shape


def softmax(call: Call) -> tuple[np.ndarray, Pull]:
    """Softmax."""
    x, axes = call[0], _softmax_axes(call)
    shifted = np.exp(x - x.max(axis=axes, keepdims=True))
    answer = shifted / shifted.sum(axis=axes, keepdims=True)
    return answer, lambda g: (answer * (g - (g * answer).sum(axis=axes, keepdims=True)),)


def log_softmax(call: Call) -> tuple[np.ndarray, Pull]:
    """LogSoftmax."""
    x, axes = call[0], _softmax_axes(call)
    shifted = x - x.max(axis=axes, keepdims=True)
    answer = shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True))
    return answer, lambda g: (g - np.exp(answer) * g.sum(axis=axes, keepdims=True),)


def _softmax_axes(call: Call) -> tuple[int, ...]:
    """Below opset 13 everything from the axis on counts as one."""
    if call.step.opset >= 13:
        return (int(call.attribute("axis", -1)),)
    n_axes, axis = call[0].ndim, int(call.attribute("axis", 1))
    return tuple(range(axis % n_axes, n_axes))


def reduce_mean(call: Call) -> tuple[np.ndarray, Pull]:
    """ReduceMean."""
    x, axes, keeps = call[0], _reduced(call), bool(call.attribute("keepdims", 1))
    if not axes:
        return x, lambda g: (g, None)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    n_elements = np.float32(np.prod([x.shape[axis] for axis in axes]))
    answer = x.mean(axis=axes, keepdims=keeps)
    return answer, lambda g: (np.broadcast_to(g.reshape(kept) / n_elements, x.shape), None)


def reduce_sum(call: Call) -> tuple[np.ndarray, Pull]:
    """ReduceSum."""
    x, axes, keeps = call[0], _reduced(call), bool(call.attribute("keepdims", 1))
    if not axes:
        return x, lambda g: (g, None)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    return x.sum(axis=axes, keepdims=keeps), lambda g: (np.broadcast_to(g.reshape(kept), x.shape), None)


def _reduced(call: Call) -> tuple[int, ...]:
    n_axes, axes = call[0].ndim, call.numbers(1, "axes")
    if axes:
        return tuple(axis % n_axes for axis in axes)
    return () if call.attribute("noop_with_empty_axes", 0) else tuple(range(n_axes))


def global_average(call: Call) -> tuple[np.ndarray, Pull]:
    """GlobalAveragePool."""
    x = call[0]
    axes = tuple(range(2, x.ndim))
    n_elements = np.float32(np.prod(x.shape[2:]))
    return x.mean(axis=axes, keepdims=True), lambda g: (np.broadcast_to(g / n_elements, x.shape),)


def layer_normalization(call: Call) -> tuple[np.ndarray, Pull]:
    """LayerNormalization."""
    x, scale, bias = call[0], call[1], call.given(2)
    axes = tuple(range(int(call.attribute("axis", -1)) % x.ndim, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    spread = (centred * centred).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(spread + np.float32(call.attribute("epsilon", 1e-5)))
    normal = centred * inverse
    answer = normal * scale
    if bias is not None:
        answer = answer + bias

    def pull(g: np.ndarray) -> Gradients:
        inner = g * scale
        along = (inner * normal).mean(axis=axes, keepdims=True)
        of_x = inverse * (inner - inner.mean(axis=axes, keepdims=True) - normal * along) if call.needs[0] else None
        of_scale = to_shape(g * normal, scale.shape) if call.needs[1] else None
        of_bias = to_shape(g, bias.shape) if bias is not None and call.needs[2] else None
        return of_x, of_scale, of_bias

    return answer, pull


def batch_normalization(call: Call) -> tuple[np.ndarray, Pull]:
    """As in inference: mean and variance are what they are, also where they lie in a trainable file."""
    x, scale, bias, mean, variance = (call[at] for at in range(5))
    across = (1, -1, *[1] * (x.ndim - 2))
    others = (0, *range(2, x.ndim))
    inverse = 1 / np.sqrt(variance + np.float32(call.attribute("epsilon", 1e-5)))
    normal = (x - mean.reshape(across)) * inverse.reshape(across)

    def pull(g: np.ndarray) -> Gradients:
        of_x = g * (scale * inverse).reshape(across) if call.needs[0] else None
        of_scale = (g * normal).sum(axis=others) if call.needs[1] else None
        of_bias = g.sum(axis=others) if call.needs[2] else None
        return of_x, of_scale, of_bias, None, None

    return normal * scale.reshape(across) + bias.reshape(across), pull
