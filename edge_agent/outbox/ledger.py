"""The outbox's numbers: which come next, what is held by kind, what may leave and is counted when it does.

Design: all of it is in memory and follows from the rows; only what rows cannot tell any more once they left (a stream's
next number, what was dropped) is written, in the transaction in which they leave.
"""

import sqlite3
from dataclasses import replace
from random import Random
from typing import Final

from edge_agent.outbox.policy import DROPPED_FIRST, KINDS, PRIORITY, OutboxLimits
from edge_agent.outbox.records import Count
from hybrid.errors import HybridError, OutboxFull
from hybrid.fleet.messages import Kind

Row = tuple[int, Kind, str, int, str, int, str]
"""id, kind, stream, seq, blob, n_bytes, ticket: what is remembered of a row that leaves."""

ROW: Final = "id, kind, stream, seq, blob, n_bytes, ticket"
_RETRY_S: Final = 30.0


class Ledger:
    """See the module; used inside the store's lock.

    Attributes:
        epoch: under which items are numbered.
        counts: by kind; settled items are not held any more.
        next: by stream, the number that its next item gets.
        acked: by stream, the highest number that the gateway has.
        settled: rows that are stored at the gateway, or never will be, and leave with the next commit.
        files: names of files whose rows leave with this transaction.
    """

    def __init__(self, limits: OutboxLimits) -> None:
        self.limits = limits
        self.epoch = ""
        self.counts: dict[Kind, Count] = {kind: Count() for kind in KINDS}
        self.next: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.settled: dict[int, Row] = {}
        self.files: set[str] = set()
        self._touched: set[str] = set()
        self._tallied = False

    def copy(self) -> "Ledger":
        """The same numbers, to return to when a transaction fails."""
        twin = Ledger(self.limits)
        twin.epoch = self.epoch
        twin.counts = {kind: replace(count) for kind, count in self.counts.items()}
        twin.next, twin.acked, twin.settled = dict(self.next), dict(self.acked), dict(self.settled)
        twin._tallied = self._tallied
        return twin

    @property
    def n_bytes(self) -> int:
        """Bytes of all bodies held."""
        return sum(count.n_bytes for count in self.counts.values())

    @property
    def n_items(self) -> int:
        """All items held."""
        return sum(count.n_items for count in self.counts.values())

    def read(self, connection: sqlite3.Connection, installation: str, rng: Random) -> tuple[int, float]:
        """Take the numbers from the rows; the highest id, and when the newest row was made."""
        facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        for stream, following, acked in connection.execute("SELECT stream, next_seq, acked FROM streams").fetchall():
            self.next[stream], self.acked[stream] = following, acked
        for stream, highest in connection.execute("SELECT stream, max(seq) FROM items GROUP BY stream").fetchall():
            self.next[stream] = max(self.next.get(stream, 0), highest + 1)
        top_id, clock_s = 0, 0.0
        query = "SELECT kind, count(*), sum(n_bytes), max(id), max(made_s) FROM items GROUP BY kind"
        for kind, n_items, n_bytes, newest, made_s in connection.execute(query).fetchall():
            self.counts[kind].n_items, self.counts[kind].n_bytes = n_items, n_bytes
            top_id, clock_s = max(top_id, newest), max(clock_s, made_s)
        query = "SELECT kind, n_dropped, n_replaced, n_refused, n_lost FROM tallies"
        for kind, dropped, replaced, refused, lost in connection.execute(query).fetchall():
            count = self.counts[kind]
            count.n_dropped, count.n_replaced, count.n_refused, count.n_lost = dropped, replaced, refused, lost
        self.epoch = facts.get("epoch", "")
        if not self.epoch or facts.get("installation", "") != installation:
            self.renew(connection, rng)
        return top_id, clock_s

    def renew(self, connection: sqlite3.Connection, rng: Random) -> None:
        """Draw a new epoch and number all items anew; each remembers its first number, so that it counts once."""
        former, self.epoch = self.epoch, f"{rng.getrandbits(128):032x}"
        self._forget(connection)
        self.next, self.acked = {}, {}
        rows = connection.execute("SELECT id, stream, seq, origin_epoch, ticket FROM items ORDER BY id").fetchall()
        for row_id, stream, seq, origin, ticket in rows:
            fresh = self.next.get(stream, 0)
            self.next[stream] = fresh + 1
            connection.execute("UPDATE items SET seq = ? WHERE id = ?", (fresh, row_id))
            if origin is None:
                connection.execute(
                    "UPDATE items SET origin_epoch = ?, origin_seq = ? WHERE id = ?", (former, seq, row_id)
                )
            if ticket:
                connection.execute(
                    "UPDATE tickets SET epoch = ?, seq = ? WHERE ticket = ?", (self.epoch, fresh, ticket)
                )
        connection.execute("DELETE FROM streams")
        connection.execute("INSERT OR REPLACE INTO facts VALUES ('epoch', ?)", (self.epoch,))

    def take(self, kind: Kind, stream: str, n_bytes: int) -> int:
        """Count an item in; the number that it gets."""
        seq = self.next.get(stream, 0)
        self.next[stream] = seq + 1
        self.counts[kind].n_items += 1
        self.counts[kind].n_bytes += n_bytes
        return seq

    def settle(self, row: Row) -> None:
        """Count an item out; its row leaves with the next commit."""
        self.settled[row[0]] = row
        self.counts[row[1]].n_items -= 1
        self.counts[row[1]].n_bytes -= row[5]

    def drop(self, connection: sqlite3.Connection, rows: list[Row]) -> None:
        """Remove rows in this transaction."""
        for row in rows:
            self.settle(row)
        self._forget(connection)

    def tally(self, kind: Kind, *, dropped: int = 0, replaced: int = 0, refused: int = 0, lost: int = 0) -> None:
        """Count what became of items that did not arrive; written with the next commit."""
        count = self.counts[kind]
        count.n_dropped += dropped
        count.n_replaced += replaced
        count.n_refused += refused
        count.n_lost += lost
        self._tallied = True

    def drop_oldest(self, connection: sqlite3.Connection, kind: Kind, wanted_bytes: int) -> int:
        """Drop the oldest of a kind, as many as free so many bytes but a few at most; how many."""
        found = connection.execute(
            f"SELECT {ROW} FROM items WHERE priority = ? AND kind = ? ORDER BY id LIMIT ?",  # noqa: S608
            (PRIORITY[kind], kind, 16 + len(self.settled)),
        )
        rows: list[Row] = []
        for row in found.fetchall():
            if row[0] not in self.settled and sum(held[5] for held in rows) < wanted_bytes:
                rows.append(row)
        self.drop(connection, rows)
        self.tally(kind, dropped=len(rows))
        return len(rows)

    def make_way(
        self, connection: sqlite3.Connection, kind: Kind, n_bytes: int, *, is_scarce: bool
    ) -> HybridError | None:
        """Drop what may be dropped until an item fits; the refusal where it cannot.

        Args:
            is_scarce: the disk is nearly full: what may be dropped only takes the place of its own kind.
        """
        limits, count = self.limits.kinds[kind], self.counts[kind]
        may_drop = kind in DROPPED_FIRST
        if is_scarce and may_drop:
            freed = count.n_bytes
            while freed - count.n_bytes < n_bytes and self.drop_oldest(connection, kind, n_bytes):
                pass
            if freed - count.n_bytes < n_bytes:
                return _full(kind, f"less than {self.limits.reserve_bytes} bytes of the disk are free")
        while count.n_bytes + n_bytes > limits.n_bytes or count.n_items >= limits.n_items:
            if not may_drop or n_bytes > limits.n_bytes or not self.drop_oldest(connection, kind, n_bytes):
                return _full(kind, f"{count.n_items} with {count.n_bytes} bytes wait for the gateway already")
        leaving = DROPPED_FIRST[: DROPPED_FIRST.index(kind) + 1] if may_drop else DROPPED_FIRST
        while kind != "report" and (
            self.n_bytes + n_bytes > self.limits.n_bytes or self.n_items >= self.limits.n_items
        ):
            if not any(self.drop_oldest(connection, other, n_bytes) for other in leaving):
                return _full(kind, f"{self.n_items} items with {self.n_bytes} bytes wait for the gateway already")
        return None

    def write_down(self, connection: sqlite3.Connection) -> None:
        """Finish a transaction: settled rows leave, and what they alone told is written."""
        self._forget(connection)
        for stream in self._touched:
            connection.execute(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)",
                (stream, self.next.get(stream, 0), self.acked.get(stream, -1)),
            )
        if self._tallied:
            for kind, count in self.counts.items():
                connection.execute(
                    "INSERT OR REPLACE INTO tallies VALUES (?, ?, ?, ?, ?)",
                    (kind, count.n_dropped, count.n_replaced, count.n_refused, count.n_lost),
                )

    def written(self) -> set[str]:
        """After the commit: the files that were named by rows which left."""
        files, self.files = self.files, set()
        self._touched, self._tallied = set(), False
        return files

    def _forget(self, connection: sqlite3.Connection) -> None:
        for row_id, _, stream, _, blob, _, _ in self.settled.values():
            connection.execute("DELETE FROM items WHERE id = ?", (row_id,))
            self._touched.add(stream)
            if blob:
                self.files.add(blob)
        self.settled = {}


def _full(kind: Kind, why: str) -> OutboxFull:
    return OutboxFull(
        f"the outbox takes no further {kind}: {why}; bring the box online, or raise its limits", retry_after_s=_RETRY_S
    )
