"""The same levels computed by the engine: heads that quantize what crosses, tails that take levels.

Design: the wire carries what `affine` defines, whoever computes it: the nodes added here do its arithmetic
operation for operation in float32, and agree with it bit for bit where the engine rounds as IEEE 754 says. Scales are
found anew in every run (a minimum and a maximum of each channel), so nothing is clipped and nothing must be calibrated
but the accuracy. NaNs get lost in an engine's minima; a sum that is multiplied by 0 brings them back, as a NaN scale.
A head still answers with the floats as well: the device can go on from them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.codecs import affine
from compression.codecs.level_names import PREFIX, LevelNames, level_names
from compression.errors import NotEncodable
from compression.tensor import ONNX_OF, TensorSpec

LEAST_OPSET: Final = 8
"""From here on Min and Max broadcast. Below 13 the operators per channel are onnxruntime's own."""

ROUNDER: Final = 1.5 * 2.0**23
"""Added and taken away again it rounds a small float32 to even, as Round would, which is younger than many models."""

_OPSET_OF_AXIS: Final = 13
_AXES_OF_SUMS: Final = 13
_AXES_OF_EXTREMES: Final = 18
_MICROSOFT: Final = "com.microsoft"


def quantizing(model: onnx.ModelProto, tensors: Sequence[TensorSpec], n_levels: int) -> onnx.ModelProto:
    """A copy of a head that answers with the levels of these tensors too.

    Args:
        model: a graph that makes the tensors; those that are its inputs are left alone.
        tensors: what crosses.
        n_levels: 2 to 256.

    Raises:
        NotEncodable: too old an opset, or no tensor that can be quantized.
    """
    made = {name for node in model.graph.node for name in node.output}
    found = [(spec, names) for spec in tensors if spec.name in made and (names := level_names(spec))]
    _require(model, found)
    piece = _copied(model)
    graph = piece.graph
    answered = {value.name for value in graph.output}
    for spec, names in found:
        made_here = _quantize(names, len(spec.shape), _opset(model))
        graph.node.extend(made_here.nodes)
        graph.initializer.extend(made_here.weights)
        graph.output.extend(_values(spec, names))
        if spec.name not in answered:
            graph.output.append(helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape)))
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend(one for one in _constants(n_levels) if one.name in read)  # engines warn of the others
    return piece


def dequantizing(model: onnx.ModelProto, tensors: Sequence[TensorSpec]) -> onnx.ModelProto:
    """A copy of a tail that takes levels, scales and zero points where it took these tensors; any number of levels.

    Raises:
        NotEncodable: as `quantizing` does.
    """
    taken = {value.name for value in model.graph.input}
    found = [(spec, names) for spec in tensors if spec.name in taken and (names := level_names(spec))]
    _require(model, found)
    piece = _copied(model)
    graph = piece.graph
    replaced = {spec.name for spec, _ in found}
    inputs = [value for value in model.graph.input if value.name not in replaced]
    nodes = list(model.graph.node)
    del graph.input[:], graph.node[:]
    graph.input.extend(inputs)
    for spec, names in found:
        graph.input.extend(_values(spec, names))
        graph.node.append(_linear("DequantizeLinear", names.levels, names, spec.name, _opset(model)))
    graph.node.extend(nodes)
    return piece


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    piece = onnx.ModelProto()
    piece.CopyFrom(model)
    if _opset(model) < _OPSET_OF_AXIS and all(one.domain != _MICROSOFT for one in model.opset_import):
        piece.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return piece


def _require(model: onnx.ModelProto, found: Sequence[object]) -> None:
    if _opset(model) < LEAST_OPSET:
        raise NotEncodable(
            f"opset {_opset(model)} is too old, {LEAST_OPSET} is not; the codec computes the levels instead"
        )
    if not found:
        raise NotEncodable("none of the crossing tensors is FP32 of known size; the codec computes what it can")


def _opset(model: onnx.ModelProto) -> int:
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


