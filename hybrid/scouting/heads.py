"""What stays open beside the whole model: the best heads, and what goes on from their activations here.

Design: the whole model is always open (the device must be able to answer alone, bit for bit as onnxruntime does), and
sharing weights between engine sessions costs more than it saves, so whatever is open beside it holds a copy of its
weights. What counts is what its file refers to in the weights file. Heads come before rests: without a head there is no
split, without a rest a hedged split only begins anew from the inputs. Both are opened and closed by the preparation
thread only; a request that is running one keeps it until it has ended, and others take another way meanwhile.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from time import sleep
from typing import Final

import numpy as np

from devices.tflite_magic import is_tflite
from hybrid.artifact.external_data import external_data
from hybrid.artifact.splits import SplitFiles
from hybrid.errors import EngineFailed
from hybrid.partition.cut import Cut, Side
from hybrid.partition.prepared import Prepared
from hybrid.profile.record import Timing
from hybrid.route.route import Route
from hybrid.route.way import Crossing, Head, Rest
from hybrid.scouting.background import N_RUNS, BackgroundEngine
from hybrid.scouting.memory import give_back_unused
from hybrid.scouting.opening import lacks_levels, opened_head, opened_rest, opened_split
from hybrid.scouting.sameness import TOLERANCE_RATIO, distance

log = logging.getLogger("hybrid.session")

VARIABLE: Final = "HYBRID_HEAD_MEMORY_RATIO"
MEMORY_RATIO: Final = 0.2
"""Weights of all that is open beside the whole model over the model's own, beyond what loading it had left unused."""

LEAST_BYTES: Final = 16 * 1024 * 1024
"""So much is always allowed: below it the engine's own memory counts for more than any weights."""

MOST_HEADS: Final = 2
"""Open at a time: one is used, and each keeps the memory of its largest run, which may be more than its weights."""

GAIN_RATIO: Final = 0.05
"""A rest is worth its memory only after a head that has done at least this share of the whole model's work."""

Wanted = Mapping[str, np.ndarray]
"""The whole model's outputs by name."""

Pieces = Mapping[tuple[str, str], int]
"""Bytes of what is open, by what it is (`head`, `encoder`, `tail`) and of which cut or split."""


