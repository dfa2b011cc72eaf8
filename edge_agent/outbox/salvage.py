"""What can still be read of a damaged outbox: rows whose content has its digest, in their order."""

import sqlite3
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from edge_agent.outbox.blob_files import BlobFiles, Sealer
from edge_agent.outbox.database import Connect
from edge_agent.outbox.policy import PRIORITY
from edge_agent.outbox.records import NewItem
from hybrid.errors import HybridError

_MOST_ITEMS: Final = 20_000
_MOST_BYTES: Final = 64 << 20
"""Of bodies taken over; a start must not take for ever, nor fill a small memory."""

_MOST_MISSES: Final = 2_000
_QUERY: Final = (
    "SELECT id, kind, stream, seq, digest, about, made_s, blob, ticket, origin_epoch, origin_seq, body"
    " FROM items WHERE id > ? ORDER BY id LIMIT 1"
)


def salvaged(path: Path, connect: Connect | None, vault: Sealer, blobs: BlobFiles) -> list[NewItem]:
    """The sound items of a file that was set aside; none where nothing can be read of it."""
    try:
        connection = connect(path) if connect is not None else sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return []
    try:
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        return _items(connection, vault, blobs)
    finally:
        with suppress(sqlite3.Error):
            connection.close()


def _items(connection: sqlite3.Connection, vault: Sealer, blobs: BlobFiles) -> list[NewItem]:
    epoch = ""
    with suppress(sqlite3.Error):
        (epoch,) = connection.execute("SELECT value FROM facts WHERE name = 'epoch'").fetchone() or ("",)
    items: list[NewItem] = []
    last, n_misses, n_bytes = 0, 0, 0
    while n_misses < _MOST_MISSES and len(items) < _MOST_ITEMS and n_bytes < _MOST_BYTES:
        try:
            row = connection.execute(_QUERY, (last,)).fetchone()
        except sqlite3.Error:
            last, n_misses = last + 1, n_misses + 1
            continue
        if row is None:
            break
        last = row[0] if isinstance(row[0], int) and row[0] > last else last + 1
        item = _item(row, epoch, vault, blobs)
        if item is not None:
            items.append(item)
            n_bytes += len(item.body)
    return items


def _item(row: tuple[object, ...], epoch: str, vault: Sealer, blobs: BlobFiles) -> NewItem | None:
    """The item of a row, None where anything of it is not what was written."""
    _, kind, stream, seq, digest, about, made_s, blob, ticket, origin_epoch, origin_seq, sealed = row
    texts = isinstance(stream, str) and isinstance(about, str) and isinstance(ticket, str) and isinstance(digest, str)
    if not texts or not isinstance(seq, int) or not isinstance(made_s, float) or not isinstance(sealed, bytes):
        return None
    try:
        body = blobs.read(blob) if isinstance(blob, str) and blob else vault.unseal(sealed, str(digest).encode())
    except HybridError:
        return None
    if sha256(body).hexdigest() != digest:
        return None
    origin = (origin_epoch, origin_seq) if isinstance(origin_epoch, str) and isinstance(origin_seq, int) else None
    for known in PRIORITY:
        if known == kind and str(stream).partition("/")[0] == known:
            return NewItem(
                kind=known,
                stream=str(stream),
                body=body,
                about=str(about),
                ticket=str(ticket),
                made_s=made_s,
                origin=origin or ((epoch, seq) if epoch else None),
            )
    return None
