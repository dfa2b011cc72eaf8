"""Tickets of deferred requests: which wait, and the outcomes of those that came back, kept until they are fetched."""

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from edge_agent.outbox.blob_files import Sealer
from edge_agent.outbox.ledger import ROW
from edge_agent.outbox.policy import INLINE_BYTES
from edge_agent.outbox.store import OutboxStore
from hybrid.fleet.messages import Outcome

KEPT_S: Final = 7 * 86_400.0
"""An outcome that nobody fetches is forgotten after so long."""

KEPT_BYTES: Final = 256 << 20
"""Of all outcomes together; beyond it the oldest are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """How far a deferred request is.

    Attributes:
        is_settled: its outcome is here.
        is_sent: the gateway has it.
        code, detail: of the error, where it failed.
    """

    is_settled: bool
    is_sent: bool
    waits_s: float
    code: str
    detail: str
    content: bytes


class Tickets:
    """The tickets of an outbox; every method blocks and may be called from any thread."""

    def __init__(self, store: OutboxStore, vault: Sealer) -> None:
        self._store = store
        self._vault = vault

    def waiting(self) -> dict[str, int]:
        """How many requests that the gateway has wait for their outcome, by the epoch of their numbers."""

        def read() -> dict[str, int]:
            with self._store.database.reading() as db:
                # Those still in the outbox have no outcome yet: nobody is asked for them.
                rows = db.execute(
                    "SELECT epoch, count(*) FROM tickets WHERE settled_s IS NULL AND ticket NOT IN"
                    " (SELECT ticket FROM items WHERE priority = 2 AND kind = 'deferred') GROUP BY epoch"
                ).fetchall()
                settled = {row[6] for row in self._store.ledger.settled.values() if row[6]}
                if settled:
                    marks = ", ".join("?" * len(settled))
                    rows += db.execute(
                        f"SELECT epoch, count(*) FROM tickets WHERE ticket IN ({marks}) AND settled_s IS NULL"  # noqa: S608
                        " GROUP BY epoch",
                        tuple(settled),
                    ).fetchall()
            found: dict[str, int] = defaultdict(int)
            for epoch, n in rows:
                found[epoch] += n
            return dict(found)

        return self._store.sound(read)

    def count(self) -> tuple[int, int]:
        """How many tickets wait, and how many have their outcome."""

        def read() -> tuple[int, int]:
            with self._store.database.reading() as db:
                row = db.execute("SELECT count(*), count(settled_s) FROM tickets").fetchone()
            return row[0] - row[1], row[1]

        return self._store.sound(read)

    def settle(self, epoch: str, outcomes: Sequence[Outcome], now_s: float) -> list[str]:
        """Keep outcomes, on the disk when this returns; the tickets that they are for."""
        digests = {one.seq: sha256(one.body).hexdigest() for one in outcomes if len(one.body) > INLINE_BYTES}
        contents = {digests[one.seq]: one.body for one in outcomes if one.seq in digests}

        def work() -> list[str]:
            self._store.blobs.write(contents)
            found: list[str] = []

            def keep(db: sqlite3.Connection) -> None:
                found.clear()
                for one in outcomes:
                    ticket = self._keep(db, epoch, one, digests.get(one.seq, ""), now_s)
                    if ticket:
                        found.append(ticket)

            self._store.write(keep)
            return found

        tickets = self._store.sound(work)
        self._store.remove_unnamed(contents)  # of tickets that were forgotten meanwhile
        return tickets

    def _keep(self, db: sqlite3.Connection, epoch: str, one: Outcome, blob: str, now_s: float) -> str:
        row = db.execute(
            "SELECT ticket, settled_s FROM tickets WHERE epoch = ? AND stream = ? AND seq = ?",
            (epoch, one.stream, one.seq),
        ).fetchone()
        if row is None or row[1] is not None:
            return ""
        body = b"" if blob else self._vault.seal(one.body, row[0].encode())
        db.execute(
            "UPDATE tickets SET settled_s = ?, code = ?, detail = ?, n_bytes = ?, blob = ?, body = ? WHERE ticket = ?",
            (now_s, one.code, one.detail[:500], len(one.body), blob, body, row[0]),
        )
        return str(row[0])

    def find(self, ticket: str, now_s: float) -> Ticket | None:
        """One ticket, None where there is none.

        Raises:
            CorruptContent: its outcome was damaged.
        """

        def read() -> tuple[tuple[Any, ...] | None, bool]:
            with self._store.database.reading() as db:
                row: tuple[Any, ...] | None = db.execute(
                    "SELECT settled_s, code, detail, blob, body, made_s,"
                    " NOT EXISTS (SELECT 1 FROM items WHERE priority = 2 AND kind = 'deferred'"
                    " AND items.ticket = tickets.ticket)"
                    " FROM tickets WHERE ticket = ?",
                    (ticket,),
                ).fetchone()
            # In the same hold of the lock: what is settled leaves the items with the next commit, whoever makes it.
            return row, any(held[6] == ticket for held in self._store.ledger.settled.values())

        row, is_settled_there = self._store.sound(read)
        if row is None:
            return None
        settled_s, code, detail, blob, body, made_s, is_gone = row
        is_sent = bool(is_gone) or is_settled_there
        content = b""
        if settled_s is not None and not code:
            content = self._store.blobs.read(blob) if blob else self._vault.unseal(bytes(body), ticket.encode())
        return Ticket(
            is_settled=settled_s is not None,
            is_sent=is_sent,
            waits_s=max(0.0, now_s - made_s),
            code=code,
            detail=detail,
            content=content,
        )

    def fail(self, ticket: str, code: str, detail: str, now_s: float) -> None:
        """The request will never be computed."""
        self._store.sound(
            lambda: self._store.write(
                lambda db: db.execute(
                    "UPDATE tickets SET settled_s = ?, code = ?, detail = ? WHERE ticket = ? AND settled_s IS NULL",
                    (now_s, code, detail[:500], ticket),
                )
            )
        )

    def forget(self, ticket: str) -> bool:
        """Forget a ticket, its outcome, and its request where that was not sent; whether there was one."""

        def work() -> tuple[bool, str]:
            blob = ""
            was_there = False

            def drop(db: sqlite3.Connection) -> None:
                nonlocal blob, was_there
                found = db.execute("SELECT blob FROM tickets WHERE ticket = ?", (ticket,)).fetchone()
                was_there = found is not None
                blob = found[0] if found is not None else ""
                rows = db.execute(
                    f"SELECT {ROW} FROM items WHERE priority = 2 AND kind = 'deferred' AND ticket = ?",  # noqa: S608
                    (ticket,),
                ).fetchall()
                ledger = self._store.ledger
                ledger.drop(db, [row for row in rows if row[0] not in ledger.settled])
                db.execute("DELETE FROM tickets WHERE ticket = ?", (ticket,))

            self._store.write(drop)
            return was_there, blob

        was_there, blob = self._store.sound(work)
        if blob:
            self._store.remove_unnamed([blob])
        return was_there

    def tidy(self, now_s: float) -> int:
        """Forget outcomes that nobody fetched for long, or that are too many; how many those were."""

        def read() -> list[tuple[str, float, int]]:
            with self._store.database.reading() as db:
                return db.execute(
                    "SELECT ticket, settled_s, n_bytes FROM tickets WHERE settled_s IS NOT NULL ORDER BY settled_s DESC"
                ).fetchall()

        total_bytes, n_forgotten = 0, 0
        for ticket, settled_s, n_bytes in self._store.sound(read):
            total_bytes += n_bytes
            if settled_s < now_s - KEPT_S or total_bytes > KEPT_BYTES:
                self.forget(ticket)
                n_forgotten += 1
        return n_forgotten
