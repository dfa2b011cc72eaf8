"""Cuts: sets of tensors that cross from head to tail, and the table of those that one prepared graph has."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from compression.tensor import TensorSpec
from hybrid.errors import UnknownCut

CutKind = Literal["input", "interior", "output"]
Side = Literal["head", "tail"]
SIDES: Final[tuple[Side, ...]] = ("head", "tail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One place to divide a graph: everything follows from the set of tensors that cross.

    Attributes:
        id: see `cut_id`.
        kind: `input` sends the request's inputs (no head), `output` sends nothing (no tail).
        tensors: what crosses, sorted by name; empty for the output cut.
        n_bytes: raw little-endian bytes of `tensors`; those of unknown size count as 0 (see `sized`).
        sized: every crossing tensor's size is known before a run. An unsized cut can be extracted and forced, but is no
            candidate, for nobody can say what it costs.
        head_work_ratio: share of the graph's work (a FLOP proxy) that the head does, 0 to 1.
        head_outputs: graph outputs that the head answers with, in graph order.
        tail_outputs: the other graph outputs, in graph order.
        reply_bytes: raw bytes of `tail_outputs`, those of unknown size counting as 0.
    """

    id: str
    kind: CutKind
    tensors: tuple[TensorSpec, ...]
    n_bytes: int
    sized: bool
    head_work_ratio: float
    head_outputs: tuple[str, ...]
    tail_outputs: tuple[str, ...]
    reply_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTable:
    """All cuts of one prepared graph.

    Attributes:
        cuts: in depth order, the input cut first and the output cut last.
        pareto: ids of the cuts worth timing, in depth order: input, output, and each sized interior cut that carries
            fewer bytes than every cut before it.
        note: why no interior cut is worth anything, or None where one is.
        n_nodes: nodes of the graph that depend on the inputs.
        keeps_state: the model remembers something between runs; the heads of all interior cuts hold it, and nobody else
            may compute the whole.
    """

    cuts: tuple[Cut, ...]
    pareto: tuple[str, ...]
    note: str | None
    n_nodes: int
    keeps_state: bool = False

    def get(self, cut_id: str) -> Cut:
        """The cut of this id.

        Raises:
            UnknownCut: it is not in this table.
        """
        for cut in self.cuts:
            if cut.id == cut_id:
                return cut
        raise UnknownCut(
            f"cut {cut_id!r} is not among the {len(self.cuts)} cuts of this model and shape key; list them with "
            "`hybrid plan`",
            cut=cut_id,
        )

    @property
    def interior(self) -> tuple[Cut, ...]:
        """The cuts with both a head and a tail, in depth order."""
        return tuple(cut for cut in self.cuts if cut.kind == "interior")

    @property
    def promising(self) -> tuple[Cut, ...]:
        """The interior cuts worth timing, the most promising first.

        Promise before anything is timed: the share of the input's bytes that cross, plus the head's share of the work.
        """
        input_bytes = max(1, self.cuts[0].n_bytes)
        worth = [cut for cut in self.interior if cut.id in self.pareto]
        return tuple(sorted(worth, key=lambda cut: cut.n_bytes / input_bytes + cut.head_work_ratio))


def cut_id(tensors: Iterable[TensorSpec]) -> str:
    """First 16 hex digits of the SHA-256 over the sorted [name, dtype, shape] triples as canonical JSON.

    Unknown dimensions are written `"?"`. Nothing else enters: no path, no weight, no byte of a graph file.
    """
    triples = [
        [spec.name, spec.dtype, ["?" if size is None else size for size in spec.shape]]
        for spec in sorted(tensors, key=lambda spec: spec.name)
    ]
    text = json.dumps(triples, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
