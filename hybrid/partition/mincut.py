"""The cheapest division of a graph between head and tail, exactly: a minimum s-t cut (Dinic's algorithm, integers).

The network (DADS, INFOCOM 2019, with three repairs): node v costs `head_costs[v]` on the source's side and
`tail_costs[v]` on the sink's. A tensor that is read more than once hangs on a vertex of its own, so that it is paid
once. An edge without limit leads from each reader back to the maker, so that nothing flows from tail to head. The
graph's inputs are made at the source. Capacities are integers (say nanoseconds): with floats a solver can return a cut
that is not the least.
"""

from collections import deque
from collections.abc import Collection, Container, Mapping, Sequence

from hybrid.partition.wiring import FROM_OUTSIDE, Wiring

Costs = Sequence[int] | Mapping[int, int]
"""By number of node or tensor; a mapping may leave out those that are not asked for."""

_SOURCE, _SINK = 0, 1


def least_head(
    wiring: Wiring,
    head_costs: Costs,
    tail_costs: Costs,
    crossing_costs: Costs,
    *,
    free: Collection[int] | None = None,
    always_head: Container[int] = (),
) -> frozenset[int]:
    """The free nodes that belong to the head, at least total cost; the smallest such set where several tie.

    Args:
        wiring: the graph.
        head_costs: of each node, not negative.
        tail_costs: of each node, not negative.
        crossing_costs: of each tensor, not negative; paid once if any of its readers is in the tail and its maker is
            not.
        free: the nodes to decide on, all unless given; what they lie between must be closed under ancestors.
        always_head: nodes that are in the head in any case; all that are neither free nor here are in the tail.

    Complexity: O(V^2 E) in the worst case, near-linear on the graphs of models; V and E are those of the free nodes.
    """
    vertex_of = {node: 2 + at for at, node in enumerate(range(len(wiring.work)) if free is None else free)}
    tensors = {tensor for node in vertex_of for tensor in (*wiring.reads[node], *wiring.makes[node])}
    without_limit = 1 + sum(head_costs[node] + tail_costs[node] for node in vertex_of)
    without_limit += sum(crossing_costs[tensor] for tensor in tensors)
    network = _Network(2 + len(vertex_of))
    for node, vertex in vertex_of.items():
        network.connect(_SOURCE, vertex, tail_costs[node])
        network.connect(vertex, _SINK, head_costs[node])
    for tensor in sorted(tensors):
        made_at = vertex_of.get(wiring.producer[tensor], _SOURCE)
        last = wiring.consumers[tensor][-1:]
        if made_at == _SOURCE and not any(reader in vertex_of or reader in always_head for reader in last):
            continue  # crosses in any case (a mask that every layer reads), or nobody reads it
        read_at = {
            vertex_of.get(reader, _SINK)
            for reader in wiring.consumers[tensor]
            if reader in vertex_of or reader not in always_head
        }
        _connect_tensor(network, made_at, read_at, crossing_costs[tensor], without_limit)
    reached = network.source_side()
    return frozenset(node for node, vertex in vertex_of.items() if reached[vertex])


def _connect_tensor(network: "_Network", made_at: int, read_at: set[int], cost: int, without_limit: int) -> None:
    if made_at != _SOURCE:
        for vertex in read_at - {_SINK}:
            network.connect(vertex, made_at, without_limit)
    if _SINK in read_at:  # paid as soon as the maker is in the head
        network.connect(made_at, _SINK, cost)
    elif len(read_at) == 1:
        network.connect(made_at, read_at.pop(), cost)
    elif read_at:
        shared = network.add_vertex()
        network.connect(made_at, shared, cost)
        for vertex in read_at:
            network.connect(shared, vertex, without_limit)


def cost_of(
    wiring: Wiring,
    head: Collection[int],
    head_costs: Sequence[int],
    tail_costs: Sequence[int],
    crossing_costs: Sequence[int],
) -> int:
    """The total cost of this set of head nodes, which must be closed under ancestors."""
    inside = frozenset(head)
    total = sum(head_costs[node] if node in inside else tail_costs[node] for node in range(len(wiring.work)))
    return total + sum(crossing_costs[tensor] for tensor in crossing(wiring, inside))


def crossing(wiring: Wiring, head: frozenset[int]) -> list[int]:
    """The tensors that cross from these head nodes to the rest."""
    return [
        tensor
        for tensor, readers in enumerate(wiring.consumers)
        if (wiring.producer[tensor] == FROM_OUTSIDE or wiring.producer[tensor] in head) and not head.issuperset(readers)
    ]


class _Network:
    """A flow network; edge 2k and its reverse 2k+1 lie side by side."""

    def __init__(self, n_vertices: int) -> None:
        self._edges_from: list[list[int]] = [[] for _ in range(n_vertices)]
        self._to: list[int] = []
        self._left: list[int] = []

    def add_vertex(self) -> int:
        self._edges_from.append([])
        return len(self._edges_from) - 1

    def connect(self, start: int, end: int, capacity: int) -> None:
        if capacity > 0 and start != end:
            self._edges_from[start].append(len(self._to))
            self._edges_from[end].append(len(self._to) + 1)
            self._to += [end, start]
            self._left += [capacity, 0]

    def source_side(self) -> list[bool]:
        """Saturate the network; which vertices the source still reaches: its side of a minimum cut."""
        while (levels := self._levels())[_SINK] >= 0:
            self._block(levels)
        return [level >= 0 for level in levels]

    def _levels(self) -> list[int]:
        levels = [-1] * len(self._edges_from)
        levels[_SOURCE] = 0
        queue = deque([_SOURCE])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges_from[vertex]:
                end = self._to[edge]
                if self._left[edge] and levels[end] < 0:
                    levels[end] = levels[vertex] + 1
                    queue.append(end)
        return levels

    def _block(self, levels: list[int]) -> None:
        """Find a blocking flow along rising levels, depth first, without recursion."""
        edges_from, to, left = self._edges_from, self._to, self._left
        next_edge = [0] * len(edges_from)
        path: list[int] = []
        vertex = _SOURCE
        while True:
            if vertex == _SINK:
                amount = min(left[edge] for edge in path)
                keep = len(path)
                for at in range(len(path) - 1, -1, -1):
                    left[path[at]] -= amount
                    left[path[at] ^ 1] += amount
                    if not left[path[at]]:
                        keep = at
                vertex = to[path[keep] ^ 1]
                del path[keep:]
                continue
            edges = edges_from[vertex]
            while next_edge[vertex] < len(edges):
                edge = edges[next_edge[vertex]]
                if left[edge] and levels[to[edge]] == levels[vertex] + 1:
                    path.append(edge)
                    vertex = to[edge]
                    break
                next_edge[vertex] += 1
            else:
                if vertex == _SOURCE:
                    return
                vertex = to[path.pop() ^ 1]
                next_edge[vertex] += 1
