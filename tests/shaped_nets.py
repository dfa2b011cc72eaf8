"""Graphs with the shapes of well-known nets at 224 x 224 and seeded random weights: what their speed is measured with.

Speed asks nothing of the weights, so none are fetched: He-scaled noise keeps activations of every depth alive.
Sources: ResNet-50, K. He et al., CVPR 2016 (stride in the 3 x 3); MobileNetV2, M. Sandler et al., CVPR 2018.
"""

from math import prod, sqrt

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MOBILENET_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""Expansion, channels, repeats, stride of the first."""
RESNET_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, repeats, stride of the first."""


class _Net:
    def __init__(self, seed: int, width: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.width = width
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("zero", 0), ("six", 6))]
        self.n_channels = {"image": 3}

    def channels(self, n: int) -> int:
        return max(8, int(n * self.width + 4) // 8 * 8)

    def conv(self, at: str, n_out: int, size: int, stride: int = 1, *, depthwise: bool = False, end: str = "") -> str:
        name = f"conv{sum(node.op_type == 'Conv' for node in self.nodes)}"
        n_in = self.n_channels[at]
        shape = (n_out, 1 if depthwise else n_in, size, size)
        gain = 2.0 if end else 1.0
        self._tensor(f"{name}.weight", self.rng.standard_normal(shape) * sqrt(gain / prod(shape[1:])))
        self._tensor(f"{name}.bias", self.rng.standard_normal(n_out) * 0.1)
        pad = size // 2
        return self.add(
            "Conv", [at, f"{name}.weight", f"{name}.bias"], name, n_out, end=end,
            group=n_in if depthwise else 1, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4,
        )  # fmt: skip

    def add(self, operator: str, inputs: list[str], name: str, n_out: int, *, end: str = "", **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.n_channels[name] = n_out
        if end:
            limits = ["zero", "six"] if end == "Clip" else []
            self.nodes.append(helper.make_node(end, [name, *limits], [f"{name}.{end}"], name=f"{name}.{end}"))
            name = f"{name}.{end}"
            self.n_channels[name] = n_out
        return name

    def end(self, at: str, n_classes: int, size: int, batch: int | str) -> onnx.ModelProto:
        n_features = self.n_channels[at]
        at = self.add("GlobalAveragePool", [at], "pooled", n_features)
        at = self.add("Flatten", [at], "features", n_features)
        self._tensor("head.weight", self.rng.standard_normal((n_classes, n_features)) * sqrt(1 / n_features))
        self._tensor("head.bias", np.zeros(n_classes))
        self.add("Gemm", [at, "head.weight", "head.bias"], "logits", n_classes, transB=1)
        graph = helper.make_graph(
            self.nodes,
            "shaped",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, size, size])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, n_classes])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _tensor(self, name: str, values: np.ndarray) -> None:
        self.tensors.append(numpy_helper.from_array(np.asarray(values, np.float32), name))


def mobilenet_v2(
    *, seed: int = 0, width: float = 1.0, size: int = 224, n_classes: int = 1000, batch: int | str = 1
) -> onnx.ModelProto:
    """Inverted residuals with Relu6 (Clip): input `image` (batch, 3, size, size), output `logits`."""
    net = _Net(seed, width)
    at = net.conv("image", net.channels(32), 3, 2, end="Clip")
    for expansion, n, repeats, first_stride in MOBILENET_STAGES:
        for repeat in range(repeats):
            origin, n_in, stride = at, net.n_channels[at], first_stride if repeat == 0 else 1
            if expansion > 1:
                at = net.conv(at, n_in * expansion, 1, end="Clip")
            at = net.conv(at, net.n_channels[at], 3, stride, depthwise=True, end="Clip")
            at = net.conv(at, net.channels(n), 1)
            if stride == 1 and n_in == net.n_channels[at]:
                at = net.add("Add", [at, origin], f"{at}.sum", n_in)
    at = net.conv(at, net.channels(1280) if width > 1 else 1280, 1, end="Clip")
    return net.end(at, n_classes, size, batch)


def resnet50(
    *, seed: int = 0, width: float = 1.0, size: int = 224, n_classes: int = 1000, batch: int | str = 1
) -> onnx.ModelProto:
    """Bottleneck residuals with Relu: input `image` (batch, 3, size, size), output `logits`."""
    net = _Net(seed, width)
    at = net.conv("image", net.channels(64), 7, 2, end="Relu")
    at = net.add("MaxPool", [at], "pool", net.n_channels[at], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for n, repeats, first_stride in RESNET_STAGES:
        for repeat in range(repeats):
            origin, stride, n_wide = at, first_stride if repeat == 0 else 1, 4 * net.channels(n)
            at = net.conv(at, net.channels(n), 1, end="Relu")
            at = net.conv(at, net.channels(n), 3, stride, end="Relu")
            at = net.conv(at, n_wide, 1)
            if repeat == 0:
                origin = net.conv(origin, n_wide, 1, stride)
            at = net.add("Add", [at, origin], f"{at}.sum", n_wide, end="Relu")
    return net.end(at, n_classes, size, batch)
