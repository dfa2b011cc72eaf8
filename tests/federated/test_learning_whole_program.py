"""A whole model as a program: what torch computes of it answers as the engine does, and its gradients are right."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hybrid.errors import ModelUntrainable
from hybrid.federated.learning.head import read_head
from hybrid.federated.learning.losses import loss_of
from hybrid.federated.learning.operators import by_torch
from hybrid.federated.learning.operators.call import Call, Step
from hybrid.federated.learning.operators.products import pointwise_conv
from hybrid.federated.learning.operators.windows import conv_by_torch
from hybrid.federated.learning.pieces import STEP_PRODUCTS, driven
from tests.federated.learning_making import external, made, node

RANDOM = np.random.default_rng(11)


def drawn(*shape: int, scale: float = 0.5) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


END = [node("Flatten", "e", "f"), node("Gemm", "f m", "y")]
IMAGE = [4, 7, 6]


def conv(size: tuple[int, ...] = (3, 3), n_in: int = 4, **attributes: object) -> tuple:
    nodes = [node("Conv", "x k kb", "c", **attributes), node("Tanh", "c", "e"), *END]
    return nodes, {"k": drawn(6, n_in, *size), "kb": drawn(6)}, {}


def pool(op: str, **attributes: object) -> tuple:
    return (
        [node("Conv", "x k kb", "c"), node(op, "c", "e", **attributes), *END],
        {"k": drawn(6, 4, 1, 1), "kb": drawn(6)},
        {},
    )


def moved(op: str, words: str, constants: dict, **attributes: object) -> tuple:
    nodes = [node("Conv", "x k kb", "c"), node(op, f"c {words}", "e", **attributes), *END]
    return nodes, {"k": drawn(6, 4, 1, 1), "kb": drawn(6)}, constants


CASES = {
    "conv": conv(pads=[1, 1, 1, 1]),
    "conv-uneven": conv((3, 2), pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 2]),
    "conv-same-upper": conv((4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv-same-lower": conv((4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv-valid": conv(auto_pad="VALID"),
    "conv-groups": conv(n_in=2, group=2, pads=[1, 1, 1, 1]),
    "conv-strided-1x1": conv((1, 1), strides=[2, 2]),
    "transposed": (
        [
            node("ConvTranspose", "x k kb", "e", strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 0], group=2),
            *END,
        ],
        {"k": drawn(4, 3, 3, 2), "kb": drawn(6)},
        {},
    ),
    "max-pool": pool("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
    "max-pool-up": pool("MaxPool", kernel_shape=[2, 4], strides=[2, 3], ceil_mode=1),
    "max-pool-same": pool("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", dilations=[1, 1]),
    "mean-pool": pool("AveragePool", kernel_shape=[3, 2], strides=[2, 2]),
    "mean-pool-pads": pool("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    "mean-pool-counted": pool(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "mean-pool-up": pool("AveragePool", kernel_shape=[2, 4], strides=[2, 3], ceil_mode=1),
    "global-max": pool("GlobalMaxPool"),
    "reduce-max": moved("ReduceMax", "axes", {"axes": np.array([2])}, keepdims=0),
    "pad": moved("Pad", "pads value", {"pads": np.array([0, 0, 1, 2, 0, 1, 0, 1]), "value": np.float32(0.3)}),
    "pad-reflect": moved("Pad", "pads", {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])}, mode="reflect"),
    "resize": moved(
        "Resize",
        "- scales",
        {"scales": np.float32([1, 1, 2, 2])},
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        mode="nearest",
    ),
    "resize-sizes": moved("Resize", "- - sizes", {"sizes": np.array([4, 6, 10, 4])}, mode="nearest"),
}  # fmt: skip


def opened(folder: Path, case: tuple):
    """With a last product as wide as what comes before it."""
    nodes, weights, constants = case
    sizes = onnx.shape_inference.infer_shapes(
        made(nodes[:-1], weights | constants, [4, *IMAGE], {"f": None}), data_prop=True
    )
    width = sizes.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    learns = {**weights, "m": drawn(width, 5, scale=0.05)}
    model = made(nodes, learns | constants, ["n", *IMAGE], {"y": None})
    path = external(model, list(learns), folder)
    return path, read_head(path, "x", {"head.bin": path.with_name("head.bin").stat().st_size})


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_the_engine_does_with_gradients_of_differences(tmp_path: Path, name: str) -> None:
    path, head = opened(tmp_path, CASES[name])
    assert head.program.by_torch
    x = drawn(4, *IMAGE, scale=1.0)
    wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    assert np.abs(head.program.answer(head.arrays, x) - wanted).max() <= 1e-5
    head.program.constants.update(
        {key: one.astype(np.float64) for key, one in head.program.constants.items() if one.dtype == np.float32}
    )
    weights = {key: one.astype(np.float64) for key, one in head.arrays.items()}
    x = x.astype(np.float64)
    loss_at = loss_of("cross-entropy", np.array([0, 1, 2, 3]), n=4, smoothing=0.1)
    _, found = head.program.gradients(weights, x, loss_at, frozenset(weights))
    assert set(found) == set(weights)
    for tensor, gradient in found.items():
        flat = weights[tensor].reshape(-1)
        for at in {int(np.abs(gradient).argmax()), flat.size // 2}:
            kept, sides = flat[at], []
            for moved_to in (kept + 1e-5, kept - 1e-5):
                flat[at] = moved_to
                sides.append(loss_at(head.program.scores_of(weights, x))[0])
            flat[at] = kept
            expected = (sides[0] - sides[1]) / 2e-5
            assert gradient.reshape(-1)[at] == pytest.approx(expected, rel=1e-3, abs=2e-6), (tensor, at)


@pytest.mark.torch
def test_where_numpy_has_the_operator_too_both_say_the_same() -> None:
    step = Step(op="Conv", name="c", inputs=("x", "w", "b"), output="y")
    arrays, g = [drawn(3, 4, 5, 2), drawn(6, 4, 1, 1), drawn(6)], drawn(3, 6, 5, 2)
    answers = [operator(Call(step, arrays, (True, True, True))) for operator in (pointwise_conv, conv_by_torch)]
    assert np.allclose(answers[0][0], answers[1][0], atol=1e-6)
    for by_numpy, by_it in zip(answers[0][1](g), answers[1][1](g), strict=True):
        assert by_numpy is not None
        assert np.allclose(by_numpy, by_it, atol=1e-5)


def test_a_convolution_of_size_one_needs_no_torch(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k kb", "c"), node("Relu", "c", "e"), *END]
    _, head = opened(tmp_path, (nodes, {"k": drawn(6, 4, 1, 1), "kb": drawn(6)}, {}))
    assert head.program.by_torch == ()


def test_without_torch_a_model_is_read_and_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway opens it for its layout; nothing of it is computed there."""
    monkeypatch.setattr(by_torch, "find_spec", lambda _name: None)
    by_torch.loaded.cache_clear()
    path, head = opened(tmp_path, CASES["max-pool"])
    assert head.program.by_torch == ("MaxPool",)
    assert head.layout.names == ("k", "kb", "m")
    with pytest.raises(ModelUntrainable, match=r"pip install 'hybrid-split\[torch\]'"):
        head.program.scores_of(head.arrays, drawn(2, *IMAGE))
    assert path.is_file()


@pytest.mark.torch
def test_a_large_step_is_followed_by_a_pause(tmp_path: Path) -> None:
    """32 channels by 32, 3 x 3, at 56 x 56 places: 29 million products for one sample."""
    nodes = [
        node("Conv", "x k", "c", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p", "y"),
    ]
    path = external(made(nodes, {"k": drawn(32, 32, 3, 3)}, ["n", 32, 56, 56], {"y": None}), ["k"], tmp_path)
    program = (head := read_head(path, "x", {"head.bin": path.with_name("head.bin").stat().st_size})).program
    x = drawn(1, 32, 56, 56)
    assert driven(program.load_in_pieces(head.arrays, x)).n_products == 32 * 56 * 56 * 32 * 9 > STEP_PRODUCTS
    loss_at = loss_of("cross-entropy", np.array([3]), n=1)
    assert len(list(program.gradients_in_pieces(head.arrays, x, loss_at, frozenset(["k"])))) == 2
    assert len(list(program.scores_in_pieces(head.arrays, x))) == 1
