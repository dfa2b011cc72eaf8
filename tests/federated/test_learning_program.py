"""A head in numpy answers as the engine does, and its gradients are those of differences."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hybrid.federated.learning.head import read_head
from hybrid.federated.learning.losses import loss_of
from tests.federated.learning_making import external, made, node

RANDOM = np.random.default_rng(7)


def drawn(*shape: int, scale: float = 0.5) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


W = {"w": drawn(6, 5), "b": drawn(5)}
LINEAR = node("Gemm", "x w b", "z")


def after(op: str, extra: str = "", **attributes: object) -> list[onnx.NodeProto]:
    """Something behind a product that learns."""
    return [LINEAR, node(op, f"z {extra}".strip(), "y", **attributes)]


def dense(n_in: int, n_out: int, source: str = "a") -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    return node("MatMul", f"{source} m", "y"), {"m": drawn(n_in, n_out)}


CASES = {
    "gemm": ([node("Gemm", "x w b", "y")], W, {}, [6]),
    "gemm-turned": (
        [node("Gemm", "x w b", "y", transB=1, alpha=0.5, beta=2.0)],
        {"w": drawn(5, 6), "b": drawn(5)},
        {},
        [6],
    ),
    "gemm-alone": ([node("Gemm", "x w", "y")], {"w": drawn(6, 5)}, {}, [6]),
    "matmul-add": ([node("MatMul", "x w", "z"), node("Add", "z b", "y")], W, {}, [6]),
    "matmul-tokens": (
        [node("MatMul", "x w", "z"), node("ReduceMean", "z axes", "y", keepdims=0)],
        {"w": drawn(6, 5)},
        {"axes": np.array([1])},
        [3, 6],
    ),
    "relu": (after("Relu"), W, {}, [6]),
    "leaky": (after("LeakyRelu", alpha=0.2), W, {}, [6]),
    "prelu": (after("PRelu", "s"), W | {"s": drawn(5)}, {}, [6]),
    "elu": (after("Elu"), W, {}, [6]),
    "relu6": (after("Clip", "low high"), W, {"low": np.float32(0), "high": np.float32(0.7)}, [6]),
    "clip-below": (after("Clip", "- high"), W, {"high": np.float32(0.3)}, [6]),
    "sigmoid": (after("Sigmoid"), W, {}, [6]),
    "hard-sigmoid": (after("HardSigmoid"), W, {}, [6]),
    "hard-swish": (after("HardSwish"), W, {}, [6]),
    "tanh": (after("Tanh"), W, {}, [6]),
    "erf": (after("Erf"), W, {}, [6]),
    "silu": ([LINEAR, node("Sigmoid", "z", "s"), node("Mul", "z s", "y")], W, {}, [6]),
    "minus-times-over": (
        [LINEAR, node("Sub", "c z", "a"), node("Mul", "a s", "d"), node("Div", "d t", "y")],
        W | {"s": drawn(5)},
        {"c": drawn(1), "t": np.float32([2, 1, 1, 3, 1])},
        [6],
    ),
    "max": ([LINEAR, node("Max", "z c", "y")], W, {"c": np.float32(0.1)}, [6]),
    "exp-log-sqrt": (
        [
            LINEAR,
            node("Exp", "z", "e"),
            node("Sqrt", "e", "r"),
            node("Neg", "r", "n"),
            node("Log", "e", "l"),
            node("Add", "n l", "y"),
        ],
        W,
        {},
        [6],
    ),
    "inner-softmax": ([LINEAR, node("Softmax", "z", "s"), node("Gemm", "s m", "y")], W | {"m": drawn(5, 4)}, {}, [6]),
    "inner-log-softmax": (
        [LINEAR, node("LogSoftmax", "z", "s"), node("Gemm", "s m", "y")],
        W | {"m": drawn(5, 4)},
        {},
        [6],
    ),
    "softmax": (after("Softmax", axis=-1), W, {}, [6]),
    "log-softmax": (after("LogSoftmax"), W, {}, [6]),
    "identity-dropout": ([LINEAR, node("Dropout", "z", "d"), node("Identity", "d", "y")], W, {}, [6]),
    "pool-flatten": (
        [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "f"), node("Gemm", "f w b", "y")],
        W,
        {},
        [6, 3, 2],
    ),
    "pointwise": (
        [node("Conv", "x k kb", "c"), node("Relu", "c", "r"), node("ReduceMean", "r axes", "y", keepdims=0)],
        {"k": drawn(5, 6, 1, 1), "kb": drawn(5)},
        {"axes": np.array([2, 3])},
        [6, 3, 2],
    ),
    "batch-norm": (
        [LINEAR, node("BatchNormalization", "z s t m v", "y")],
        W | {"s": drawn(5), "t": drawn(5)},
        {"m": drawn(5), "v": np.abs(drawn(5)) + 0.1},
        [6],
    ),
    "layer-norm": (
        [LINEAR, node("LayerNormalization", "z s t", "n"), node("MatMul", "n m", "y")],
        W | {"s": drawn(5), "t": drawn(5), "m": drawn(5, 4)},
        {},
        [6],
    ),
    "layer-norm-in-parts": (
        [
            LINEAR,
            node("ReduceMean", "z axes", "mean"),
            node("Sub", "z mean", "c"),
            node("Pow", "c two", "q"),
            node("ReduceMean", "q axes", "v"),
            node("Add", "v eps", "w1"),
            node("Sqrt", "w1", "sd"),
            node("Div", "c sd", "n"),
            node("Mul", "n s", "y"),
        ],
        W | {"s": drawn(5)},
        {"axes": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-5)},
        [6],
    ),
    "reshape-transpose-concat": (
        [
            node("Reshape", "x to", "r"),
            node("Transpose", "r", "t", perm=[0, 2, 1]),
            node("Flatten", "t", "f"),
            node("Concat", "f x", "a", axis=1),
            node("Gemm", "a m b", "y"),
        ],
        {"m": drawn(12, 5), "b": drawn(5)},
        {"to": np.array([0, 2, 3])},
        [6],
    ),
    "first-token": (
        [node("MatMul", "x w", "z"), node("Gather", "z zero", "y", axis=1)],
        {"w": drawn(6, 5)},
        {"zero": np.array(0)},
        [3, 6],
    ),
    "slice-squeeze": (
        [
            node("MatMul", "x w", "z"),
            node("Slice", "z from to on", "s"),
            node("Squeeze", "s on", "q"),
            node("Unsqueeze", "q on", "u"),
            node("Flatten", "u", "y"),
        ],
        {"w": drawn(6, 5)},
        {"from": np.array([1]), "to": np.array([2]), "on": np.array([1])},
        [3, 6],
    ),
    "shape-gather-concat": (
        [
            node("Shape", "x", "h"),
            node("Gather", "h zero", "n", axis=0),
            node("Unsqueeze", "n at", "u"),
            node("Concat", "u rest", "to", axis=0),
            node("Reshape", "x to", "f"),
            node("Gemm", "f m", "y"),
        ],
        {"m": drawn(6, 5)},
        {"zero": np.array(0), "at": np.array([0]), "rest": np.array([-1])},
        [2, 3],
    ),
    "constant-turned": ([node("Transpose", "wt", "w"), node("Gemm", "x w", "y")], {"wt": drawn(5, 6)}, {}, [6]),
    "exported-for-one": (
        [node("Reshape", "x to", "f"), node("Gemm", "f m", "y")],
        {"m": drawn(6, 5)},
        {"to": np.array([1, 6])},
        [2, 3],
    ),
    "summed": (
        [node("MatMul", "x w", "z"), node("ReduceSum", "z axes", "y", keepdims=0)],
        {"w": drawn(6, 5)},
        {"axes": np.array([1])},
        [3, 6],
    ),
}


def opened(folder: Path, case: tuple, *, opset: int = 18):
    nodes, weights, constants, sizes = case
    model = made(nodes, weights | constants, ["n", *sizes], {"y": None}, opset=opset)
    path = external(model, list(weights), folder)
    return path, read_head(path, "x", {"head.bin": path.with_name("head.bin").stat().st_size})


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_the_engine_does(tmp_path: Path, name: str) -> None:
    path, head = opened(tmp_path, CASES[name])
    rows = 1 if name == "exported-for-one" else 4
    x = drawn(rows, *CASES[name][3], scale=1.0)
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    found = head.program.answer(head.arrays, x)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_its_gradients_are_those_of_differences(tmp_path: Path, name: str) -> None:
    """In float64, where central differences are exact to 1e-7; every tensor, its largest gradients and some others."""
    _, head = opened(tmp_path, CASES[name])
    head.program.constants.update(
        {key: one.astype(np.float64) for key, one in head.program.constants.items() if one.dtype == np.float32}
    )
    weights = {key: one.astype(np.float64) for key, one in head.arrays.items()}
    x = drawn(4, *CASES[name][3], scale=1.0).astype(np.float64)
    loss_at = loss_of("cross-entropy", np.array([0, 1, 2, 3]), n=4, smoothing=0.1)
    wanted = frozenset(weights)
    _, found = head.program.gradients(weights, x, loss_at, wanted)
    assert set(found) == wanted
    for tensor, gradient in found.items():
        assert gradient.shape == weights[tensor].shape
        flat = weights[tensor].reshape(-1)
        for at in {int(np.abs(gradient).argmax()), 0, flat.size // 2, flat.size - 1}:
            kept, step = flat[at], 1e-5
            sides = []
            for moved in (kept + step, kept - step):
                flat[at] = moved
                sides.append(loss_at(head.program.scores_of(weights, x))[0])
            flat[at] = kept
            expected = (sides[0] - sides[1]) / (2 * step)
            assert gradient.reshape(-1)[at] == pytest.approx(expected, rel=1e-3, abs=2e-6), (tensor, at)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(tmp_path: Path, approximate: str) -> None:
    case = ([LINEAR, node("Gelu", "z", "y", approximate=approximate)], W, {}, [6])
    path, head = opened(tmp_path, case, opset=20)
    x = drawn(4, 6, scale=2.0)
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    assert np.abs(head.program.answer(head.arrays, x) - wanted).max() <= 1e-5
    z = np.linspace(-3, 3, 25).reshape(5, 5)
    call = head.program.steps[-1]
    from hybrid.federated.learning.operators.call import Call
    from hybrid.federated.learning.operators.elementwise import gelu

    _, pull = gelu(Call(call, [z], (True,)))
    sides = [gelu(Call(call, [z + step], (True,)))[0] for step in (1e-4, -1e-4)]
    assert np.allclose(pull(np.ones_like(z))[0], (sides[0] - sides[1]) / 2e-4, atol=1e-3)


def test_softmax_before_opset_13_takes_all_that_is_behind_its_axis(tmp_path: Path) -> None:
    case = (
        [node("MatMul", "x w", "z"), node("Softmax", "z", "s", axis=1), node("Identity", "s", "y")],
        {"w": drawn(6, 5)},
        {},
        [3, 6],
    )
    path, head = opened(tmp_path, case, opset=11)
    x = drawn(2, 3, 6)
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    assert np.abs(head.program.answer(head.arrays, x) - wanted).max() <= 1e-5
    assert head.program.scores == "z"


def test_a_rounded_head_answers_as_the_engine_does_and_lets_gradients_through(tmp_path: Path) -> None:
    """What a quantizer leaves around a frozen product: only the update of low rank beside it learns."""
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"), node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "wq ws", "wd", axis=1), node("MatMul", "xd wd", "f"),
        node("MatMul", "xd a", "small"), node("MatMul", "small b", "update"), node("Add", "f update", "z"),
        node("QuantizeLinear", "z xs xz", "zq"), node("DequantizeLinear", "zq xs xz", "y"),
    ]  # fmt: skip
    frozen = {
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "wq": RANDOM.integers(-99, 99, (6, 5)).astype(np.int8),
        "ws": np.full(5, 0.01, np.float32),
    }
    case = (nodes, {"a": drawn(6, 2), "b": drawn(2, 5)}, frozen, [6])
    path, head = opened(tmp_path, case)
    assert head.layout.names == ("a", "b")
    x = drawn(4, 6)
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    assert np.abs(head.program.answer(head.arrays, x) - wanted).max() <= 1e-5
    _, found = head.program.gradients(head.arrays, x, loss_of("cross-entropy", np.arange(4), n=4), frozenset("ab"))
    assert all(np.abs(gradient).max() > 1e-4 for gradient in found.values())
