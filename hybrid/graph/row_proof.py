"""Proves of a graph that row i of its outputs is made of row i of its inputs alone, however many rows there are.

Design: a batch that mixes rows answers wrongly for inputs that no trial had, so measuring is not enough. The graph is
read once from inputs to outputs, with a fact for every tensor (`row_facts.py`) and a rule for every operator that was
examined (`row_rules.py`); what no rule covers is refused. Sizes that the rules do not compute come from onnx's
inference of the single node, and are held against what the rules say.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from hybrid.errors import ModelUnsupported
from hybrid.graph.model_file import needs_of
from hybrid.graph.row_counts import MAX_ELEMENTS, elements, fold
from hybrid.graph.row_facts import TRIAL_ROWS, Count, Fact, Fixed, Rows, Step
from hybrid.graph.row_moves import MAKERS
from hybrid.graph.row_rules import RULES

PROOF_VERSION: Final = 1
"""Raise it when a rule changes: verdicts that were kept with another one are not believed."""

_OPSETS: Final = range(7, 24)
"""Versions of the standard operators that the rules were written for; before 7 broadcasting was another."""

_STANDARD: Final = ("", "ai.onnx")


def prove_rows(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Return where rows are proved to be apart.

    Args:
        model: the graph that will run batches, its leading dimensions open; not changed.
        shapes: of one row of each input, behind the leading dimension; the proof holds for these alone.

    Raises:
        ModelUnsupported: no proof; the message names the operator at which it ends.
    """
    reading = _Reading(_version(model))
    graph = model.graph
    for tensor in graph.initializer:
        reading.note(tensor.name, _weight(tensor), tensor.data_type)
    for value in graph.input:
        if value.name not in reading.facts:
            if value.name not in shapes:
                raise ModelUnsupported(f"input {value.name!r} is none that has rows")
            reading.note(value.name, Rows((Count(1), *shapes[value.name])), value.type.tensor_type.elem_type)
    for node in _needed(graph):
        reading.read(node)
    for value in graph.output:
        found = reading.facts.get(value.name)
        if not isinstance(found, Rows) or found.axis != 0 or found.count != Count(1):
            raise ModelUnsupported(f"output {value.name!r} does not have one row for each row of the inputs")


class _Reading:
    """A graph that is read from its inputs on.

    Attributes:
        facts: what is known of each tensor so far.
    """

    def __init__(self, version: int) -> None:
        self.facts: dict[str, Fact] = {}
        self._kinds: dict[str, int] = {}
        self._version = version

    def note(self, name: str, fact: Fact, kind: int) -> None:
        """A tensor and its element type."""
        self.facts[name] = fact
        self._kinds[name] = kind

    def read(self, node: onnx.NodeProto) -> None:
        """Take the next node; those before it were read."""
        unknown = [name for name in node.input if name and name not in self.facts]
        if unknown:
            raise ModelUnsupported(f"{node.op_type}: nothing is known of the rows of {unknown[0]!r}")
        inferred = self._inferred(node)
        sizes = {name: size for name, (_, size) in inferred.items() if size is not None}
        step = Step(node, self._version, [self.facts[name] if name else None for name in node.input], sizes)
        if node.domain not in _STANDARD:
            step.refuse(f"operators of {node.domain} were not examined")
        for name, fact in zip(node.output, _after(step, node), strict=False):
            if not name:
                continue
            self.note(name, fact, inferred.get(name, (0, None))[0])

    def _inferred(self, node: onnx.NodeProto) -> dict[str, tuple[int, tuple[int, ...] | None]]:
        """Element types and sizes of a node's outputs for `TRIAL_ROWS` rows, as far as onnx can tell."""
        types: dict[str, onnx.TypeProto] = {}
        values: dict[str, onnx.TensorProto] = {}
        for name in filter(None, node.input):
            fact, kind = self.facts[name], self._kinds[name]
            if kind and fact.shape is not None:
                types[name] = onnx.helper.make_tensor_type_proto(kind, [_tried(size) for size in fact.shape])
                if isinstance(fact, Fixed) and fact.value is not None:
                    tried = np.array([_tried(item) for item in fact.value.flat]).reshape(fact.value.shape)
                    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
                    values[name] = numpy_helper.from_array(tried.astype(dtype), name)
        try:
            schema = onnx.defs.get_schema(node.op_type, self._version, "")
            opsets = [onnx.helper.make_opsetid("", self._version)]
            found = infer_node_outputs(schema, node, types, values, opset_imports=opsets)
        except (
            onnx.defs.SchemaError,
            InferenceError,
            ValidationError,
            KeyError,
            RuntimeError,
            ValueError,
            TypeError,
            OverflowError,
        ):
            return {}
        return {name: (kind.tensor_type.elem_type, _sizes_of(kind)) for name, kind in found.items()}


def _after(step: Step, node: onnx.NodeProto) -> list[Fact]:
    """The facts of a node's outputs; those that no rule speaks of are missing."""
    rule = RULES.get(step.op)
    if rule is None and step.op != "Constant":
        step.refuse("this operator was not examined, or it does mix them")
    try:
        if rule is None:
            return [_constant(step, node)]
        if step.op in MAKERS or any(isinstance(fact, Rows) for fact in step.inputs):
            return rule(step)
        return list(fold(step))
    except (TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError) as exc:
        step.refuse(f"its sizes and attributes do not fit ({exc})")


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that outputs depend on, in the graph's order, which is a topological one."""
    wanted = {value.name for value in graph.output}
    found: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(needs_of(node))
    return found[::-1]


def _version(model: onnx.ModelProto) -> int:
    version = next((opset.version for opset in model.opset_import if opset.domain in _STANDARD), 0)
    if version not in _OPSETS:
        raise ModelUnsupported(f"opset {version} was not examined for batches; {_OPSETS[0]} to {_OPSETS[-1]} were")
    if model.functions or model.graph.sparse_initializer:
        raise ModelUnsupported("a model with functions or sparse weights was not examined for batches")
    return int(version)


def _weight(tensor: onnx.TensorProto) -> Fixed:
    shape = tuple(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(shape, dtype=np.int64)) > MAX_ELEMENTS:
        return Fixed(shape)
    return Fixed(shape, elements(numpy_helper.to_array(tensor)))


def _constant(step: Step, node: onnx.NodeProto) -> Fixed:
    (attribute,) = node.attribute
    if attribute.name == "value":
        return _weight(attribute.t)
    if attribute.name not in ("value_int", "value_ints", "value_float", "value_floats"):
        step.refuse(f"a constant of {attribute.name}")
    array = np.array(onnx.helper.get_attribute_value(attribute))
    return Fixed(array.shape, elements(array))


def _tried(size: Any) -> Any:
    return TRIAL_ROWS * size.k if isinstance(size, Count) else size


def _sizes_of(kind: onnx.TypeProto) -> tuple[int, ...] | None:
    dims = kind.tensor_type.shape.dim
    is_known = kind.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if is_known else None
