"""Ways of dividing a request as data: a head, a cut, a codec, and the files that the way brings along."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from hybrid.artifact.manifest import FileEntry, Split
from hybrid.artifact.splits import SplitFiles
from hybrid.calibration.record import Cell
from hybrid.partition.cut import Cut

Head = Literal["", "float", "int8"]
"""What the device computes of the model: nothing (the input cut), the cut's own head, or that head in int8."""

LEARNED: Final = "learned"
"""The codec of a bottleneck."""

CODECS: Final = ("lossless", "fp16", "q8", "q8z", "q4", "q4z")
"""Of what a cut's own head leaves."""

CARRIERS: Final = ("lossless", "q8z", "q4z")
"""Of what an int8 head leaves: 256 levels a tensor, of which half precision would make twice the bytes."""

EXACT: Final = frozenset({"lossless", "lossless-webp"})
"""Codecs that change nothing; by them a session sends without being permitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way.

    Attributes:
        cut: where; the input cut for a request that is sent whole.
        head: what the device computes.
        codec: of the catalog, or `learned`.
        entry: as the manifest declares it; None for what needs no file, whose head is the cut's and whose codec the
            catalog's.
        files: where its files lie, for an entry.
        content: what they are, by the names of the manifest.
        notes: remarks of who made it.
    """

    cut: Cut
    head: Head
    codec: str
    entry: Split | None = None
    files: SplitFiles | None = None
    content: Mapping[str, FileEntry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Short, unique in a report; that of the split where it is one."""
        if self.entry is not None:
            return self.entry.id
        return way_id(self.cut, self.head, self.codec)

    @property
    def called(self) -> str:
        """What calibrations and sessions call its codec."""
        return self.files.codec if self.files is not None else self.codec

    @property
    def is_exact(self) -> bool:
        """Whether it changes no answer, so that nobody has to permit it."""
        return self.head != "int8" and self.codec in EXACT


def way_id(cut: Cut, head: Head, codec: str, rate: int = 0) -> str:
    """`input-webp`, `float-CUT-q8z`, `int8-CUT-lossless`, `learned-CUT-1`, `int8-learned-CUT-1`."""
    if not head:
        return f"input-{codec}"
    if codec == LEARNED:
        return f"{'int8-' if head == 'int8' else ''}{LEARNED}-{cut.id[:8]}-{rate}"
    return f"{head}-{cut.id[:8]}-{codec}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A way with what was found of it on one part of the samples."""

    way: Way
    cell: Cell
    is_judged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedWay:
    """A way that is shipped: its files, where it has any, and the judging part's word."""

    way: Way
    cell: Cell


def path_of(way: Way, name: str) -> Path:
    """Where the file of a manifest's name lies; the names and the files of an entry have one order."""
    assert way.entry is not None
    assert way.files is not None
    places = dict(zip(way.entry.files, way.files.files.values(), strict=True))
    return places[name].path
