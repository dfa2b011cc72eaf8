"""A normalised graph as cuts see it: nodes that depend on the inputs, and the tensors between them."""

from collections.abc import Mapping
from dataclasses import dataclass

from compression.tensor import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator; control flow is one node with all that its bodies capture.

    Attributes:
        name: its first output that is not left out: unique in the graph, and the same wherever the file lies.
        op: operator type, with its domain where it is not ONNX's own.
        inputs: tensors read that depend on the graph's inputs, each once.
        outputs: tensors written, left-out ones skipped.
        work: FLOP proxy, see `hybrid.graph.work`.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphView:
    """Nodes in a topological order, and what is known of the tensors.

    Constants, and nodes that depend on constants alone, are left out: head and tail each keep those that they need.

    Attributes:
        nodes: each after the producers of its inputs.
        inputs: names of the graph's inputs, in graph order.
        outputs: names of the graph's outputs, in graph order.
        specs: tensors that can cross, with what is known of their shapes. One that is missing here (a sequence, a map,
            an optional, a datatype that the inference protocol does not name, a tensor of unknown rank) stays on one
            side.
        constant_outputs: graph outputs that depend on no input.
        n_unsized: how many tensors have a size that is known only at run time.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    specs: Mapping[str, TensorSpec]
    constant_outputs: frozenset[str]
    n_unsized: int
