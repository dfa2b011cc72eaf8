"""Hypothesis draws small graphs; a slow oracle finds their best division by trying every set of nodes."""

from collections.abc import Iterator

from hypothesis import strategies as st

from compression.tensor import TensorSpec
from hybrid.graph.view import GraphView, Node


@st.composite
def graphs(draw, max_nodes: int = 7, max_inputs: int = 2) -> GraphView:
    """A graph of nodes that each read one to three tensors; what nobody reads is an output."""
    inputs = [f"in{number}" for number in range(draw(st.integers(1, max_inputs)))]
    made = list(inputs)
    nodes = []
    for number in range(draw(st.integers(1, max_nodes))):
        reads = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
        outputs = tuple(f"t{number}_{at}" for at in range(draw(st.sampled_from([1, 1, 1, 2]))))
        nodes.append(
            Node(name=outputs[0], op="Op", inputs=tuple(reads), outputs=outputs, work=draw(st.integers(0, 20)))
        )
        made += outputs
    read = {name for node in nodes for name in node.inputs}
    outputs = [name for node in nodes for name in node.outputs if name not in read] or [made[-1]]
    specs = {name: TensorSpec(name=name, dtype="UINT8", shape=(draw(st.integers(0, 20)),)) for name in made}
    return GraphView(
        nodes=tuple(nodes),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        specs=specs,
        constant_outputs=frozenset(),
        n_unsized=0,
    )


def heads(wiring) -> Iterator[frozenset[int]]:
    """Every set of nodes that is closed under ancestors."""
    n_nodes = len(wiring.work)
    needed = [
        sum(1 << maker for maker in {wiring.producer[tensor] for tensor in reads} if maker >= 0)
        for reads in wiring.reads
    ]
    for mask in range(1 << n_nodes):
        if all(needed[node] & mask == needed[node] for node in range(n_nodes) if mask >> node & 1):
            yield frozenset(node for node in range(n_nodes) if mask >> node & 1)


def least_on_prefixes(wiring, orders, head_costs, tail_costs, crossing_costs) -> int:
    """The least cost over all prefixes of the orders, the empty and the full one included."""
    best = None
    for order in orders:
        waiting = [len(readers) for readers in wiring.consumers]
        alive = sum(crossing_costs[t] for t, maker in enumerate(wiring.producer) if maker < 0 and waiting[t])
        total = sum(tail_costs)
        best = total + alive if best is None else min(best, total + alive)
        for node in order:
            total += head_costs[node] - tail_costs[node]
            for tensor in wiring.reads[node]:
                waiting[tensor] -= 1
                alive -= 0 if waiting[tensor] else crossing_costs[tensor]
            alive += sum(crossing_costs[tensor] for tensor in wiring.makes[node] if waiting[tensor])
            best = min(best, total + alive)
    return best