class OpenHeads:
    """The heads and rests of one session's routes under one budget a route.

    Args:
        device: opens them.
        given_back_bytes: memory that loading the whole model had left unused, and that was given back to the system:
            heads and rests may take its place.
    """

    def __init__(self, device: BackgroundEngine, given_back_bytes: int = 0) -> None:
        self._device = device
        self._given_back_bytes = given_back_bytes
        self._sizes: dict[tuple[str, str, Side], int] = {}
        self._unusable: set[tuple[str, str]] = set()
        self._ratio = _ratio()
        self._has_moved = False

    def obstacle(self, prepared: Prepared, cut: Cut, split: SplitFiles | None = None) -> str:
        """Why this head, of the cut or of a split there, may not be open at all, or an empty string."""
        n_bytes, most_bytes = sum(self._pieces(prepared, cut, split).values()), self.budget_bytes(prepared)
        if n_bytes <= most_bytes:
            return ""
        return (
            f"its head would hold {n_bytes / 1e6:.0f} MB of weights beside the whole model, {most_bytes / 1e6:.0f} are"
            f" allowed ({VARIABLE})"
        )

    def open(self, prepared: Prepared, crossing: Crossing, worst_first: list[Crossing]) -> bool:
        """Opens the head of a crossing, unless it is open; one that is open for another gateway is shared.

        Args:
            prepared: the graph.
            crossing: not over the input cut.
            worst_first: all of the route; those that come first are closed first where there is no room.

        Returns:
            Whether the head of another crossing was closed for it: requests must not be sent that way any more.
        """
        cut, split = crossing.cut, crossing.split
        if cut is None or not _lacks_head(crossing, crossing.head):
            return False
        for other in worst_first:
            if other.place[1:] == crossing.place[1:] and not _lacks_head(crossing, other.head):
                crossing.head = other.head
                return False
        others = [other for other in worst_first if other is not crossing and other.head is not None]
        own = next((other.head for other in others if other.head_id == crossing.head_id), None)
        own = own if split is not None or not _lacks_head(crossing, own) else None
        left_bytes = self.budget_bytes(prepared) - sum(self._pieces(prepared, cut, split).values())
        for other in others:
            if self._held_bytes(prepared, others) > left_bytes:
                close_rest(other)
        closed = False
        for other in others:
            is_full = own is None and len(_head_ids(others)) >= MOST_HEADS
            if self._held_bytes(prepared, others) > left_bytes or is_full:
                close(other)
                closed = True
        if split is not None:
            crossing.head = opened_split(self._device, prepared, cut, split, own)
        elif own is not None:
            crossing.head = replace(own, coder=None)
        else:
            crossing.head = opened_head(self._device, prepared, cut, [way.prospect.codec for way in crossing.ways])
        self._has_moved = True
        return closed

    def fitting(self, prepared: Prepared, best_first: Iterable[Crossing]) -> list[Crossing]:
        """The crossings whose heads may stay open, the best ones first."""
        most_bytes = self.budget_bytes(prepared)
        kept: list[Crossing] = []
        held: dict[tuple[str, str], int] = {}
        for crossing in best_first:
            if crossing.cut is None or crossing.head is None:
                continue
            wanted = held | self._pieces(prepared, crossing.cut, crossing.split)
            n_heads = len({crossing.head_id, *(other.head_id for other in kept)})
            if not kept or wanted == held or (sum(wanted.values()) <= most_bytes and n_heads <= MOST_HEADS):
                held = wanted
                kept.append(crossing)
        return kept

    def go_on(self, prepared: Prepared, route: Route, outputs: Sequence[str], best_first: Sequence[Crossing]) -> None:
        """Opens what goes on from the activations of the best crossings, as far as the budget reaches; closes the rest.

        Args:
            prepared: the graph.
            route: whose sample they are tried with: they must answer as the whole model does.
            outputs: names of all outputs of the whole model.
            best_first: crossings with open heads.
        """
        left_bytes = self.budget_bytes(prepared) - sum(self._open_pieces(prepared, best_first).values())
        rests: dict[str, Rest | None] = {}
        for crossing in best_first:
            if crossing.cut is None or not crossing.has_own_head:
                continue  # another head's activation is no place to go on from: the answer would not be the model's
            cut_id = crossing.cut.id
            if cut_id not in rests:
                n_bytes = self._n_bytes(prepared, cut_id, "tail")
                rests[cut_id] = None
                if n_bytes <= left_bytes:
                    rests[cut_id] = crossing.rest or self._tried(prepared, route, outputs, crossing)
                    left_bytes -= n_bytes if rests[cut_id] is not None else 0
            put_rest(crossing, rests[cut_id])

    def settle(self) -> None:
        """After opening and closing: what that left unused is given back."""
        if self._has_moved:
            self._has_moved = False
            give_back_unused()

    def _tried(self, prepared: Prepared, route: Route, outputs: Sequence[str], crossing: Crossing) -> Rest | None:
        """The open and timed rest of a crossing, None where it is of no use."""
        cut, head, sample = crossing.cut, crossing.head, route.sample
        if cut is None or head is None or sample is None or route.reference is None or route.local_s is None:
            return None
        key = (str(prepared.folder), cut.id)
        if key in self._unusable or cut.head_work_ratio < GAIN_RATIO:
            return None
        try:
            wanted = dict(zip(outputs, route.reference, strict=True))
            rest, seconds = self._timed(prepared, cut, head, sample, wanted)
        except Exception as exc:  # noqa: BLE001  (whatever the engine raises: a hedge begins anew from the inputs)
            if not self._device.is_interrupted:
                log.warning("rest.unusable cut=%s error=%s", cut.id, exc)
                self._unusable.add(key)
            return None
        # A part takes no longer than the whole, whatever the machine did beside the measurement.
        return replace(rest, rest_s=min(Timing.of(seconds).low_s / route.device_speed_ratio, route.local_s))

    def _timed(
        self, prepared: Prepared, cut: Cut, head: Head, sample: Mapping[str, np.ndarray], wanted: Wanted
    ) -> tuple[Rest, list[float]]:
        self._has_moved = True
        rest = opened_rest(self._device, prepared, cut)
        held, found = self._device.computed_by(head, sample)
        names = [name for name in wanted if name not in found]
        outputs, seconds = self._device.timed_run(rest.run, names, held, n_runs=N_RUNS)
        found |= zip(names, outputs, strict=True)
        apart = distance([found[name] for name in wanted], wanted.values())
        if apart > TOLERANCE_RATIO:
            raise EngineFailed(f"the rest after cut {cut.id} differs from the whole model by {apart:.1e}", cut=cut.id)
        return rest, seconds

    def budget_bytes(self, prepared: Prepared) -> int:
        """Weights that all heads and rests together may hold."""
        whole_bytes = self._n_bytes(prepared, "")
        return max(LEAST_BYTES, int(self._ratio * whole_bytes) + min(self._given_back_bytes, whole_bytes))

    def _held_bytes(self, prepared: Prepared, crossings: Iterable[Crossing]) -> int:
        rests = {crossing.cut.id for crossing in crossings if crossing.cut is not None and crossing.rest is not None}
        heads_bytes = sum(self._open_pieces(prepared, crossings).values())
        return heads_bytes + sum(self._n_bytes(prepared, cut_id, "tail") for cut_id in rests)

    def _open_pieces(self, prepared: Prepared, crossings: Iterable[Crossing]) -> Pieces:
        """Heads and encoders that are open."""
        pieces: dict[tuple[str, str], int] = {}
        for crossing in crossings:
            if crossing.cut is not None and crossing.head is not None:
                pieces |= self._pieces(prepared, crossing.cut, crossing.split)
        return pieces

    def _pieces(self, prepared: Prepared, cut: Cut, split: SplitFiles | None) -> dict[tuple[str, str], int]:
        """What is open on this device of a cut, or of a split there."""
        if split is None:
            return {("head", cut.id): self._n_bytes(prepared, cut.id)}
        pieces: dict[tuple[str, str], int] = {("encoder", split.digest): split.n_bytes("encoder", "prior")}
        if "head" in split.files:
            return pieces | {("head", split.digest): split.n_bytes("head")}
        return pieces | {("head", cut.id): self._n_bytes(prepared, cut.id)}

    def _n_bytes(self, prepared: Prepared, cut_id: str, side: Side = "head") -> int:
        """Weights of a head or tail, or of the whole model without a cut."""
        key = (str(prepared.folder), cut_id, side)
        if key not in self._sizes:
            path = prepared.graph_path
            if cut_id:
                path = prepared.head_path(cut_id) if side == "head" else prepared.tail_path(cut_id)
            if is_tflite(path):
                self._sizes[key] = path.stat().st_size
                return self._sizes[key]
            places = {(place.location, place.end_bytes): place.n_bytes for place in external_data(path)}
            self._sizes[key] = sum(places.values())
        return self._sizes[key]


