"""Chooses the topological orders whose prefixes are the cuts.

Design: where the gateway is r times as fast as the device on every node, the best division of the graph minimises
bytes/bandwidth + (1 - 1/r) work over all sets of nodes that are closed under ancestors. As bandwidth or r changes,
these minima are nested (parametric minimum cut: Gallo, Grigoriadis and Tarjan, SIAM J. Comput. 18(1), 1989), so one
order has them all as prefixes. That order is taken: after a node that all others lead to or follow from, the graph
falls apart into stages; inside a stage come the vertices of the lower hull of (work, bytes) by recursive minimum cuts,
and between two of them the least cut through a node halfway, again recursively. A second order does the same as if the
graph's inputs were too heavy to send, for where raw inputs must not leave the device, or are encoded badly.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from hybrid.graph.view import GraphView
from hybrid.partition.mincut import least_head
from hybrid.partition.wiring import FROM_OUTSIDE, Wiring, ancestors, wire


def cut_orders(view: GraphView) -> list[list[int]]:
    """One or two topological orders of all nodes.

    They do not depend on the order of nodes in the file: ties are broken by tensor names.
    """
    wiring = wire(view)
    names = [node.name for node in view.nodes]
    costs = crossing_bytes(wiring)
    heavy = 1 + sum(costs)
    without_inputs = [
        heavy if maker == FROM_OUTSIDE else cost for cost, maker in zip(costs, wiring.producer, strict=True)
    ]
    first = _Arrangement(wiring, costs, names)
    second = _Arrangement(wiring, without_inputs, names)
    unread = {tensor: len(readers) for tensor, readers in enumerate(wiring.consumers)}
    for stage in _stages(wiring, first.canonical):
        laid = first.append(stage)
        read_out = False
        for tensor in (tensor for node in stage for tensor in wiring.reads[node]):
            unread[tensor] -= 1
            read_out |= not unread[tensor] and wiring.producer[tensor] == FROM_OUTSIDE
        if read_out:  # elsewhere an input is alive all through the stage, or not at all
            second.append(stage)
        else:
            second.lay(laid)
    return [first.order] if first.order == second.order else [first.order, second.order]


def crossing_bytes(wiring: Wiring) -> list[int]:
    """Bytes of each tensor; one of unknown size, or that cannot cross, weighs more than all others together."""
    too_much = 1 + sum(size or 0 for size in wiring.n_bytes)
    return [too_much if size is None else size for size in wiring.n_bytes]


def _stages(wiring: Wiring, order: Sequence[int]) -> Iterator[list[int]]:
    """Divides the order after each node that every other node leads to or follows from.

    A set of nodes that is closed under ancestors and holds a node after such a place holds all before it. So it ends
    inside one stage, and each stage can be searched by itself.
    """
    n_related = [mask.bit_count() for mask in ancestors(wiring)]
    followers = [0] * len(order)
    for node in reversed(range(len(order))):
        followers[node] |= 1 << node
        for tensor in wiring.reads[node]:
            if wiring.producer[tensor] != FROM_OUTSIDE:
                followers[wiring.producer[tensor]] |= followers[node]
        n_related[node] += followers[node].bit_count() - 2
    stage: list[int] = []
    for node in order:
        stage.append(node)
        if n_related[node] == len(order) - 1:
            yield stage
            stage = []
    if stage:
        yield stage


class _Arrangement:
    """An order that grows: each group of nodes is divided until it is a single node, then laid down."""

    def __init__(self, wiring: Wiring, costs: Sequence[int], names: Sequence[str]) -> None:
        self.order: list[int] = []
        self._laid: set[int] = set()
        self._wiring = wiring
        self._costs = costs
        self._work = [round(amount) for amount in wiring.work]
        self._free_of_charge = [0] * len(names)
        depths = _depths(wiring)
        self._rank = [(depths[node], name) for node, name in enumerate(names)]

    @property
    def canonical(self) -> list[int]:
        """A topological order that depends on names and edges alone."""
        return sorted(range(len(self._rank)), key=self._rank.__getitem__)

    def append(self, group: Collection[int]) -> list[int]:
        """Lay down these nodes, which read only what is laid down already or made by themselves; in which order."""
        start = len(self.order)
        self._arrange(group)
        return self.order[start:]

    def lay(self, nodes: Sequence[int]) -> None:
        """Lay down these nodes in this order."""
        self.order += nodes
        self._laid.update(nodes)

    def _arrange(self, group: Collection[int]) -> None:
        nodes = sorted(group, key=self._rank.__getitem__)
        first = None if self._is_chain(nodes) else self._below_the_line(nodes) or self._through_the_middle(nodes)
        if first:
            self._arrange(first)
            self._arrange(set(nodes) - first)
        else:
            self.lay(nodes)

    def _is_chain(self, nodes: list[int]) -> bool:
        """Whether each node reads what the one before makes, so that there is nothing to choose."""
        reads, producer = self._wiring.reads, self._wiring.producer
        return all(any(producer[tensor] == before for tensor in reads[node]) for before, node in pairwise(nodes))

    def _below_the_line(self, nodes: list[int]) -> frozenset[int] | None:
        """Those to do first so as to lie farthest below the line, in the plane of work and bytes, from none to all."""
        run = sum(self._work[node] for node in nodes)
        before = self._alive_bytes(nodes, frozenset())
        fall = before - self._alive_bytes(nodes, frozenset(nodes))
        touched = {tensor for node in nodes for tensor in (*self._wiring.reads[node], *self._wiring.makes[node])}
        price = {node: abs(fall) * self._work[node] for node in nodes}
        first = least_head(
            self._wiring,
            price if fall > 0 else self._free_of_charge,
            price if fall < 0 else self._free_of_charge,
            {tensor: run * self._costs[tensor] for tensor in touched},
            free=nodes,
            always_head=self._laid,
        )
        drop = before - self._alive_bytes(nodes, first)
        return first if run * drop > fall * sum(self._work[node] for node in first) else None

    def _through_the_middle(self, nodes: list[int]) -> frozenset[int] | None:
        """Those to do first so that the fewest bytes are alive just after some node halfway."""
        rank, last = self._rank, nodes[-1]
        if rank[nodes[0]][0] == rank[last][0]:
            return None  # no node reads what another one makes: any order will do
        middle = nodes[len(nodes) // 2]
        if rank[middle][0] == rank[last][0]:
            middle = next(node for node in reversed(nodes) if rank[node][0] < rank[last][0])
        group = set(nodes)
        above = self._above(middle, group)
        readers = {node for tensor in self._wiring.makes[middle] for node in self._wiring.consumers[tensor]} & group
        below = self._below(readers or {last}, group)  # the last is deeper, so no ancestor of the middle
        chosen = least_head(
            self._wiring,
            self._free_of_charge,
            self._free_of_charge,
            self._costs,
            free=[node for node in nodes if node not in above and node not in below],
            always_head=self._laid | above,
        )
        return chosen | above

    def _alive_bytes(self, nodes: list[int], first: frozenset[int]) -> int:
        """Bytes that are alive after `first`, of the tensors that `nodes` read or make."""
        wiring = self._wiring
        total = 0
        for tensor in {tensor for node in nodes for tensor in (*wiring.reads[node], *wiring.makes[node])}:
            maker = wiring.producer[tensor]
            made = maker == FROM_OUTSIDE or maker in first or maker in self._laid
            if made and not all(
                reader in first or reader in self._laid for reader in reversed(wiring.consumers[tensor])
            ):
                total += self._costs[tensor]
        return total

    def _above(self, node: int, group: set[int]) -> set[int]:
        found, stack = {node}, [node]
        while stack:
            for tensor in self._wiring.reads[stack.pop()]:
                maker = self._wiring.producer[tensor]
                if maker in group and maker not in found:
                    found.add(maker)
                    stack.append(maker)
        return found

    def _below(self, nodes: set[int], group: set[int]) -> set[int]:
        found, stack = set(nodes), list(nodes)
        while stack:
            for tensor in self._wiring.makes[stack.pop()]:
                for reader in self._wiring.consumers[tensor]:
                    if reader in group and reader not in found:
                        found.add(reader)
                        stack.append(reader)
        return found


def _depths(wiring: Wiring) -> list[int]:
    """Length of the longest path to each node."""
    depths: list[int] = []
    for tensors in wiring.reads:
        makers = (wiring.producer[tensor] for tensor in tensors)
        depths.append(1 + max((depths[maker] for maker in makers if maker != FROM_OUTSIDE), default=0))
    return depths
