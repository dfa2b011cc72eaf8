"""Which heads stay open: as many of the best ones as fit into a share of the whole model's weights.

Design: the whole model is always open beside them (the device must be able to answer alone), and sharing weights
between engine sessions costs more than it saves, so an open head holds a copy of its weights. What counts is what the
head's file refers to in the weights file. Heads are opened and closed by the preparation thread only; requests take
another way meanwhile and wait for nothing.
"""

import os
from collections.abc import Iterable
from typing import Final

from hybrid.artifact.external_data import external_data
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.route.way import Crossing
from hybrid.scouting.background import BackgroundEngine
from hybrid.scouting.opening import lacks_levels, opened_head

VARIABLE: Final = "HYBRID_HEAD_MEMORY_RATIO"
MEMORY_RATIO: Final = 0.2
"""Weights of all open heads over those of the whole model."""

LEAST_BYTES: Final = 16 * 1024 * 1024
"""So much is always allowed: below it the engine's own memory counts for more than any weights."""


class OpenHeads:
    """The heads of one session's routes under one budget a route.

    Args:
        device: opens them.
    """

    def __init__(self, device: BackgroundEngine) -> None:
        self._device = device
        self._sizes: dict[tuple[str, str], int] = {}
        self._ratio = _ratio()

    def obstacle(self, prepared: Prepared, cut: Cut) -> str:
        """Why this head may not be open at all, or an empty string."""
        n_bytes, most_bytes = self._n_bytes(prepared, cut.id), self.budget_bytes(prepared)
        if n_bytes <= most_bytes:
            return ""
        return (
            f"its head would hold {n_bytes / 1e6:.0f} MB of weights beside the whole model, {most_bytes / 1e6:.0f} are"
            f" allowed ({VARIABLE})"
        )

    def open(self, prepared: Prepared, crossing: Crossing, worst_first: list[Crossing]) -> None:
        """Opens the head of a crossing, unless it is open; one that is open for another gateway is shared.

        Args:
            prepared: the graph.
            crossing: not over the input cut.
            worst_first: all of the route; those that come first are closed first where there is no room.
        """
        cut, codecs = crossing.cut, [way.prospect.codec for way in crossing.ways]
        if cut is None or not lacks_levels(crossing.head, codecs):
            return
        for other in worst_first:
            same = other.cut is not None and other.cut.id == cut.id
            if same and other.head is not None and not lacks_levels(other.head, codecs):
                crossing.head = other.head
                return
        left_bytes = self.budget_bytes(prepared) - self._n_bytes(prepared, cut.id)
        closable = [other for other in worst_first if other.head is not None and other is not crossing]
        while closable and self._held_bytes(prepared, worst_first) > left_bytes:
            close(closable.pop(0))
        crossing.head = opened_head(self._device, prepared, cut, codecs)

    def fitting(self, prepared: Prepared, best_first: Iterable[Crossing]) -> list[Crossing]:
        """The crossings whose heads may stay open, the best ones first."""
        left_bytes = self.budget_bytes(prepared)
        kept: list[Crossing] = []
        held: set[str] = set()
        for crossing in best_first:
            if crossing.cut is None or crossing.head is None:
                continue
            n_bytes = 0 if crossing.cut.id in held else self._n_bytes(prepared, crossing.cut.id)
            if n_bytes <= left_bytes or not kept:
                left_bytes -= n_bytes
                held.add(crossing.cut.id)
                kept.append(crossing)
        return kept

    def budget_bytes(self, prepared: Prepared) -> int:
        """Weights that all heads together may hold."""
        return max(LEAST_BYTES, int(self._ratio * self._n_bytes(prepared, "")))

    def _held_bytes(self, prepared: Prepared, crossings: Iterable[Crossing]) -> int:
        cuts = {crossing.cut.id for crossing in crossings if crossing.cut is not None and crossing.head is not None}
        return sum(self._n_bytes(prepared, cut_id) for cut_id in cuts)

    def _n_bytes(self, prepared: Prepared, cut_id: str) -> int:
        """Weights of a head, or of the whole model without a cut."""
        key = (str(prepared.folder), cut_id)
        if key not in self._sizes:
            path = prepared.head_path(cut_id) if cut_id else prepared.graph_path
            places = {(place.location, place.end_bytes): place.n_bytes for place in external_data(path)}
            self._sizes[key] = sum(places.values())
        return self._sizes[key]


def close(crossing: Crossing) -> None:
    """Gives the head's memory back, once the requests that are running it have ended."""
    crossing.verified = False
    crossing.head = None


def _ratio() -> float:
    """The share of the whole model's weights that heads may hold."""
    try:
        ratio = float(os.environ.get(VARIABLE, "") or MEMORY_RATIO)
    except ValueError:
        return MEMORY_RATIO
    return ratio if 0 <= ratio < float("inf") else MEMORY_RATIO