def _values(spec: TensorSpec, names: LevelNames) -> list[onnx.ValueInfoProto]:
    per_channel = [] if names.axis is None else [spec.shape[names.axis]]
    return [
        helper.make_tensor_value_info(names.levels, ONNX_OF["UINT8"], list(spec.shape)),
        helper.make_tensor_value_info(names.scales, ONNX_OF["FP32"], per_channel),
        helper.make_tensor_value_info(names.zeros, ONNX_OF["UINT8"], per_channel),
    ]


def _constants(n_levels: int) -> list[onnx.TensorProto]:
    numbers = {
        "zero": 0.0,
        "step": affine.HEADROOM / (n_levels - 1),
        "spread": affine.SPREAD,
        "least": affine.LEAST_SCALE,
        "splitter": affine.SPLITTER,
        "rounder": ROUNDER,
    }
    return [numpy_helper.from_array(np.array(value, np.float32), f"{PREFIX}/{name}") for name, value in numbers.items()]


class _Nodes:
    """Appends nodes to a list; each makes one tensor, named after itself and the tensor that is quantized."""

    def __init__(self, names: LevelNames, opset: int) -> None:
        self._names = names
        self._opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, made: str = "", **attributes: int | list[int]) -> str:
        made = made or f"{PREFIX}/{operator}{len(self.nodes)}/{self._names.tensor}"
        node = helper.make_node(operator, list(inputs), [made], name=made)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return made

    def reduced(self, operator: str, source: str, axes: list[int]) -> str:
        """One of the reductions, whose axes became an input in opset 13 (sums) or 18 (the others)."""
        if self._opset < (_AXES_OF_SUMS if operator == "ReduceSum" else _AXES_OF_EXTREMES):
            return self.add(operator, source, axes=axes, keepdims=0)
        name = f"{PREFIX}/{operator}{len(self.nodes)}/axes/{self._names.tensor}"
        self.weights.append(numpy_helper.from_array(np.array(axes, np.int64), name))
        return self.add(operator, source, name, keepdims=0)


def _quantize(names: LevelNames, rank: int, opset: int) -> _Nodes:
    """`affine.quantized`, line by line."""
    graph = _Nodes(names, opset)
    others = [axis for axis in range(rank) if axis != names.axis]
    zero, step, spread, least, splitter, rounder = (
        f"{PREFIX}/{name}" for name in ("zero", "step", "spread", "least", "splitter", "rounder")
    )
    low = graph.add("Min", graph.reduced("ReduceMin", names.tensor, others), zero)
    high = graph.add("Max", graph.reduced("ReduceMax", names.tensor, others), zero)
    doubt = graph.add("Mul", graph.reduced("ReduceSum", names.tensor, others), zero)
    scales = graph.add("Mul", graph.add("Sub", high, low), step)
    if names.axis is None:
        scales = graph.add("Max", scales, least)
    else:
        floor = graph.add("Mul", graph.reduced("ReduceMax", scales, [0]), spread)
        scales = graph.add("Max", scales, floor, least)
    split = graph.add("Mul", graph.add("Add", scales, doubt), splitter)
    scales = graph.add("Sub", split, graph.add("Sub", split, scales), made=names.scales)
    zeros = graph.add("Neg", graph.add("Div", low, scales))
    zeros = graph.add("Sub", graph.add("Add", zeros, rounder), rounder)
    graph.add("Cast", zeros, made=names.zeros, to=TensorProto.UINT8)
    graph.nodes.append(_linear("QuantizeLinear", names.tensor, names, names.levels, opset))
    return graph


def _linear(operator: str, source: str, names: LevelNames, made: str, opset: int) -> onnx.NodeProto:
    domain = "" if opset >= _OPSET_OF_AXIS else _MICROSOFT
    node = helper.make_node(
        operator,
        [source, names.scales, names.zeros],
        [made],
        name=f"{PREFIX}/{operator}/{names.tensor}",
        domain=domain,
    )
    if names.axis is not None:
        node.attribute.append(helper.make_attribute("axis", names.axis))
    return node
