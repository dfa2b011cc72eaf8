"""Proves of a graph that row i of its outputs is made of row i of its inputs alone, however many rows there are.

Design: a batch that mixes rows answers wrongly for inputs that no trial had, so measuring is not enough. The graph is
read once from inputs to outputs, with a fact for every tensor (`row_facts.py`) and a rule for every operator that was
examined (`row_rules.py`); what no rule covers is refused, and so is whatever computes with sizes: graphs come here
bound and folded. Nothing is inferred: sizes are those that the engine gives every tensor in two runs, of twice and of
three times a request's rows, and constants are those that the graph stores.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from hybrid.errors import ModelUnsupported
from hybrid.graph.model_file import needs_of
from hybrid.graph.row_facts import Fact, Fixed, Measured, Rows, Step
from hybrid.graph.row_rules import RULES

PROOF_VERSION: Final = 2
"""Raise it when a rule changes: verdicts that were kept with another one are not believed."""

_OPSETS: Final = range(7, 24)
"""Versions of the standard operators that the rules were written for; before 7 broadcasting was another."""

_STANDARD: Final = ("", "ai.onnx")
_TIMES: Final = (2, 3)
_MAX_NODES: Final = 20_000
_MAX_RANK: Final = 16
_MAX_BYTES: Final = 1 << 30
"""Of all tensors of one run together: they are held at once while their sizes are taken."""

_MAX_VALUES: Final = 64
"""Elements of a stored tensor that are looked at."""

Feeds = Mapping[str, np.ndarray]


def prove_rows(model: onnx.ModelProto, folder: Path, feeds: Feeds) -> None:
    """Return where rows are proved to be apart.

    Args:
        model: the bound graph that will run batches, its leading dimensions open; not changed.
        folder: where its weights lie.
        feeds: a request that ran; the proof holds for others of exactly its shapes, any number of them together.

    Raises:
        ModelUnsupported: no proof; the message names the operator at which it ends.
    """
    version = _checked(model)
    graph = model.graph
    nodes = _needed(graph)
    n_rows = _common_rows(feeds)
    measured = tuple(
        Measured(n_rows=times * n_rows, sizes=measured_sizes(model, folder, _repeated(feeds, times)))
        for times in _TIMES
    )
    facts: dict[str, Fact] = {tensor.name: _stored(tensor) for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in feeds:
            raise ModelUnsupported(f"input {value.name!r} is none that has rows")
        facts[value.name] = Rows(0, 1, (_TIMES[0] * n_rows, *feeds[value.name].shape[1:]))
    for node in nodes:
        if node.domain not in _STANDARD:
            raise ModelUnsupported(f"{node.op_type}: operators of {node.domain} were not examined for rows")
        missing = [name for name in node.input if name and name not in facts]
        if missing:
            raise ModelUnsupported(f"{node.op_type}: nothing is known of the rows of {missing[0]!r}")
        step = Step(node, version, [facts[name] if name else None for name in node.input], measured)
        facts |= {name: fact for name, fact in zip(node.output, _after(step, node), strict=False) if name}
    for value in graph.output:
        found = facts.get(value.name)
        if not isinstance(found, Rows) or (found.axis, found.k) != (0, 1):
            raise ModelUnsupported(f"output {value.name!r} does not have one row for each row of the inputs")


def measured_sizes(model: onnx.ModelProto, folder: Path, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The sizes of what every node gives, from a run of the engine without any optimisation.

    Raises:
        ModelUnsupported: the engine does not run it so.
    """
    names = [name for node in _needed(model.graph) for name in node.output if name]
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    del asked.graph.value_info[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # it can wait; requests cannot
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    try:
        session = ort.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(names, dict(feeds))
    except Exception as exc:  # onnxruntime raises what it likes
        raise ModelUnsupported(f"its rows were not proved apart: the engine does not run it in parts ({exc})") from exc
    if not all(isinstance(array, np.ndarray) and array.ndim <= _MAX_RANK for array in found):
        raise ModelUnsupported("its rows were not proved apart: a tensor is none, or of too many dimensions")
    if sum(array.nbytes for array in found) > _MAX_BYTES:
        raise ModelUnsupported(f"its rows were not proved apart: its tensors take more than {_MAX_BYTES} bytes")
    return {name: tuple(array.shape) for name, array in zip(names, found, strict=True)}


def _after(step: Step, node: onnx.NodeProto) -> list[Fact]:
    """The facts of a node's outputs; those that no rule speaks of are missing."""
    if step.op == "Constant":
        return [_constant(step, node)]
    rule = RULES.get(step.op)
    if rule is None:
        step.refuse("this operator was not examined, or it does mix them")
    try:
        if any(isinstance(fact, Rows) for fact in step.inputs):
            return rule(step)
        return [step.fixed(index) for index, name in enumerate(step.outputs) if name]
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError) as exc:
        step.refuse(f"its sizes and attributes do not fit ({exc!r})")


def _checked(model: onnx.ModelProto) -> int:
    """The opset; nothing in the graph may have two meanings."""
    versions = [opset.version for opset in model.opset_import if opset.domain in _STANDARD]
    graph = model.graph
    if len(versions) != 1 or versions[0] not in _OPSETS:
        raise ModelUnsupported(f"opsets {versions} were not examined for rows; one of {_OPSETS[0]} to {_OPSETS[-1]} is")
    if model.functions or graph.sparse_initializer or len(graph.node) > _MAX_NODES:
        raise ModelUnsupported("functions, sparse weights, or too many nodes: not examined for rows")
    _need_distinct("tensor", _names(graph))
    for node in graph.node:
        _need_distinct(f"attribute of {node.op_type}", (attribute.name for attribute in node.attribute))
    return int(versions[0])


def _names(graph: onnx.GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output if name]
    return [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer] + made


def _need_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelUnsupported(f"{what} {name!r} is there twice; which one counts for rows is the engine's secret")
        seen.add(name)


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that outputs depend on, in the graph's order, which is a topological one."""
    wanted = {value.name for value in graph.output}
    found: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(needs_of(node))
    return found[::-1]


def _stored(tensor: onnx.TensorProto) -> Fixed:
    shape = tuple(tensor.dims)
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL)
    is_here = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type in whole
    if not is_here or int(np.prod(shape, dtype=np.int64)) > _MAX_VALUES:
        return Fixed(shape)
    values: list[Any] = numpy_helper.to_array(tensor).reshape(-1).tolist()
    return Fixed(shape, tuple(values))


def _constant(step: Step, node: onnx.NodeProto) -> Fixed:
    if len(node.attribute) != 1 or node.attribute[0].name != "value":
        step.refuse("it is stored in another form than a tensor")
    return _stored(node.attribute[0].t)


def _common_rows(feeds: Feeds) -> int:
    found = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    if len(found) != 1 or 0 in found:
        raise ModelUnsupported("the inputs have no common number of rows in front")
    return found.pop()


def _repeated(feeds: Feeds, times: int) -> dict[str, np.ndarray]:
    return {name: np.concatenate([array] * times) for name, array in feeds.items()}
