"""Structured pruning of a torch module: whole channels go, and everything that depends on them with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from compression.errors import NothingPrunable, NotPrunable
from compression.pruning.dependencies import Coupled, Traced, importance_of, naming_the_layer
from compression.pruning.proof import difference, masked, probe_of
from compression.pruning.ranking import Ranked, least_important, ratio_of, widths

if TYPE_CHECKING:
    from torch import Tensor, nn

Importance = Literal["group-magnitude", "taylor", "bn-scale"]
NO_SCORE: Final = "no layer that this importance can score"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupWidth:
    """Channels that live and die together, before and after.

    Attributes:
        name: the first layer that makes them.
        layers: every layer that makes or carries them.
        n_before: how many there were.
        n_after: how many are left.
    """

    name: str
    layers: tuple[str, ...]
    n_before: int
    n_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A smaller module.

    Attributes:
        module: a copy, in evaluation mode; the given module is as it was.
        ratio: share of the prunable channels that is gone.
        macs_ratio: multiplications of convolutions and linear layers that are left, as a share.
        parameters_ratio: parameters that are left, as a share.
        groups: what could be pruned, with the widths.
        left: name and reason of each group that was left whole.
    """

    module: nn.Module
    ratio: float
    macs_ratio: float
    parameters_ratio: float
    groups: tuple[GroupWidth, ...]
    left: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    ratio: float | Mapping[str, float]
    multiple: int
    importance: Importance
    kept: tuple[str, ...]
    local: bool


def prune(  # noqa: PLR0913  (each choice stands for itself; all but the first four have a good default)
    module: nn.Module,
    example: Sequence[Tensor],
    ratio: float | Mapping[str, float],
    multiple: int = 8,
    *,
    importance: Importance = "group-magnitude",
    kept: Sequence[str] = (),
    local: bool = False,
    steps: int = 1,
    between: Callable[[nn.Module], object] | None = None,
    gradients: Callable[[nn.Module], object] | None = None,
) -> Pruned:
    """A copy of the module with fewer channels, and proof that nothing but these channels was taken.

    Args:
        module: runs as `module(*example)`; left as it is.
        example: its inputs, a batch of one or more.
        ratio: share of the channels to take, over all groups; or shares by layer name (or by the name of what holds
            layers): then each group loses its own share, groups without a name nothing.
        multiple: widths are rounded to multiples of it (see `staircase`); a group's own width is always allowed.
        importance: what a channel is worth: norms of all weights coupled to it, `taylor` (weight times gradient), or
            the scales of batch norms.
        kept: names of layers, or of modules that hold layers, whose output channels stay.
        local: each group loses the ratio itself; otherwise groups of equal structure are ranked together.
        steps: take the channels in this many equal steps, each ranked anew.
        between: called with the pruned copy after each step but the last, to train it.
        gradients: called with the copy before each ranking by `taylor`; leaves the loss's gradients in `.grad`.

    Raises:
        NotPrunable: the module cannot be traced, or nothing in it can be pruned; the text names the layer.
        ValueError: a ratio outside [0, 1), a name that no layer has, or `taylor` without gradients.
    """
    wish = _Wish(ratio=ratio, multiple=multiple, importance=importance, kept=tuple(kept), local=local)
    _check(module, wish, steps, gradients)
    work = _copied(module)
    before = _size(work, example)
    start: dict[str, Coupled] = {}
    left: dict[str, str] = {}
    barred: dict[str, str] = {}
    for step in range(steps):
        if gradients is not None and importance == "taylor":
            work.zero_grad()
            gradients(work)
        work, groups, reasons = _one_step(work, example, wish, share=(step + 1) / steps, start=start, barred=barred)
        start = start or groups
        left |= reasons
        if between is not None and step + 1 < steps:
            between(work)
    after = _size(work, example)
    return _report(work, start, left, before, after)


def _check(module: nn.Module, wish: _Wish, steps: int, gradients: object) -> None:
    shares = list(wish.ratio.values()) if isinstance(wish.ratio, Mapping) else [wish.ratio]
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"ratio {wish.ratio}: each share of channels to take lies in [0, 1)")
    if wish.multiple < 1 or steps < 1:
        raise ValueError(f"multiple {wish.multiple} and steps {steps} must both be at least 1")
    if wish.importance == "taylor" and gradients is None:
        raise ValueError("importance 'taylor' needs `gradients`, which leaves the loss's gradients in the module")
    names = {name for name, _ in module.named_modules()}
    asked = [*wish.kept, *(wish.ratio if isinstance(wish.ratio, Mapping) else ())]
    unknown = [name for name in asked if name not in names]
    if unknown:
        known = ", ".join(sorted(name for name, layer in module.named_modules() if not list(layer.children()))[:40])
        raise ValueError(f"no layer is called {', '.join(unknown)}; there are {known}")


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).eval()
    except Exception as exc:
        raise NothingPrunable(
            f"the module cannot be copied ({type(exc).__name__}: {exc}), and the original is not touched"
        ) from exc


