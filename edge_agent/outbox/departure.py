"""Which items travel in the next call: the most important first, those of a stream in order, and how many."""

import sqlite3
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Any, Final

from edge_agent.outbox.blob_files import Sealer
from edge_agent.outbox.ledger import Ledger
from edge_agent.outbox.records import Batch, StoredItem
from hybrid.errors import CorruptContent

MOST_BYTES: Final = 4 << 20
MOST_ITEMS: Final = 512
"""Of one call."""

_COLUMNS: Final = "id, kind, stream, seq, digest, made_s, n_bytes, blob, origin_epoch, origin_seq"
_MOST_LOOKED_AT: Final = 4096


def next_batch(
    connection: sqlite3.Connection,
    ledger: Ledger,
    vault: Sealer,
    *,
    least_important: int,
    held: Collection[str],
    age_s: Callable[[float], float],
) -> Batch:
    """The next call's items. One whose file must be brought first travels at the head of its call.

    Args:
        held: streams that do not travel now.
        age_s: of a row, by when it was made.
    """
    found: list[StoredItem] = []
    damaged: list[StoredItem] = []
    n_bytes = 0
    last_seq: dict[str, int] = {}
    for row in _rows(connection, ledger, least_important, held):
        row_id, kind, stream, seq, digest, made_s, size, blob, origin_epoch, origin_seq = row
        if len(found) >= MOST_ITEMS or (found and blob) or n_bytes + (0 if blob else size) > MOST_BYTES:
            break
        body = b"" if blob else _body(connection, vault, row_id, digest)
        before = last_seq.get(stream, ledger.acked.get(stream, -1))
        item = StoredItem(
            id=row_id,
            kind=kind,
            epoch=ledger.epoch,
            stream=stream,
            seq=seq,
            digest=digest,
            skipped=max(0, seq - 1 - before),
            age_s=age_s(made_s),
            n_bytes=size,
            body=body or b"",
            blob=blob,
            origin=None if origin_epoch is None else (origin_epoch, origin_seq),
        )
        if body is None:
            damaged.append(item)
            continue
        found.append(item)
        last_seq[stream] = seq
        n_bytes += 0 if blob else size
    return Batch(epoch=ledger.epoch, items=tuple(found), damaged=tuple(damaged))


def _rows(
    connection: sqlite3.Connection, ledger: Ledger, least_important: int, held: Collection[str]
) -> list[tuple[Any, ...]]:
    marks = ", ".join("?" * len(held))
    limit = MOST_ITEMS + len(ledger.settled) + 1
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM items WHERE priority <= ? AND stream NOT IN ({marks}) ORDER BY priority, id LIMIT ?",  # noqa: S608
        (least_important, *held, min(limit, _MOST_LOOKED_AT)),
    ).fetchall()
    return [row for row in rows if row[0] not in ledger.settled]


def _body(connection: sqlite3.Connection, vault: Sealer, row_id: int, digest: str) -> bytes | None:
    """The content of a row; None where the disk changed it."""
    (sealed,) = connection.execute("SELECT body FROM items WHERE id = ?", (row_id,)).fetchone()
    try:
        content = vault.unseal(bytes(sealed), digest.encode())
    except CorruptContent:
        return None
    return content if sha256(content).hexdigest() == digest else None
