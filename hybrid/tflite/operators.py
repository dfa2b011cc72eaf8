"""What cuts must know of operators: which it is, what it remembers, which other graphs it runs, how much it does."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, Final

from hybrid.tflite.model_file import Model, schema
from hybrid.tflite.names import text

_STATEFUL: Final = frozenset({
    "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT",
    "HASHTABLE_SIZE",
})  # fmt: skip
_RANDOM: Final = frozenset({"MULTINOMIAL", "RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "STABLEHLO_RNG_BIT_GENERATOR"})
_FREE: Final = frozenset({
    "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "RANK", "IDENTITY", "BITCAST", "VAR_HANDLE", "CALL_ONCE", "DENSIFY",
})  # fmt: skip
_CONVOLUTIONS: Final = {"CONV_2D": slice(1, None), "DEPTHWISE_CONV_2D": slice(1, 3), "CONV_3D": slice(0, -1)}
"""Which sizes of the weights are summed over for one value."""

SHAPED_BY: Final = {
    "RESHAPE": (1,), "TILE": (1,), "PAD": (1,), "PADV2": (1,), "MIRROR_PAD": (1,), "FILL": (0,), "RANGE": (0, 1, 2),
    "BROADCAST_TO": (1,), "SLICE": (1, 2), "STRIDED_SLICE": (1, 2, 3), "RESIZE_BILINEAR": (1,), "SPLIT_V": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,), "TRANSPOSE_CONV": (0,), "ONE_HOT": (1,), "SPACE_TO_BATCH_ND": (1, 2),
    "BATCH_TO_SPACE_ND": (1, 2), "EXPAND_DIMS": (1,), "TRANSPOSE": (1,), "SCATTER_ND": (2,), "SPARSE_TO_DENSE": (1,),
    "SUM": (1,), "MEAN": (1,), "REDUCE_MAX": (1,), "REDUCE_MIN": (1,), "REDUCE_PROD": (1,), "REDUCE_ANY": (1,),
    "REDUCE_ALL": (1,), "TOPK_V2": (1,), "DYNAMIC_UPDATE_SLICE": (),
}  # fmt: skip
"""Operators whose result has a shape that the values of these inputs decide."""

_DATA_SIZED: Final = frozenset({"WHERE", "UNIQUE", "IF", "WHILE", "CALL", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE"})
"""Operators whose result may have a shape that no input's shape decides."""


@cache
def _names() -> dict[int, str]:
    codes = vars(schema().BuiltinOperator)
    return {value: name for name, value in codes.items() if isinstance(value, int) and name[0] != "_"}


def op_name(model: Model, operator: Any) -> str:
    """The operator's name; a custom one with `custom:` before it."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    name = _names().get(number, f"OPERATOR_{number}")
    return f"custom:{text(code.customCode)}" if name == "CUSTOM" else name


def inner_graphs(operator: Any) -> list[tuple[Any, str, int | None]]:
    """Each reference of an operator to another graph: the object that holds it, its field, its place in a list."""
    found: list[tuple[Any, str, int | None]] = []
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for field, value in vars(options).items() if options is not None else ():
            if field.endswith("SubgraphIndex") or field in ("subgraph", "initSubgraphIndex"):
                if isinstance(value, int) and value >= 0:
                    found.append((options, field, None))
            elif field in ("branchIndices", "bodySubgraphIndices") and value is not None:
                found += [(options, field, at) for at in range(len(value))]
    return found


def graphs_run_by(operator: Any) -> list[int]:
    """Numbers of the graphs that an operator runs itself."""
    return [
        int(getattr(options, field) if at is None else getattr(options, field)[at])
        for options, field, at in inner_graphs(operator)
    ]


def is_stateful(model: Model, graph: Any, operator: Any) -> bool:
    """Whether a run of this operator leaves something behind for the next run."""
    if op_name(model, operator) in _STATEFUL:
        return True
    if any(graph.tensors[int(index)].isVariable for index in operator.inputs if index >= 0):
        return True
    inner = [model.subgraphs[number] for number in graphs_run_by(operator)]
    return any(is_stateful(model, body, found) for body in inner for found in body.operators or ())


def is_random(model: Model, operator: Any) -> bool:
    """Whether two runs of this operator may differ."""
    if op_name(model, operator) in _RANDOM:
        return True
    inner = [model.subgraphs[number] for number in graphs_run_by(operator)]
    return any(is_random(model, found) for body in inner for found in body.operators or ())


def may_be_data_sized(name: str) -> bool:
    """Whether the shape of what an operator makes may follow from values that nobody looks into."""
    return name in _DATA_SIZED or name.startswith("custom:")


def work_of(name: str, inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> float:
    """A proxy for the operator's floating point operations, from the shapes of all that it reads and makes."""
    if name in _FREE:
        return 0.0
    n_out = float(sum(prod(shape) for shape in outputs))
    weight = inputs[1] if len(inputs) > 1 else ()
    if name in _CONVOLUTIONS:
        return 2.0 * n_out * prod(weight[_CONVOLUTIONS[name]])
    if name == "TRANSPOSE_CONV" and len(inputs) > 2:
        return 2.0 * prod(inputs[2]) * prod(weight[:3])
    if name == "FULLY_CONNECTED":
        return 2.0 * n_out * (weight[-1] if weight else 1)
    if name == "BATCH_MATMUL":
        return 2.0 * n_out * (inputs[0][-1] if inputs and inputs[0] else 1)
    if name.endswith(("LSTM", "RNN")):
        return 2.0 * sum(prod(shape) for shape in inputs[1:] if len(shape) == 2) * max(1, prod(inputs[0][:-1]))
    return float(max(n_out, prod(inputs[0]) if inputs else 0))
