"""Short names and no zero point twice: what int8 adds to a file beside its numbers."""

import onnx

from compression.quantization.editing import all_nodes

_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32)
"""Zero points, mostly. Scales stay apart: tensors that share one say by it that they share their levels."""
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def compact(placed: onnx.ModelProto) -> None:
    """Shorten the names that rounding brought, in place; tensors and nodes of the float model keep theirs."""
    _share(placed)
    given = {value.name for value in (*placed.graph.input, *placed.graph.output)}
    floats = {name for node in placed.graph.node if node.op_type not in _ROUNDING for name in node.output}
    taken = {name for node in all_nodes(placed.graph) for name in (*node.input, *node.output)}
    short: dict[str, str] = {}
    number = 0
    for node in placed.graph.node:
        if node.op_type not in _ROUNDING:
            continue
        node.name = ""
        for name in (*node.input, *node.output):
            if name in given or name in floats or name in short or not name:
                continue
            while f"q{number}" in taken:
                number += 1
            short[name] = f"q{number}"
            number += 1
    _rename(placed, short)


def _share(placed: onnx.ModelProto) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    kept = []
    answers = {value.name for value in placed.graph.output}
    for tensor in placed.graph.initializer:
        if tensor.name in answers or tensor.data_type not in _INTEGERS:
            kept.append(tensor)
            continue
        key = (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        same[tensor.name] = first.setdefault(key, tensor.name)
        if same[tensor.name] == tensor.name:
            kept.append(tensor)
    del placed.graph.initializer[:]
    placed.graph.initializer.extend(kept)
    _rename(placed, {name: other for name, other in same.items() if name != other})


def _rename(placed: onnx.ModelProto, names: dict[str, str]) -> None:
    for node in all_nodes(placed.graph):
        for part in (node.input, node.output):
            for at, name in enumerate(part):
                if name in names:
                    part[at] = names[name]
    for tensor in placed.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
