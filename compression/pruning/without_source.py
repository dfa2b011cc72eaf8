"""Pruning an ONNX model whose source nobody has: channels go, and the weights after them make up for it on samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx

from compression.errors import NothingPrunable, NotPrunable, NotQuantizable
from compression.measuring import Feeds
from compression.pruning.channels import Consumer, Walked
from compression.pruning.counting import n_macs, n_parameters, n_products, saved_by_channel
from compression.pruning.ranking import Ranked, least_important, ratio_of, widths
from compression.pruning.reconstruction import Weighed, removal_costs
from compression.pruning.refitting import refit, rows_of_weight
from compression.pruning.slicing import sliced, switched_off, weights_of
from compression.pruning.walking import walk
from compression.pruning.watching import moments
from compression.quantization.prepare import prepare, without_marks
from compression.quantization.running import check_samples, open_session, run

Saving = Literal["macs", "weights"]
TOLERANCE: Final = 2e-3
"""Largest difference to the largest output that sums in another order may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWidth:
    """Channels of a graph that live and die together, before and after.

    Attributes:
        name: the first node that makes them.
        makers: every node that makes them.
        n_before: how many there were.
        n_after: how many are left.
    """

    name: str
    makers: tuple[str, ...]
    n_before: int
    n_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedGraph:
    """A smaller model.

    Attributes:
        model: a new one; the given model is as it was.
        ratio: share of the prunable channels that is gone.
        macs_ratio: multiplications that are left, as a share, on the first sample.
        parameters_ratio: elements of weights that are left, as a share.
        groups: what could be pruned, with the widths.
        left: name and reason of each group that was left whole.
    """

    model: onnx.ModelProto
    ratio: float
    macs_ratio: float
    parameters_ratio: float
    groups: tuple[GraphWidth, ...]
    left: tuple[tuple[str, str], ...]


def prune_graph(
    model: onnx.ModelProto,
    samples: Sequence[Feeds],
    ratio: float | Mapping[str, float],
    multiple: int = 8,
    *,
    kept: Sequence[str] = (),
    local: bool = False,
    saving: Saving = "macs",
) -> PrunedGraph:
    """The model with fewer channels, the weights after them refitted so that their outputs change least on the samples.

    Args:
        model: float32 with its weights; not changed. Weights only: nothing is trained, no gradient is needed.
        samples: whole inputs, those of a few dozen requests; more positions than the widest layer has channels.
        ratio: share of the channels to take, over all groups, or shares by name of a group (the others stay whole);
            0 gives back the same model.
        multiple: widths are rounded to multiples of it (see `staircase`); a group's own width is always allowed.
        kept: names of nodes whose output channels stay.
        local: each group loses the ratio itself; otherwise those channels go, wherever they are, whose removal costs
            least for what it saves.
        saving: what that is: multiplications (for latency) or weights (for bytes).

    Raises:
        NothingPrunable: no group of channels can be followed through the graph (the operators are named), or the model
            or a sample does not fit.
        NotPrunable: the graph with these channels gone does not answer as it must.
        ValueError: a ratio outside [0, 1), or a name that no node has.
    """
    _check(ratio, multiple)
    try:
        whole = prepare(model)
        check_samples(whole, samples)
    except NotQuantizable as exc:
        raise NothingPrunable(str(exc)) from exc
    try:
        return _pruned(model, whole, samples, _Wish(ratio, multiple, tuple(kept), local, saving))
    except NotQuantizable as exc:
        raise NotPrunable(str(exc)) from exc


@dataclass(frozen=True, slots=True)
class _Wish:
    ratio: float | Mapping[str, float]
    multiple: int
    kept: tuple[str, ...]
    local: bool
    saving: Saving


def _check(ratio: float | Mapping[str, float], multiple: int) -> None:
    shares = list(ratio.values()) if isinstance(ratio, Mapping) else [ratio]
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"ratio {ratio}: each share of channels to take lies in [0, 1)")
    if multiple < 1:
        raise ValueError(f"multiple {multiple} must be at least 1")


def _pruned(given: onnx.ModelProto, whole: onnx.ModelProto, samples: Sequence[Feeds], wish: _Wish) -> PrunedGraph:
    walked = walk(whole)
    _check_names(whole, wish)
    left = dict(_left(walked, wish.kept))
    groups = {number: name for number, name in walked.groups() if name not in left}
    if not groups:
        raise NothingPrunable(_nothing(left))
    ranked = _ranked(whole, walked, samples, groups, wish)
    width = widths(list(ranked.values()), wish.multiple)
    gone = {number: least_important(rank, width[rank.name]) for number, rank in ranked.items()}
    keep = {
        number: np.setdiff1d(np.arange(ranked[number].n_before), places) for number, places in gone.items() if places
    }
    if keep:
        smaller = sliced(whole, walked, keep)
        _prove(switched_off(whole, walked, keep), smaller, samples[0])
        smaller = without_marks(refit(whole, smaller, walked, keep, samples))
    else:
        smaller = onnx.ModelProto()
        smaller.CopyFrom(given)
    after = {number: width[rank.name] for number, rank in ranked.items()}
    return _report((whole, smaller), walked, after, left, samples[0])


