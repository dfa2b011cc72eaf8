"""Writes the head and tail models of a cut: small ONNX graphs that refer to the one weights file beside them.

A TensorFlow Lite file holds its weights itself: those of a head and a tail are copied into it, when it is first wanted.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from compression.tensor import ONNX_OF, TensorSpec
from hybrid.errors import ModelUnsupported
from hybrid.graph.model_file import load_proto, needs_of
from hybrid.partition.cut import SIDES, Cut, CutTable, Side
from hybrid.partition.store import piece_name, write_whole

TFLITE_SUFFIX = ".tflite"


def head_model(model: onnx.ModelProto, cut: Cut) -> onnx.ModelProto:
    """The graph from the model's inputs to the cut's tensors and to the outputs that the head answers with."""
    given = {value.name for value in model.graph.input}
    crossing = [spec for spec in cut.tensors if spec.name not in given]
    names = list(dict.fromkeys([spec.name for spec in crossing] + list(cut.head_outputs)))
    return _between(model, stop_at=given, inputs=list(model.graph.input), outputs=names, specs=cut.tensors)


def tail_model(model: onnx.ModelProto, cut: Cut) -> onnx.ModelProto:
    """The graph from the cut's tensors to the model's remaining outputs."""
    given = {value.name: value for value in model.graph.input}
    inputs = [given[spec.name] if spec.name in given else _value_of(spec) for spec in cut.tensors]
    stop_at = {spec.name for spec in cut.tensors}
    return _between(model, stop_at=stop_at, inputs=inputs, outputs=list(cut.tail_outputs), specs=cut.tensors)


def segment_model(model: onnx.ModelProto, shallow: Cut, deeper: Cut) -> onnx.ModelProto:
    """The graph from a cut's tensors to those of a deeper cut that are not among them.

    Raises:
        ModelUnsupported: the shallow cut's tensors do not determine the deeper ones.
    """
    given = {value.name: value for value in model.graph.input}
    inputs = [given[spec.name] if spec.name in given else _value_of(spec) for spec in shallow.tensors]
    stop_at = {spec.name for spec in shallow.tensors}
    outputs = [spec.name for spec in deeper.tensors if spec.name not in stop_at]
    specs = (*shallow.tensors, *deeper.tensors)
    return _between(model, stop_at=stop_at, inputs=inputs, outputs=outputs, specs=specs)


def write_piece(graph_path: Path, cut: Cut, side: Side, path: Path) -> None:
    """Write one side of a cut of the graph at `graph_path`.

    Raises:
        DiskFull: no room; nothing is left behind.
    """
    if graph_path.suffix == TFLITE_SUFFIX:
        write_whole(path, _tflite_piece(graph_path, cut, side))
    else:
        _write(load_proto(graph_path), cut, side, path)


def _tflite_piece(graph_path: Path, cut: Cut, side: Side) -> bytes:
    from hybrid.tflite.model_file import read
    from hybrid.tflite.piece import head_file, tail_file

    crossing = [spec.name for spec in cut.tensors]
    model = read(graph_path)
    return (
        head_file(model, crossing, cut.head_outputs) if side == "head" else tail_file(model, crossing, cut.tail_outputs)
    )


def write_pieces(model: onnx.ModelProto, table: CutTable, folder: Path) -> None:
    """Write both sides of every interior cut that is worth timing.

    Raises:
        DiskFull: no room.
    """
    for cut in table.interior:
        if cut.id in table.pareto:
            for side in SIDES:
                _write(model, cut, side, folder / piece_name(side, cut.id))


def _write(model: onnx.ModelProto, cut: Cut, side: Side, path: Path) -> None:
    piece = head_model(model, cut) if side == "head" else tail_model(model, cut)
    write_whole(path, piece.SerializeToString(deterministic=True))


def _between(
    model: onnx.ModelProto,
    *,
    stop_at: Iterable[str],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    specs: Sequence[TensorSpec],
) -> onnx.ModelProto:
    graph = model.graph
    known = set(stop_at)
    wanted = {name for name in outputs if name not in known}
    kept = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(name for name in node.output if name not in known):
            kept.append(node)
            wanted.update(name for name in needs_of(node) if name not in known)
    made = {name for node in kept for name in node.output}
    weights = [tensor for tensor in graph.initializer if tensor.name in wanted]
    sparse = [tensor for tensor in graph.sparse_initializer if tensor.values.name in wanted]
    missing = wanted - made - {t.name for t in weights} - {t.values.name for t in sparse}
    if missing:
        raise ModelUnsupported(
            f"the cut's tensors do not determine the rest of the graph: {sorted(missing)[:3]} would be needed too"
        )
    declared = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
    declared |= {spec.name: _value_of(spec) for spec in specs}
    piece = onnx.ModelProto(ir_version=model.ir_version, producer_name="hybrid")
    piece.opset_import.extend(model.opset_import)
    piece.functions.extend(model.functions)
    piece.graph.name = graph.name or "graph"
    piece.graph.node.extend(reversed(kept))
    piece.graph.initializer.extend(weights)
    piece.graph.sparse_initializer.extend(sparse)
    piece.graph.input.extend(inputs)
    piece.graph.output.extend(declared.get(name) or onnx.ValueInfoProto(name=name) for name in outputs)
    return piece


def _value_of(spec: TensorSpec) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(spec.name, ONNX_OF[spec.dtype], list(spec.shape))
