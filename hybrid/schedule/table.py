"""A set of prospects as rows and columns of numbers: made once, weighed for every request."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf, isnan
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from hybrid.schedule.beliefs import TableRecord
from hybrid.schedule.prospect import Constraints, Key, Prospect, refusal

Floats = npt.NDArray[np.float64]

FEATURES = ("head_s", "encode_s", "bytes_up", "bytes_down", "tail_s", "one")
"""Columns of `Block.features`: what a cost is linear in."""


class Row(NamedTuple):
    """One remote prospect as plain numbers; NaN where unknown, an infinite rest is that of the best local prospect.

    `tail_s` contains the decoding.
    """

    head_s: float
    encode_s: float
    bytes_up: float
    bytes_down: float
    tail_s: float
    rest_s: float
    place: int


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The remote prospects of one gateway that are worth weighing under some constraints.

    Attributes:
        url: the gateway.
        rows: their rows in `Table.rows`.
        features: (n, 6) float64; see `FEATURES`.
        head_s, encode_s, bytes_up, bytes_down, tail_s: its columns.
        rest_s: (n,) float64, infinite where it is that of the best local prospect; None where all are.
        most_bytes_up, most_bytes_down: the largest of them.
    """

    url: str
    rows: tuple[int, ...]
    features: Floats
    head_s: Floats
    encode_s: Floats
    bytes_up: Floats
    bytes_down: Floats
    tail_s: Floats
    rest_s: Floats | None
    most_bytes_up: float
    most_bytes_down: float


class Live(NamedTuple):
    """What constraints leave of a table whatever the moment: blocks by gateway, and the local indices they refuse."""

    blocks: tuple[Block, ...]
    permitted: frozenset[int]
    barred_here: frozenset[int]


class Table:
    """All ways of a route, the whole model on this device first.

    Attributes:
        prospects: the ways; the first one is local.
        id: names the table in a log: the same prospects have the same id.
        local: indices of the local ones.
        remote: indices of the others, in the order of the rows.
        row_of: the row of each of those.
        rows: their numbers.
        urls: the gateways of the remote ones.
    """

    def __init__(self, prospects: Sequence[Prospect], name: str = "") -> None:
        if not prospects or prospects[0].placement != "local":
            raise ValueError("the first prospect must be the whole model on this device (placement local)")
        self.prospects = tuple(prospects)
        self.id = name or blake2b(msgspec.json.encode(self.prospects), digest_size=8).hexdigest()
        self.local = tuple(i for i, prospect in enumerate(prospects) if prospect.placement == "local")
        self.remote = tuple(i for i, prospect in enumerate(prospects) if prospect.placement != "local")
        self.row_of = {index: row for row, index in enumerate(self.remote)}
        self.urls = tuple(dict.fromkeys(prospects[i].gateway for i in self.remote))
        self.rows = tuple(_row(prospects[i], self.urls.index(prospects[i].gateway)) for i in self.remote)
        self._index_of = {prospect.key: i for i, prospect in enumerate(prospects)}
        self._live: dict[tuple[float, bool, bool], Live] = {}

    @classmethod
    def of(cls, record: TableRecord) -> "Table":
        """The table of a log, under the name that decisions there refer to."""
        return cls(record.prospects, record.id)

    def index_of(self, key: Key) -> int:
        """Place of a prospect, -1 where it is not among them."""
        return self._index_of.get(key, -1)

    def live(self, constraints: Constraints) -> Live:
        """What these constraints leave, whatever the moment."""
        key = (constraints.max_accuracy_drop, constraints.raw_input_may_leave, constraints.lossy_allowed)
        known = self._live.get(key)
        if known is None:
            ever = Constraints(max_accuracy_drop=key[0], raw_input_may_leave=key[1], lossy_allowed=key[2])
            permitted = [row for row, i in enumerate(self.remote) if not refusal(self.prospects[i], ever)]
            here = frozenset(i for i in self.local if refusal(self.prospects[i], ever))
            blocks = tuple(
                self._block(place, [row for row in permitted if self.rows[row].place == place])
                for place in range(len(self.urls))
            )
            known = self._live[key] = Live(blocks, frozenset(permitted), here)
        return known

    def _block(self, place: int, permitted: Sequence[int]) -> Block:
        timed = [row for row in permitted if not any(map(isnan, self.rows[row]))]
        kept = [row for row in timed if not any(_beats(self.rows[other], self.rows[row]) for other in timed)]
        features = np.array([(*self.rows[row][:5], 1.0) for row in kept]).reshape(-1, len(FEATURES))
        head_s, encode_s, bytes_up, bytes_down, tail_s = (np.ascontiguousarray(features[:, at]) for at in range(5))
        rest_s = np.array([self.rows[row].rest_s for row in kept])
        return Block(
            url=self.urls[place],
            rows=tuple(kept),
            features=features,
            head_s=head_s,
            encode_s=encode_s,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            tail_s=tail_s,
            rest_s=None if np.isinf(rest_s).all() else rest_s,
            most_bytes_up=float(bytes_up.max(initial=0.0)),
            most_bytes_down=float(bytes_down.max(initial=0.0)),
        )

    def record(self) -> TableRecord:
        """The line of a log that decisions refer to."""
        return TableRecord(id=self.id, prospects=self.prospects)


def _row(prospect: Prospect, place: int) -> Row:
    unknown = float("nan")
    return Row(
        unknown if prospect.head_s is None else prospect.head_s,
        prospect.encode_s,
        prospect.bytes_up,
        prospect.bytes_down,
        unknown if prospect.tail_s is None else prospect.tail_s + prospect.decode_s,
        inf if prospect.rest_s is None else prospect.rest_s,
        place,
    )


def _beats(a: Row, b: Row) -> bool:
    """Whether one is better in some part and worse in none, so that the other is never the cheapest."""
    return a[:6] != b[:6] and all(x <= y for x, y in zip(a[:6], b[:6], strict=True))
