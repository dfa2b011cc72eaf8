"""Finds every cut along some topological orders in one pass over their prefixes, keeping the set of live tensors.

After a prefix of an order, the tensors that are made (or fed) and still to be read are what must cross there. Inputs
are tensors like any other, and a tensor with many readers crosses once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from compression.tensor import TensorSpec
from hybrid.graph.view import GraphView
from hybrid.partition.cut import Cut, CutTable, cut_id
from hybrid.partition.outputs import OutputSides
from hybrid.partition.wiring import Wiring, wire


def scan(view: GraphView, orders: Sequence[Sequence[int]]) -> CutTable:
    """The cut table of this graph.

    Args:
        view: the graph.
        orders: each holds every node once, after the makers of what it reads.

    Complexity: O(nodes x live tensors) for each order.
    """
    wiring = wire(view)
    sides = OutputSides(view, wiring)
    total_work = sum(wiring.work) or 1.0
    sizes = dict(zip(wiring.names, wiring.n_bytes, strict=True))
    interior: list[Cut] = []
    seen = {frozenset(range(len(view.inputs)))}  # that is the input cut
    for live, done_mask, done_work in chain.from_iterable(prefixes(wiring, order) for order in orders):
        crossing = frozenset(live)
        if crossing in seen or not all(wiring.crossable[tensor] for tensor in live):
            continue
        seen.add(crossing)
        head_outputs, moved_work = sides.divide(live, done_mask)
        if sides.has_head_nodes(live, head_outputs):  # else nothing is computed before it, as at the input cut
            specs = [view.specs[wiring.names[tensor]] for tensor in live]
            interior.append(_interior_cut(view, sizes, specs, head_outputs, (done_work - moved_work) / total_work))
    interior.sort(key=lambda cut: cut.head_work_ratio)
    return _table(view, (_input_cut(view, sizes), *interior, _output_cut(view)))


def prefixes(wiring: Wiring, order: Sequence[int]) -> Iterator[tuple[list[int], int, float]]:
    """After each proper prefix that leaves tensors live: those tensors, the prefix as a bit mask of nodes, its work."""
    waiting = [len(readers) for readers in wiring.consumers]
    live = dict.fromkeys(t for t, made_by in enumerate(wiring.producer) if made_by < 0 and waiting[t])
    mask, work = 0, 0.0
    for node in order[:-1]:
        mask |= 1 << node
        work += wiring.work[node]
        for tensor in wiring.reads[node]:
            waiting[tensor] -= 1
            if not waiting[tensor]:
                live.pop(tensor, None)
        live.update((tensor, None) for tensor in wiring.makes[node] if waiting[tensor])
        if live:
            yield list(live), mask, work


def _bytes_of(names: Iterable[str], sizes: Mapping[str, int | None]) -> tuple[int, bool]:
    """Bytes of these tensors, unknown ones counting as 0, and whether all are known."""
    found = [sizes.get(name) for name in names]
    return sum(size or 0 for size in found), None not in found


def _input_cut(view: GraphView, sizes: Mapping[str, int | None]) -> Cut:
    specs = tuple(sorted((view.specs[name] for name in view.inputs if name in view.specs), key=lambda spec: spec.name))
    n_bytes, sized = _bytes_of(view.inputs, sizes)
    return Cut(
        id=cut_id(specs),
        kind="input",
        tensors=specs,
        n_bytes=n_bytes,
        sized=sized,
        head_work_ratio=0.0,
        head_outputs=(),
        tail_outputs=view.outputs,
        reply_bytes=_bytes_of(view.outputs, sizes)[0],
    )


def _interior_cut(
    view: GraphView,
    sizes: Mapping[str, int | None],
    specs: Sequence[TensorSpec],
    head_outputs: frozenset[str],
    ratio: float,
) -> Cut:
    tail_outputs = tuple(name for name in view.outputs if name not in head_outputs)
    n_bytes, sized = _bytes_of((spec.name for spec in specs), sizes)
    return Cut(
        id=cut_id(specs),
        kind="interior",
        tensors=tuple(sorted(specs, key=lambda spec: spec.name)),
        n_bytes=n_bytes,
        sized=sized,
        head_work_ratio=min(max(ratio, 0.0), 1.0),
        head_outputs=tuple(name for name in view.outputs if name in head_outputs),
        tail_outputs=tail_outputs,
        reply_bytes=_bytes_of(tail_outputs, sizes)[0],
    )


def _output_cut(view: GraphView) -> Cut:
    return Cut(
        id=cut_id(()),
        kind="output",
        tensors=(),
        n_bytes=0,
        sized=True,
        head_work_ratio=1.0,
        head_outputs=view.outputs,
        tail_outputs=(),
        reply_bytes=0,
    )


def _table(view: GraphView, cuts: tuple[Cut, ...]) -> CutTable:
    first, *interior, last = cuts
    least = first.n_bytes if first.sized else None
    pareto = [first.id]
    for cut in interior:
        if cut.sized and (least is None or cut.n_bytes < least):
            pareto.append(cut.id)
            least = cut.n_bytes
    note = None if len(pareto) > 1 else _why_none(view, first, interior)
    return CutTable(cuts=cuts, pareto=(*pareto, last.id), note=note, n_nodes=len(view.nodes))


def _why_none(view: GraphView, first: Cut, interior: Sequence[Cut]) -> str:
    """The plain sentence for a graph without a useful interior cut."""
    open_sizes = f" {view.n_unsized} of its tensors have a size that only the data decides." if view.n_unsized else ""
    sized = [cut for cut in interior if cut.sized]
    if not interior:
        return f"This graph has no interior cut: nothing can cross between its {len(view.nodes)} nodes.{open_sizes}"
    if not sized:
        return f"No interior cut can be a candidate: the bytes of each depend on the data.{open_sizes}"
    smallest = min(sized, key=lambda cut: cut.n_bytes)
    return (
        f"No interior cut is worth anything: the smallest carries {smallest.n_bytes} bytes at "
        f"{smallest.head_work_ratio:.0%} of the work, the input {first.n_bytes}; compute here, or send the "
        f"input.{open_sizes}"
    )
