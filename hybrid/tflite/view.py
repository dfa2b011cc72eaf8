"""A TensorFlow Lite graph as cuts see it: constants left out, all that remembers between runs as one node.

Design: what depends on constants alone (weights that are unpacked by DENSIFY or DEQUANTIZE at the first run) is no
node: head and tail each keep what they need of it. Variables have no edges: who reads one and who writes it is known by
their order alone. So every operator that remembers, and all that they depend on, is one node which reads a made-up
input that cannot cross: no cut before it exists, the head keeps it whole, and the head runs once a request.
"""

from dataclasses import dataclass
from typing import Any, Final

from compression.tensor import TensorSpec
from hybrid.graph.view import GraphView, Node
from hybrid.tflite.model_file import Model, schema
from hybrid.tflite.operators import is_random, is_stateful, op_name, work_of

STATE: Final = "hybrid/state"
"""The made-up input of the node that remembers."""

_DATATYPES: Final = {
    "FLOAT32": "FP32", "FLOAT16": "FP16", "FLOAT64": "FP64", "BOOL": "BOOL", "INT8": "INT8", "INT16": "INT16",
    "INT32": "INT32", "INT64": "INT64", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Operator:
    """One operator by number of tensors; `reads` holds only those that depend on the inputs."""

    op: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    work: float
    keeps_state: bool


def stateful_operators(model: Model) -> list[Any]:
    """The operators that remember, in their order."""
    graph = model.subgraphs[0]
    return [operator for operator in graph.operators if is_stateful(model, graph, operator)]


def read_view(model: Model, unsized: frozenset[int]) -> GraphView:
    """The view of a bound graph.

    Args:
        model: with names and shapes as `bind` wrote them.
        unsized: tensors whose size only the data decides.
    """
    graph = model.subgraphs[0]
    names = [tensor.name for tensor in graph.tensors]
    inputs = list(dict.fromkeys(map(int, graph.inputs)))
    outputs = list(dict.fromkeys(map(int, graph.outputs)))
    found, dynamic = _operators(model, set(inputs))
    kept = _live(found, outputs)
    remembering = _with_ancestors(kept)
    nodes = [_node(one, names) for one in kept if one not in remembering]
    if remembering:
        nodes.insert(0, _joined(kept, remembering, outputs, names))
    specs = {names[i]: spec for i in dynamic if (spec := _spec(graph.tensors[i], names[i], i in unsized)) is not None}
    return GraphView(
        nodes=tuple(nodes),
        inputs=(*(names[index] for index in inputs), *((STATE,) if remembering else ())),
        outputs=tuple(names[index] for index in outputs),
        specs=specs,
        constant_outputs=frozenset(names[index] for index in outputs if index not in dynamic),
        n_unsized=len(unsized & dynamic),
    )


def _operators(model: Model, dynamic: set[int]) -> tuple[list[_Operator], set[int]]:
    """The operators that depend on the inputs or remember, and all tensors that do."""
    graph = model.subgraphs[0]
    shapes = [tuple(map(int, tensor.shape)) if tensor.shape is not None else () for tensor in graph.tensors]
    found = []
    for operator in graph.operators:
        reads = [int(index) for index in operator.inputs if index >= 0]
        makes = tuple(int(index) for index in operator.outputs)
        needs = tuple(dict.fromkeys(index for index in reads if index in dynamic))
        keeps_state = is_stateful(model, graph, operator)
        if needs or keeps_state or is_random(model, operator):
            name = op_name(model, operator)
            work = work_of(name, [shapes[index] for index in reads], [shapes[index] for index in makes])
            found.append(_Operator(name, needs, makes, work, keeps_state))
            dynamic.update(makes)
    return found, dynamic


def _live(found: list[_Operator], outputs: list[int]) -> list[_Operator]:
    """Those that an output needs, and those that remember with all that they need."""
    wanted = set(outputs)
    kept = []
    for one in reversed(found):
        if one.keeps_state or not wanted.isdisjoint(one.makes):
            kept.append(one)
            wanted.update(one.reads)
    return kept[::-1]


def _with_ancestors(kept: list[_Operator]) -> list[_Operator]:
    wanted: set[int] = set()
    found = []
    for one in reversed(kept):
        if one.keeps_state or not wanted.isdisjoint(one.makes):
            found.append(one)
            wanted.update(one.reads)
    return found[::-1]


def _node(one: _Operator, names: list[str]) -> Node:
    return Node(
        name=names[one.makes[0]],
        op=one.op,
        inputs=tuple(names[index] for index in one.reads),
        outputs=tuple(names[index] for index in one.makes),
        work=one.work,
    )


def _joined(kept: list[_Operator], joined: list[_Operator], outputs: list[int], names: list[str]) -> Node:
    made = {index for one in joined for index in one.makes}
    used = {index for one in kept if one not in joined for index in one.reads} | set(outputs)
    reads = dict.fromkeys(index for one in joined for index in one.reads if index not in made)
    makes = tuple(names[index] for one in joined for index in one.makes if index in used)
    return Node(
        name=makes[0] if makes else STATE,
        op="+".join(dict.fromkeys(one.op for one in joined if one.keeps_state)),
        inputs=(*(names[index] for index in reads), STATE),
        outputs=makes,
        work=sum(one.work for one in joined),
    )


def _spec(tensor: Any, name: str, is_unsized: bool) -> TensorSpec | None:  # noqa: FBT001 (private)
    codes = vars(schema().TensorType)
    kind = next((word for word, code in codes.items() if code == tensor.type and not word.startswith("_")), "")
    if kind not in _DATATYPES:
        return None
    shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
    return TensorSpec(name=name, dtype=_DATATYPES[kind], shape=(None,) * len(shape) if is_unsized else shape)
