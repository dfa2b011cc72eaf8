"""A graph as numbers: which node makes and which nodes read each tensor that can cross."""

from dataclasses import dataclass

from hybrid.graph.view import GraphView

FROM_OUTSIDE = -1
"""Producer of the graph's inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Nodes 0..n-1 in the view's order and tensors 0..m-1, the graph's inputs first.

    Attributes:
        names: of the tensors.
        producer: node that makes each tensor, or `FROM_OUTSIDE`.
        consumers: nodes that read each tensor, each once.
        n_bytes: raw bytes of each tensor, or None where they are unknown before a run or where it cannot cross.
        crossable: whether each tensor can cross at all.
        reads: tensors that each node reads.
        makes: tensors that each node makes.
        work: of each node.
        is_output: whether each tensor is an output of the graph.
    """

    names: tuple[str, ...]
    producer: tuple[int, ...]
    consumers: tuple[tuple[int, ...], ...]
    n_bytes: tuple[int | None, ...]
    crossable: tuple[bool, ...]
    reads: tuple[tuple[int, ...], ...]
    makes: tuple[tuple[int, ...], ...]
    work: tuple[float, ...]
    is_output: tuple[bool, ...]


def wire(view: GraphView) -> Wiring:
    """The numbers of this view; O(nodes + edges)."""
    index: dict[str, int] = {}
    producer: list[int] = []
    for name in view.inputs:
        index[name] = len(index)
        producer.append(FROM_OUTSIDE)
    for number, node in enumerate(view.nodes):
        for name in node.outputs:
            index[name] = len(index)
            producer.append(number)
    reads = tuple(tuple(index[name] for name in node.inputs) for node in view.nodes)
    consumers: list[list[int]] = [[] for _ in index]
    for number, tensors in enumerate(reads):
        for tensor in tensors:
            consumers[tensor].append(number)
    specs = [view.specs.get(name) for name in index]
    outputs = set(view.outputs)
    return Wiring(
        names=tuple(index),
        producer=tuple(producer),
        consumers=tuple(map(tuple, consumers)),
        n_bytes=tuple(None if spec is None else spec.n_bytes for spec in specs),
        crossable=tuple(spec is not None for spec in specs),
        reads=reads,
        makes=tuple(tuple(index[name] for name in node.outputs) for node in view.nodes),
        work=tuple(node.work for node in view.nodes),
        is_output=tuple(name in outputs for name in index),
    )


def ancestors(wiring: Wiring) -> list[int]:
    """For each node, the bit mask of itself and all nodes that it depends on."""
    above: list[int] = []
    for node, tensors in enumerate(wiring.reads):
        mask = 1 << node
        for tensor in tensors:
            if wiring.producer[tensor] != FROM_OUTSIDE:
                mask |= above[wiring.producer[tensor]]
        above.append(mask)
    return above