def _check_names(model: onnx.ModelProto, wish: _Wish) -> None:
    names = {node.name for node in model.graph.node}
    asked = [*wish.kept, *(wish.ratio if isinstance(wish.ratio, Mapping) else ())]
    unknown = [name for name in asked if name not in names]
    if unknown:
        known = ", ".join(node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
        raise ValueError(f"no node is called {', '.join(unknown)}; those with weights are {known[:2000]}")


def _left(walked: Walked, kept: Sequence[str]) -> Iterator[tuple[str, str]]:
    used = {walked.find(part.group) for consumer in walked.consumers for part in consumer.channels.segments}
    for number, name in walked.groups():
        named = [maker for maker in walked.makers[number] if maker in kept]
        if number in walked.frozen:
            yield name, walked.frozen[number]
        elif named:
            yield name, f"{named[0]} is to be kept"
        elif number not in used:
            yield name, "no node with weights consumes these channels"


def _nothing(left: Mapping[str, str]) -> str:
    if not left:
        return "the model has no Conv, Gemm or MatMul with constant weights whose channels could go"
    told = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:8])
    return f"no group of channels can be followed through the graph ({told})"


def _ranked(
    whole: onnx.ModelProto, walked: Walked, samples: Sequence[Feeds], groups: Mapping[int, str], wish: _Wish
) -> dict[int, Ranked]:
    by_group = {
        number: [consumer for consumer in walked.consumers if number in _groups_of(consumer, walked)]
        for number in groups
    }
    tensors = {consumer.tensor: consumer.channels for users in by_group.values() for consumer in users}
    seen = moments(whole, list(tensors.items()), samples)
    weights, nodes = weights_of(whole), {node.name: node for node in whole.graph.node}
    saved = saved_by_channel(whole, walked, n_products(whole, samples[0]) if wish.saving == "macs" else None)
    ranked = {}
    for number, name in groups.items():
        weighed = [
            Weighed(
                rows=rows_of_weight(weights[nodes[user.node].input[1]], user),
                square=seen[user.tensor].central(),
                n_rows=seen[user.tensor].n,
                places=_places(user, walked, number),
            )
            for user in by_group[number]
        ]
        n_channels = walked.n_channels[number]
        ranked[number] = Ranked(
            name=name,
            scope=name if wish.local or isinstance(wish.ratio, Mapping) else "all",
            n_before=n_channels,
            importance=removal_costs(weighed, n_channels) / saved[number],
            ratio=ratio_of(walked.makers[number], wish.ratio),
        )
    return ranked


def _groups_of(consumer: Consumer, walked: Walked) -> set[int]:
    return {walked.find(part.group) for part in consumer.channels.segments}


def _places(consumer: Consumer, walked: Walked, group: int) -> np.ndarray:
    """Where a group's channels lie among those of a consumer, a column for each time that they stand there."""
    starts, start = [], 0
    for part in consumer.channels.segments:
        if walked.find(part.group) == group:
            starts.append(start)
        start += part.n
    return np.asarray(np.arange(walked.n_channels[group])[:, None] + np.array(starts))


def _prove(whole: onnx.ModelProto, smaller: onnx.ModelProto, feeds: Feeds) -> None:
    """The sliced model must answer as the whole one does with those channels switched off.

    Raises:
        NotPrunable: it does not; the graph was misread.
    """
    names = [value.name for value in whole.graph.output]
    wanted, seen = (run(open_session(model), names, feeds) for model in (whole, smaller))
    for name, one, other in zip(names, wanted, seen, strict=True):
        if one.shape != other.shape:
            raise NotPrunable(f"output {name!r} would have shape {other.shape} in place of {one.shape}")
        if one.dtype.kind != "f" or one.size == 0:
            continue
        gap = float(np.abs(one - other).max()) / (float(np.abs(one).max()) or 1.0)
        if not gap <= TOLERANCE:
            raise NotPrunable(
                f"output {name!r} would be off by {gap:.2g} of its largest value beyond what the channels carry: "
                "this graph uses its channels in a way that is not understood; prune the torch module instead"
            )


def _report(
    models: tuple[onnx.ModelProto, onnx.ModelProto],
    walked: Walked,
    widths_after: Mapping[int, int],
    left: Mapping[str, str],
    feeds: Feeds,
) -> PrunedGraph:
    groups = tuple(
        GraphWidth(
            name=walked.makers[number][0],
            makers=tuple(walked.makers[number]),
            n_before=walked.n_channels[number],
            n_after=n_after,
        )
        for number, n_after in widths_after.items()
    )
    macs = [n_macs(model, feeds) for model in models]
    sizes = [n_parameters(model) for model in models]
    return PrunedGraph(
        model=models[1],
        ratio=1 - sum(group.n_after for group in groups) / sum(group.n_before for group in groups),
        macs_ratio=macs[1] / macs[0],
        parameters_ratio=sizes[1] / sizes[0],
        groups=groups,
        left=tuple(left.items()),
    )