def _one_step(
    whole: nn.Module,
    example: Sequence[Tensor],
    wish: _Wish,
    *,
    share: float,
    start: Mapping[str, Coupled],
    barred: dict[str, str],
) -> tuple[nn.Module, dict[str, Coupled], dict[str, str]]:
    """Take channels until this share of the ratio is reached; a group that the proof does not bear out is barred."""
    while True:
        trial = _copied(whole)
        for one, other in zip(trial.parameters(), whole.parameters(), strict=True):
            one.grad = other.grad  # copying a parameter leaves its gradient behind
        traced = Traced(trial, example)
        groups, refused = traced.groups(wish.kept)
        reasons = dict(refused) | barred
        ranked = _ranked([group for group in groups if group.name not in barred], wish, share, start, reasons)
        if not ranked:
            raise (NotPrunable if barred else NothingPrunable)(_nothing(reasons))
        keep = widths([rank for _, rank in ranked], wish.multiple)
        takes = [(group, least_important(rank, keep[rank.name])) for group, rank in ranked]
        takes = [(group, indices) for group, indices in takes if indices]
        wrong = _wrong(whole, example, takes)
        if not wrong:
            for group, indices in takes:
                traced.apply(group, indices)
            _settle(trial, whole)
            return trial, {group.name: group for group, _ in ranked}, reasons
        barred |= wrong


def _ranked(
    groups: Sequence[Coupled], wish: _Wish, share: float, start: Mapping[str, Coupled], reasons: dict[str, str]
) -> list[tuple[Coupled, Ranked]]:
    score = _score(wish.importance)
    by_name = isinstance(wish.ratio, Mapping)
    ranked = []
    for group in groups:
        worth = importance_of(group, score)
        if worth is None:
            reasons[group.name] = NO_SCORE
            continue
        rank = Ranked(
            name=group.name,
            scope=group.name if wish.local or by_name else group.shape,
            n_before=start[group.name].n_channels if group.name in start else group.n_channels,
            importance=worth,
            ratio=ratio_of(group.layers, wish.ratio) * share,
            n_chunks=group.n_chunks,
        )
        ranked.append((group, rank))
    return ranked


def _score(importance: Importance) -> Callable[[Any], Any]:
    from torch_pruning.pruner import importance as scores

    makers = {
        "group-magnitude": scores.GroupMagnitudeImportance,
        "taylor": scores.GroupTaylorImportance,
        "bn-scale": scores.BNScaleImportance,
    }
    if importance not in makers:
        raise ValueError(f"importance {importance!r} is none of {', '.join(makers)}")
    made: Callable[[Any], Any] = makers[importance]()
    return made


def _wrong(whole: nn.Module, example: Sequence[Tensor], takes: Sequence[tuple[Coupled, list[int]]]) -> dict[str, str]:
    """The groups that cannot go, with the reason: all together first, and only if that fails one after the other."""
    if not takes or _fault(whole, example, takes) is None:
        return {}
    sound: list[tuple[Coupled, list[int]]] = []
    wrong: dict[str, str] = {}
    for take in takes:
        reason = _fault(whole, example, [*sound, take])
        if reason is None:
            sound.append(take)
        else:
            wrong[take[0].name] = reason
    return wrong


def _fault(whole: nn.Module, example: Sequence[Tensor], takes: Sequence[tuple[Coupled, list[int]]]) -> str | None:
    """What goes wrong when these groups, by name, lose these channels; None when the outputs prove them sound."""
    traced = Traced(_copied(whole), example)
    by_name = {group.name: group for group in traced.groups(())[0]}
    pairs = [(by_name[group.name], indices) for group, indices in takes]
    try:
        switched_off = masked(traced, [traced.with_indices(group, indices) for group, indices in pairs])
        for group, indices in pairs:
            traced.apply(group, indices)
        return difference(switched_off, traced.module, probe_of(example))
    except NotPrunable as exc:
        return str(exc)


def _settle(pruned: nn.Module, whole: nn.Module) -> None:
    """Drop the ranking's gradients; what was frozen is frozen again."""
    for weight, before in zip(pruned.parameters(), whole.parameters(), strict=True):
        weight.grad = None
        weight.requires_grad_(before.requires_grad)


def _nothing(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return "the module has no convolution or linear layer whose channels could go"
    told = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:8])
    return f"no group of channels can be taken ({told})"


def _size(module: nn.Module, example: Sequence[Tensor]) -> tuple[int, int]:
    """Multiplications of convolutions and linear layers on the example, and the number of parameters."""
    import torch
    from torch import nn

    n_macs = 0

    def count(layer: Any, feeds: tuple[Tensor, ...], answer: Tensor) -> None:
        nonlocal n_macs
        if isinstance(layer, nn.Linear):
            n_macs += answer.numel() * layer.in_features
        elif getattr(layer, "transposed", False):
            n_macs += feeds[0].numel() * layer.weight[0].numel()
        else:
            n_macs += answer.numel() * layer.weight[0].numel()

    kinds = (nn.Linear, nn.modules.conv._ConvNd)  # noqa: SLF001  (torch's only common class of convolutions)
    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad(), naming_the_layer(module, "does not run on the example"):
            module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return n_macs, sum(weight.numel() for weight in module.parameters())


def _report(
    work: nn.Module,
    start: Mapping[str, Coupled],
    left: Mapping[str, str],
    before: tuple[int, int],
    after: tuple[int, int],
) -> Pruned:
    layers = dict(work.named_modules())
    groups = tuple(
        GroupWidth(name=name, layers=group.layers, n_before=group.n_channels, n_after=_width(layers[name]))
        for name, group in start.items()
    )
    n_before = sum(group.n_before for group in groups)
    return Pruned(
        module=work,
        ratio=1 - sum(group.n_after for group in groups) / n_before,
        macs_ratio=after[0] / before[0] if before[0] else 1.0,
        parameters_ratio=after[1] / before[1],
        groups=groups,
        left=tuple(left.items()),
    )


def _width(layer: Any) -> int:
    for name in ("out_channels", "out_features", "num_features", "embedding_dim"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise AssertionError(f"a group is called after {type(layer).__name__}, which has no output channels")