def _head_ids(crossings: Iterable[Crossing]) -> set[str]:
    """Of the heads that are open."""
    return {crossing.head_id for crossing in crossings if crossing.head is not None}


def _lacks_head(crossing: Crossing, head: Head | None) -> bool:
    """Whether a head that is open would not do for a crossing."""
    if crossing.split is not None:
        return head is None
    return lacks_levels(head, [way.prospect.codec for way in crossing.ways])


def put_rest(crossing: Crossing, rest: Rest | None) -> None:
    """What goes on from a crossing's activation from now on, None where nothing does; its ways know what it takes."""
    crossing.rest = rest
    rest_s = rest.rest_s if rest is not None else None
    for way in crossing.ways:
        if way.prospect.rest_s != rest_s:
            way.prospect = replace(way.prospect, rest_s=rest_s)


def close_rest(crossing: Crossing) -> None:
    """Gives the rest's memory back, once the requests that are running it have ended."""
    put_rest(crossing, None)
    sleep(0)  # the engine frees a session under Python's lock: others come in between two of them


def close(crossing: Crossing) -> None:
    """Gives the memory of head and rest back, once the requests that are running them have ended."""
    close_rest(crossing)
    crossing.verified = False
    crossing.head = None
    sleep(0)


def _ratio() -> float:
    """The share of the whole model's weights that heads may hold."""
    try:
        ratio = float(os.environ.get(VARIABLE, "") or MEMORY_RATIO)
    except ValueError:
        return MEMORY_RATIO
    return ratio if 0 <= ratio < float("inf") else MEMORY_RATIO
