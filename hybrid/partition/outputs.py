"""Which side of a cut answers with which output of the graph.

Design: a set of crossing tensors alone decides. An output that the head passes on its way belongs to the head; of the
others, the tail answers with each that it can compute from the crossing tensors, the head with the rest.
"""

from collections.abc import Sequence

from hybrid.graph.view import GraphView
from hybrid.partition.wiring import FROM_OUTSIDE, Wiring, ancestors


class OutputSides:
    """Decides for many cuts of one graph; sets of nodes are bit masks, so that a cut costs little."""

    def __init__(self, view: GraphView, wiring: Wiring) -> None:
        self._view = view
        self._wiring = wiring
        self._above = ancestors(wiring)
        self._outputs = [tensor for tensor, is_output in enumerate(wiring.is_output) if is_output]
        fed = {wiring.names[t] for t in self._outputs if wiring.producer[t] == FROM_OUTSIDE}
        self._always_head = fed | view.constant_outputs

    def divide(self, live: Sequence[int], done_mask: int) -> tuple[frozenset[str], float]:
        """Outputs that the head answers with, and the work of nodes in `done_mask` that belongs to the tail.

        Args:
            live: the crossing tensors, which are those live after the nodes of `done_mask`.
            done_mask: a set of nodes that holds all its ancestors.
        """
        producer, names = self._wiring.producer, self._wiring.names
        head_mask = self._mask_above(live)
        crossing = set(live)
        head = set(self._always_head)
        for tensor in self._outputs:
            made_by = producer[tensor]
            if made_by == FROM_OUTSIDE or not done_mask >> made_by & 1:
                continue
            if head_mask >> made_by & 1 or not self._follows(tensor, crossing):
                head.add(names[tensor])
        for tensor in self._outputs:
            if names[tensor] in head and producer[tensor] != FROM_OUTSIDE:
                head_mask |= self._above[producer[tensor]]
        return frozenset(head), self._work(done_mask & ~head_mask)

    def has_head_nodes(self, live: Sequence[int], head_outputs: frozenset[str]) -> bool:
        """Whether the head computes anything."""
        producer, names = self._wiring.producer, self._wiring.names
        answers = (tensor for tensor in self._outputs if names[tensor] in head_outputs)
        return any(producer[tensor] != FROM_OUTSIDE for tensor in (*live, *answers))

    def _mask_above(self, tensors: Sequence[int]) -> int:
        mask = 0
        for tensor in tensors:
            if self._wiring.producer[tensor] != FROM_OUTSIDE:
                mask |= self._above[self._wiring.producer[tensor]]
        return mask

    def _follows(self, tensor: int, crossing: set[int]) -> bool:
        """Whether `tensor` can be computed from the crossing tensors alone."""
        producer, reads = self._wiring.producer, self._wiring.reads
        seen = {tensor}
        stack = [tensor]
        while stack:
            current = stack.pop()
            if current in crossing:
                continue
            made_by = producer[current]
            if made_by == FROM_OUTSIDE or not reads[made_by]:  # fed to the head alone, or random: never made twice
                return False
            fresh = [needed for needed in reads[made_by] if needed not in seen]
            seen.update(fresh)
            stack += fresh
        return True

    def _work(self, mask: int) -> float:
        total = 0.0
        while mask:
            lowest = mask & -mask
            total += self._wiring.work[lowest.bit_length() - 1]
            mask ^= lowest
        return total
