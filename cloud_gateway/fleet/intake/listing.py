"""What boxes brought, for people: listed, read, and removed once it is done with."""

from collections.abc import Sequence
from typing import Final

import msgspec

from cloud_gateway.fleet.intake.store import IngestStore, remove
from hybrid.errors import BadMessage, NotFound
from hybrid.fleet.messages import Kind

LISTED: Final[tuple[Kind, ...]] = ("result", "sample", "telemetry")
MOST_LISTED: Final = 1000


class StoredThing(msgspec.Struct, frozen=True, kw_only=True):
    """One item, without its content.

    Attributes:
        id: rises with the time of its coming.
        made_s: seconds since 1970 by the gateway's clock; None where a restart of the box lost it.
    """

    id: int
    box: str
    kind: str
    stream: str
    epoch: str
    seq: int
    made_s: float | None
    received_s: float
    n_bytes: int
    sha256: str


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a kind is kept for one box, and how much of it left by the policy."""

    box: str
    kind: str
    n_items: int
    n_bytes: int
    n_dropped: int


class Listing:
    """Queries of the store; every method blocks."""

    def __init__(self, store: IngestStore) -> None:
        self._store = store

    def list(self, kind: str, *, box: str = "", after: int = 0, limit: int = MOST_LISTED) -> Sequence[StoredThing]:
        """Items of a kind in the order in which they came, of one box or (empty) of all, after an id."""
        if kind not in LISTED or not 1 <= limit <= MOST_LISTED or after < 0:
            raise BadMessage(f"kind {kind[:20]!r}, limit {limit}: {', '.join(LISTED)} are kept, 1 to {MOST_LISTED}")
        whose, of_whom = _whose(box)
        with self._store.database.reading() as db:
            rows = db.execute(
                "SELECT id, box, kind, stream, epoch, seq, made_s, received_s, n_bytes, digest FROM item"  # noqa: S608
                f" WHERE kind = ? AND id > ?{whose} ORDER BY id LIMIT ?",
                (kind, after, *of_whom, limit),
            ).fetchall()
        names = StoredThing.__struct_fields__
        return [StoredThing(**dict(zip(names, row, strict=True))) for row in rows]

    def amounts(self) -> Sequence[Amount]:
        """How much is kept, by box and kind."""
        with self._store.database.reading() as db:
            rows = db.execute("SELECT box, kind, n_items, n_bytes, n_dropped FROM held ORDER BY box, kind").fetchall()
        return [Amount(box=row[0], kind=row[1], n_items=row[2], n_bytes=row[3], n_dropped=row[4]) for row in rows]

    def content(self, item_id: int, *, offset: int = 0, n_bytes: int = -1) -> bytes:
        """The content of an item, or (by `n_bytes`) a piece of it. Raises `NotFound`."""
        with self._store.database.reading() as db:
            row = db.execute("SELECT box, kind, blob, body FROM item WHERE id = ?", (item_id,)).fetchone()
        if row is None or row[1] not in LISTED:
            raise NotFound(f"there is no item {item_id} here, or not any more")
        if row[2]:
            return self._store.blobs.read(row[0], row[2], offset=offset, n_bytes=n_bytes)
        return bytes(row[3][offset:] if n_bytes < 0 else row[3][offset : offset + n_bytes])

    def remove(self, kind: str, up_to: int, *, box: str = "") -> int:
        """Remove items of a kind up to an id, of one box or of all; how many those were."""
        if kind not in LISTED:
            raise BadMessage(f"kind {kind[:20]!r}: {', '.join(LISTED)} are kept")
        whose, of_whom = _whose(box)
        n_removed = 0
        while True:
            with self._store.database.writing() as db:
                rows = db.execute(
                    f"SELECT id, box, n_bytes, blob FROM item WHERE kind = ? AND id <= ?{whose} ORDER BY id LIMIT 500",  # noqa: S608
                    (kind, up_to, *of_whom),
                ).fetchall()
                for item_id, of_box, n_bytes, _ in rows:
                    remove(db, of_box, kind, item_id, n_bytes)
            self._store.forget_blobs([(of_box, blob) for _, of_box, _, blob in rows if blob])
            n_removed += len(rows)
            if not rows:
                return n_removed


def _whose(box: str) -> tuple[str, tuple[str, ...]]:
    """The condition for one box, in words that let its index be used, or none for all."""
    return (" AND box = ?", (box,)) if box else ("", ())
