"""How many channels each group keeps: by rank within a scope, rounded to widths that the device's kernels like.

Design: torch-pruning rounds inside its own pruner, always down and per layer, so that a grouped convolution ends
between two steps and a narrow group is left whole. Here the widths are decided first, as plain numbers, and the library
only applies them: a pure function that both kinds of model share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd
from typing import Final

import numpy as np

CAP_RATIO: Final = 0.9
"""Largest share of one group that ranking across groups may take; a group that is hardly used keeps a tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A group of channels that live and die together, with what each of them is worth.

    Attributes:
        name: the group's name.
        scope: groups of one scope are ranked against one another.
        n_before: channels before anything was pruned.
        n_chunks: equal parts that must lose the same places (groups of a grouped convolution); 1 for most.
        importance: worth of each place of a chunk as the group stands now.
        ratio: share of `n_before` that the scope is to lose; one number a scope.
    """

    name: str
    scope: str
    n_before: int
    importance: np.ndarray
    ratio: float
    n_chunks: int = 1

    @property
    def n_now(self) -> int:
        """Channels of the group as it stands now."""
        return len(self.importance) * self.n_chunks


def allowed_widths(n_channels: int, multiple: int, n_chunks: int = 1) -> list[int]:
    """The widths that a group may have, ascending: its own, and every smaller multiple that divides into its chunks."""
    step = multiple * n_chunks // gcd(multiple, n_chunks)
    return [*range(step, n_channels, step), n_channels]


def nearest_width(wanted: float, n_channels: int, multiple: int, n_chunks: int = 1) -> int:
    """The allowed width nearest to the wanted one; the smaller of two that are equally near."""
    return min(allowed_widths(n_channels, multiple, n_chunks), key=lambda width: (abs(width - wanted), width))


def widths(groups: Sequence[Ranked], multiple: int) -> dict[str, int]:
    """The width that each group shall have."""
    result: dict[str, int] = {}
    for scope in dict.fromkeys(group.scope for group in groups):
        members = [group for group in groups if group.scope == scope]
        wanted = _by_rank(members)
        for group in members:
            floor = ceil(group.n_before * (1 - max(CAP_RATIO, group.ratio)) - 1e-9)
            result[group.name] = nearest_width(max(wanted[group.name], floor), group.n_now, multiple, group.n_chunks)
    return result


def _by_rank(members: Sequence[Ranked]) -> dict[str, int]:
    """Channels that each member of one scope keeps when the least important ones go, over all members."""
    n_before = sum(group.n_before for group in members)
    n_drop = sum(group.n_now for group in members) - ceil(n_before * (1 - members[0].ratio) - 1e-9)
    worth = np.concatenate([np.repeat(group.importance, group.n_chunks) for group in members])
    owner = np.repeat(np.arange(len(members)), [group.n_now for group in members])
    gone = owner[np.argsort(worth, kind="stable")[: max(n_drop, 0)]]
    return {group.name: group.n_now - int(np.sum(gone == index)) for index, group in enumerate(members)}


def least_important(group: Ranked, width: int) -> list[int]:
    """The places to take, of all chunks, so that the group keeps `width` channels."""
    n_gone = (group.n_now - width) // group.n_chunks
    size = len(group.importance)
    places = np.sort(np.argsort(group.importance, kind="stable")[:n_gone])
    return [int(chunk * size + place) for chunk in range(group.n_chunks) for place in places]


def ratio_of(layers: Sequence[str], ratio: float | Mapping[str, float]) -> float:
    """What a group with these layers is to lose: the largest ratio named for one of them or what holds it, else 0."""
    if not isinstance(ratio, Mapping):
        return ratio
    named = [share for name, share in ratio.items() if any(_within(layer, name) for layer in layers)]
    return max(named, default=0.0)


def _within(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")
