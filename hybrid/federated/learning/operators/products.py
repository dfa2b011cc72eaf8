"""Products by matrices: what a head mostly learns."""

import numpy as np

from hybrid.federated.learning.operators.call import Call, Gradients, Pull, to_shape


def gemm(call: Call) -> tuple[np.ndarray, Pull]:
    """alpha A B + beta C, A (rows, k), B (k, n), each transposed where the attributes say so."""
    a, b, c = call[0], call[1], call.given(2)
    turns_a, turns_b = bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0))
    alpha, beta = np.float32(call.attribute("alpha", 1.0)), np.float32(call.attribute("beta", 1.0))
    left, right = a.T if turns_a else a, b.T if turns_b else b
    answer = left @ right
    if alpha != 1:
        answer *= alpha
    if c is not None:
        answer = answer + (c if beta == 1 else beta * c)

    def pull(g: np.ndarray) -> Gradients:
        scaled = g if alpha == 1 else g * alpha
        of_a = of_b = of_c = None
        if call.needs[0]:
            of_a = right @ scaled.T if turns_a else scaled @ right.T
        if call.needs[1]:
            of_b = scaled.T @ left if turns_b else left.T @ scaled
        if c is not None and call.needs[2]:
            of_c = to_shape(g if beta == 1 else g * beta, c.shape)
        return of_a, of_b, of_c

    return answer, pull


def matmul(call: Call) -> tuple[np.ndarray, Pull]:
    """A (…, m, k) by B (…, k, n)."""
    a, b = call[0], call[1]
    if a.ndim < 2 or b.ndim < 2:
        call.refuse(f"multiplies shapes {list(a.shape)} and {list(b.shape)}")

    def pull(g: np.ndarray) -> Gradients:
        of_a = of_b = None
        if call.needs[0]:
            of_a = to_shape(g @ np.swapaxes(b, -1, -2), a.shape)
        if call.needs[1] and b.ndim == 2:
            of_b = a.reshape(-1, a.shape[-1]).T @ g.reshape(-1, g.shape[-1])
        elif call.needs[1]:
            of_b = to_shape(np.swapaxes(a, -1, -2) @ g, b.shape)
        return of_a, of_b

    return a @ b, pull


def pointwise_conv(call: Call) -> tuple[np.ndarray, Pull]:
    """A convolution of size 1: x (n, c, …) by w (m, c, 1, …) and b (m)."""
    x, w, bias = call[0], call[1], call.given(2)
    size = "×".join(map(str, w.shape[2:]))
    is_plain = set(w.shape[2:]) <= {1} and call.attribute("group", 1) == 1
    is_plain &= set(call.attribute("strides", [1])) <= {1} and set(call.attribute("pads", [0])) <= {0}
    if not is_plain:
        call.refuse(f"is a convolution of size {size}, {call.attribute('group', 1)} groups, strides or pads")
    matrix = w.reshape(w.shape[0], w.shape[1])
    flat = x.reshape(*x.shape[:2], -1)
    answer = matrix @ flat
    if bias is not None:
        answer = answer + bias[:, None]

    def pull(g: np.ndarray) -> Gradients:
        g = g.reshape(*g.shape[:2], -1)
        of_x = (matrix.T @ g).reshape(x.shape) if call.needs[0] else None
        of_w = np.einsum("nms,ncs->mc", g, flat, optimize=True).reshape(w.shape) if call.needs[1] else None
        of_bias = g.sum(axis=(0, 2)) if bias is not None and call.needs[2] else None
        return of_x, of_w, of_bias

    return answer.reshape(x.shape[0], w.shape[0], *x.shape[2:]), pull
