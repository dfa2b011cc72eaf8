"""Small nets with seeded weights, and samples for them."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Feeds = dict[str, np.ndarray]


def net(
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    shape: tuple[int | str, ...],
    *,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    output: tuple[int | str, ...] | None = None,
) -> onnx.ModelProto:
    """A model from input `x` to output `y`."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if output is not None:  # the checker wants the rank of each output
        onnx.checker.check_model(model)
    return model


def convnet(
    *,
    seed: int = 0,
    batch: int | str = 1,
    side: int = 16,
    n_in: int = 3,
    spread: float = 0.0,
    end: str = "Relu",
    stride: int = 2,
    opset: int = 17,
    batch_norm: bool = True,
) -> onnx.ModelProto:
    """Convolution, depthwise convolution, residual, pooling, head: about 1,700 numbers.

    Args:
        spread: how unlike the ranges of channels are, in powers of e: what equalisation is for.
        end: the activation, Relu or Clip (Relu6).
    """
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)

    uneven = np.exp(spread * rng.standard_normal(24)).astype(np.float32)
    weights = {
        "zero": np.float32(0), "six": np.float32(6),
        "w0": drawn(24, n_in, 3, 3) * uneven[:, None, None, None], "b0": drawn(24, 1)[:, 0] * uneven * 0.1,
        "w1": drawn(24, 1, 3, 3), "b1": drawn(24, 1)[:, 0] * 0.1,
        "w2": drawn(24, 24, 1, 1) / uneven[None, :, None, None],
        "wh": drawn(10, 24), "bh": drawn(10, 1)[:, 0],
    }  # fmt: skip
    limits = ["zero", "six"] if end == "Clip" else []
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="c0", pads=[1] * 4, strides=[stride] * 2),
        helper.make_node(end, ["c0", *limits], ["a0"], name="a0"),
        helper.make_node("Conv", ["a0", "w1", "b1"], ["c1"], name="c1", pads=[1] * 4, group=24),
        helper.make_node(end, ["c1", *limits], ["a1"], name="a1"),
        helper.make_node("Conv", ["a1", "w2"], ["c2"], name="c2"),
    ]
    at = "c2"
    if batch_norm:
        for name, low in (("gain", 0.8), ("shift", -0.1), ("mean", -0.1), ("variance", 0.5)):
            weights[name] = (rng.random(24) * 0.4 + low).astype(np.float32)
        nodes.append(helper.make_node("BatchNormalization", ["c2", "gain", "shift", "mean", "variance"], ["n2"]))
        at = "n2"
    nodes += [
        helper.make_node("Add", [at, "a0"], ["s"], name="s"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "wh", "bh"], ["y"], name="head", transB=1),
    ]
    return net(nodes, weights, (batch, n_in, side, side), opset=opset, output=(batch, 10))


def images(n: int, *, seed: int = 1, batch: int = 1, side: int = 16, n_in: int = 3) -> list[Feeds]:
    """Smooth noise: neighbours are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        coarse = rng.standard_normal((batch, n_in, side // 4, side // 4))
        fine = np.kron(coarse, np.ones((4, 4))) + 0.3 * rng.standard_normal((batch, n_in, side, side))
        made.append({"x": fine.astype(np.float32)})
    return made


def answers(model: onnx.ModelProto, samples: list[Feeds]) -> list[np.ndarray]:
    """The last output of each sample, in one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feeds)[-1] for feeds in samples]


def apart(first: onnx.ModelProto, second: onnx.ModelProto, samples: list[Feeds]) -> float:
    """The mean of ‖a − b‖ / ‖a‖ over samples."""
    both = zip(answers(first, samples), answers(second, samples), strict=True)
    return float(np.mean([np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in both]))
