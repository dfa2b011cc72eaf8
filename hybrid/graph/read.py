"""Reads a normalised ONNX graph into a `GraphView`."""

from collections.abc import Mapping

import onnx

from compression.tensor import DATATYPE_OF_ONNX, TensorSpec
from hybrid.graph.model_file import bodies_of, needs_of
from hybrid.graph.view import GraphView, Node
from hybrid.graph.work import work_of

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def read_view(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto]) -> GraphView:
    """The view of this graph, given the types of its tensors (see `hybrid.graph.shapes.infer`)."""
    graph = model.graph
    shapes = {name: shape for name, kind in types.items() if (shape := _shape_of(kind)) is not None}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    kept = _live_nodes(graph)
    dynamic = {value.name for value in graph.input}
    nodes = []
    for node in kept:
        needs = dict.fromkeys(name for name in needs_of(node) if name in dynamic)
        outputs = tuple(name for name in node.output if name)
        if needs or is_random(node):
            dynamic.update(outputs)
            op = f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            work = work_of(node, shapes)
            nodes.append(Node(name=outputs[0], op=op, inputs=tuple(needs), outputs=outputs, work=work))
    specs = {name: spec for name in dynamic if name in types and (spec := spec_of(name, types[name])) is not None}
    outputs = tuple(value.name for value in graph.output)
    return GraphView(
        nodes=tuple(nodes),
        inputs=tuple(value.name for value in graph.input),
        outputs=outputs,
        specs=specs,
        constant_outputs=frozenset(name for name in outputs if name not in dynamic),
        n_unsized=sum(name not in specs or specs[name].n_bytes is None for name in dynamic),
    )


def is_random(node: onnx.NodeProto) -> bool:
    """Whether two runs of this node may differ: it must never be computed on both sides."""
    return node.op_type in _RANDOM or any(is_random(inner) for body in bodies_of(node) for inner in body.node)


def spec_of(name: str, kind: onnx.TypeProto) -> TensorSpec | None:
    """What crosses for a tensor of this type, or None where nothing can."""
    shape = _shape_of(kind)
    dtype = DATATYPE_OF_ONNX.get(kind.tensor_type.elem_type) if kind.HasField("tensor_type") else None
    return None if shape is None or dtype is None else TensorSpec(name=name, dtype=dtype, shape=shape)


def _shape_of(kind: onnx.TypeProto) -> tuple[int | None, ...] | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim)


def _live_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that some graph output needs, in graph order."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(needs_of(node))
    return kept[::-1]
