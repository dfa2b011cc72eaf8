"""What is kept of masked rounds: their journals, and masked inputs until they are summed."""

import sqlite3
from collections.abc import Collection
from contextlib import suppress

from cloud_gateway.rounds.kept.spool import Spool
from hybrid.errors import CorruptContent, StorageError

ROW_BYTES = 64 << 10
"""A masked input up to this size lies in its row, a larger one in a file that is on the disk before the row."""


class MaskedRows:
    """The rows of one campaign; methods block unless they write within somebody's transaction."""

    def __init__(self, spool: Spool, campaign: str) -> None:
        self._spool, self._campaign = spool, campaign

    def journal(self, step: int) -> tuple[int, list[bytes]]:
        """The newest attempt at a step, 0 for none, and its entries in order."""
        where = "FROM masked WHERE campaign = ? AND step = ?"
        with self._spool.store.database.reading() as db:
            attempt = db.execute(f"SELECT max(attempt) {where}", (self._campaign, step)).fetchone()[0]
            rows = db.execute(
                f"SELECT entry {where} AND attempt = ? ORDER BY id",
                (self._campaign, step, attempt or 0),
            ).fetchall()
        return attempt or 0, [bytes(row[0]) for row in rows if row[0]]

    def put_file(self, step: int, box_id: str, content: bytes) -> None:
        """Keep a large masked input; on the disk when this returns."""
        self._spool.put(self._campaign, step, box_id, content)

    def put(
        self, db: sqlite3.Connection, at: tuple[int, int], entry: bytes, box_id: str = "", content: bytes | None = None
    ) -> None:
        """Add an entry; `at` is step and attempt, an empty entry begins an attempt."""
        values = (self._campaign, *at, entry, box_id, content)
        db.execute("INSERT INTO masked (campaign, step, attempt, entry, box, input) VALUES (?, ?, ?, ?, ?, ?)", values)

    def masked_input(self, step: int, attempt: int, box_id: str) -> bytes:
        """The input of a box. Raises `CorruptContent` where it is gone."""
        query = (
            "SELECT input FROM masked WHERE campaign = ? AND step = ? AND attempt = ? AND box = ? AND input IS NOT NULL"
        )
        with self._spool.store.database.reading() as db:
            row = db.execute(query, (self._campaign, step, attempt, box_id)).fetchone()
        if row is not None:
            return bytes(row[0])
        try:
            return self._spool.path(self._campaign, step, box_id).read_bytes()
        except OSError as exc:
            raise CorruptContent(f"the masked input of box {box_id} for step {step} is gone from the disk") from exc

    def forget(self, db: sqlite3.Connection, before_step: int) -> None:
        """Drop the rows of steps before this one."""
        db.execute("DELETE FROM masked WHERE campaign = ? AND step < ?", (self._campaign, before_step))

    def forget_files(self, step: int, box_ids: list[str]) -> None:
        """Remove the files of a step's inputs."""
        for box_id in box_ids:
            self._spool.path(self._campaign, step, box_id).unlink(missing_ok=True)


def forget_others(spool: Spool, running: Collection[str]) -> None:
    """Drop the rows of campaigns that are none of these: their sums are known, or never will be.

    What the disk does not let go of now, the next start drops.
    """
    with suppress(StorageError), spool.store.database.writing() as db:
        for (campaign,) in db.execute("SELECT DISTINCT campaign FROM masked").fetchall():
            if campaign not in running:
                db.execute("DELETE FROM masked WHERE campaign = ?", (campaign,))
