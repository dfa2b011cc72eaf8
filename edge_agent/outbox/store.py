"""The outbox on the disk: items kept in groups, read in order of priority, removed once they are stored elsewhere.

Design: an insert touches two pages (the row and one index), for a flash card pays by the page. Rows that are stored at
the gateway leave with the next commit that happens anyway: a power cut before it sends them once more, which the
gateway recognises. Whatever finds the file damaged sets it aside, begins anew, takes over what can be read, goes on.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from random import Random
from typing import Final, TypeVar

from edge_agent.outbox.blob_files import BlobFiles
from edge_agent.outbox.database import BoxDatabase
from edge_agent.outbox.departure import next_batch
from edge_agent.outbox.ledger import ROW, Ledger, Row
from edge_agent.outbox.place import Place
from edge_agent.outbox.policy import DROPPED_FIRST, INLINE_BYTES, PRIORITY, OutboxLimits
from edge_agent.outbox.records import Batch, Kept, NewItem, StoredItem
from edge_agent.outbox.salvage import salvaged
from edge_agent.outbox.schema import SCRIPT
from hybrid.errors import CorruptContent, DiskFull, HybridError, StorageError
from hybrid.fleet.messages import Kind

_T = TypeVar("_T")

_BALLAST_BYTES: Final = 512 << 10
"""Kept on the disk, to be given up when it is full: deleting rows needs some room as well."""

_SPARE_BYTES: Final = 64 << 10
_VACUUM_BYTES: Final = 1 << 20
_SETTLED_ITEMS: Final = 256
_SETTLED_BYTES: Final = 1 << 20
_MOST_SHEDS: Final = 24
_log = logging.getLogger("hybrid.agent.outbox")


class OutboxStore:
    """See the module; every method may be called from any thread, and raises `StorageError` where the disk refuses.

    Attributes:
        ledger: what is held, by kind.
        is_full: the disk or the limits refused something when it was last tried.
        clock_s: when the newest item was made, as the store was opened: the box's clock goes on from there.
        n_begun_anew: how often a damaged file was set aside since the start.
    """

    def __init__(
        self,
        place: Place,
        *,
        limits: OutboxLimits,
        rng: Random,
        installation: str = "",
    ) -> None:
        folder, disk, vault = place.folder, place.disk, place.vault
        self.database = BoxDatabase(folder / "outbox.db", SCRIPT, disk, connect=place.connect, wall_s=place.wall_s)
        self.blobs = BlobFiles(folder / "blobs", disk, vault)
        self.ledger = Ledger(limits)
        self.is_full = False
        self.clock_s = 0.0
        self.n_begun_anew = 0
        self._folder = folder
        self._ballast = folder / "ballast"
        self._disk = disk
        self._vault = vault
        self._limits = limits
        self._rng = rng
        self._connect = place.connect
        self._installation = installation
        self._old_id = 0
        self._lock = threading.RLock()

    # Opening.

    def open(self) -> None:
        """Open the files, and repair what can be repaired."""
        with self._lock:
            try:
                self.database.open()
            except StorageError:
                # SQLite needs some room even to read; on a full disk it gets what was put by for that.
                if self._disk.size(self._ballast) < 0:
                    raise
                self._disk.remove(self._ballast)
                self.database.open()
            if self.database.aside is not None:
                self._begin_anew()
            else:
                self.sound(self._load)

    def close(self) -> None:
        """Remove what was stored elsewhere, and close the files."""
        with self._lock:
            try:
                if self.ledger.settled:
                    self.write(lambda _: None)
            except HybridError as exc:
                _log.warning("outbox.not_tidied error=%s", exc)
            self.database.close()

    def sound(self, work: Callable[[], _T]) -> _T:
        """Do something with the database; where it turns out to be damaged, begin anew and do it there."""
        with self._lock:
            try:
                return work()
            except CorruptContent as exc:
                self.database.set_aside(str(exc))
                self.database.open()
                self._begin_anew()
                return work()

    def _begin_anew(self) -> None:
        """The file that is open is new; take over what can be read of the one that was set aside."""
        aside, self.database.aside = self.database.aside, None
        self.n_begun_anew += 1
        clock_s = self.clock_s
        self._load(tidies=False)
        items = salvaged(aside, self._connect, self._vault, self.blobs) if aside is not None else []
        for start in range(0, len(items), self._limits.group_items):
            self._keep(items[start : start + self._limits.group_items], clock_s)
        self._tidy()
        _log.warning("outbox.begun_anew aside=%s n_taken_over=%d", aside, len(items))

    def _load(self, *, tidies: bool = True) -> None:
        with self.database.writing() as connection:
            facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
            key_ids = set(facts.get("vault", self._vault.key_id).split(","))
            unknown = [key_id for key_id in key_ids if not self._vault.knows(key_id)]
            if not unknown:
                self.ledger = Ledger(self._limits)
                self._old_id, clock_s = self.ledger.read(connection, self._installation, self._rng)
                self.clock_s = max(self.clock_s, clock_s)
                (n_tickets,) = connection.execute("SELECT count(*) FROM tickets").fetchone()
                key_ids = {self._vault.key_id, *(key_ids if self._old_id or n_tickets else ())}
                for fact in {"vault": ",".join(sorted(key_ids)), "installation": self._installation}.items():
                    if facts.get(fact[0]) != fact[1]:
                        connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", fact)
        if unknown:
            # What was sealed with another key can neither be sent nor judged: it waits beside for its key.
            aside = self.database.set_aside(f"sealed with key {unknown[0]}, which is not here", word="otherkey")
            if self._disk.names(self._folder / "blobs"):
                self._disk.replace(self._folder / "blobs", aside.with_name(f"{aside.name}-blobs"))
            self.database.aside = None
            self.database.open()
            self._load(tidies=False)
        elif tidies:
            self._tidy()

    def _tidy(self) -> None:
        with self.database.reading() as connection:
            names = {name for (name,) in connection.execute("SELECT blob FROM items WHERE blob <> ''").fetchall()}
            names |= {name for (name,) in connection.execute("SELECT blob FROM tickets WHERE blob <> ''").fetchall()}
        n_stray = self.blobs.keep_only(names)
        if n_stray:
            _log.info("outbox.tidied n_files=%d", n_stray)
        self._lay_ballast()

    # Keeping.

    def keep(self, group: Sequence[NewItem], now_s: float) -> list[Kept | HybridError]:
        """Keep a group of items in one transaction; what became of each, on the disk when this returns."""
        return self.sound(lambda: self._keep(group, now_s))

    def _keep(self, group: Sequence[NewItem], now_s: float) -> list[Kept | HybridError]:
        is_scarce = self._disk.free_bytes(self._folder) < self._limits.reserve_bytes
        contents = {
            sha256(item.body).hexdigest(): item.body
            for item in group
            if len(item.body) > INLINE_BYTES and not (is_scarce and item.kind in DROPPED_FIRST)
        }

        def insert(connection: sqlite3.Connection) -> list[Kept | HybridError]:
            return [self._insert(connection, item, now_s, is_scarce=is_scarce) for item in group]

        for _ in range(_MOST_SHEDS):
            fresh: list[str] = []
            try:
                fresh = self.blobs.write(contents)
                kept = self.write(insert)
            except DiskFull as exc:
                self.blobs.remove(fresh)
                self.is_full = True
                if not self._shed():
                    return [exc] * len(group)
            else:
                self.is_full = any(isinstance(one, HybridError) for one in kept)
                self.remove_unnamed(fresh)
                self._lay_ballast()
                return kept
        return [DiskFull(f"{self._folder}: no room; make some", path=str(self._folder))] * len(group)

    def _insert(
        self, connection: sqlite3.Connection, item: NewItem, now_s: float, *, is_scarce: bool
    ) -> Kept | HybridError:
        ledger, n_bytes = self.ledger, len(item.body)
        digest = sha256(item.body).hexdigest()
        if item.about:
            found = connection.execute(
                f"SELECT {ROW} FROM items WHERE priority = ? AND stream = ? AND about = ?",  # noqa: S608
                (PRIORITY[item.kind], item.stream, item.about),
            )
            older = [row for row in found.fetchall() if row[0] not in ledger.settled]
            if older:
                ledger.drop(connection, older)
                ledger.tally(item.kind, replaced=len(older))
        refusal = ledger.make_way(connection, item.kind, n_bytes, is_scarce=is_scarce)
        if refusal is not None:
            if item.kind in DROPPED_FIRST:
                ledger.tally(item.kind, dropped=1)
            return refusal
        seq = ledger.take(item.kind, item.stream, n_bytes)
        blob = digest if n_bytes > INLINE_BYTES else ""
        body = b"" if blob else self._vault.seal(item.body, digest.encode())
        made_s = now_s if item.made_s is None else item.made_s
        connection.execute(
            "INSERT INTO items (priority, kind, stream, seq, digest, about, made_s, n_bytes, blob, body, ticket,"
            " origin_epoch, origin_seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (PRIORITY[item.kind], item.kind, item.stream, seq, digest, item.about, made_s, n_bytes, blob, body,
             item.ticket, *(item.origin or (None, None))),
        )  # fmt: skip
        if item.ticket:
            connection.execute(
                "INSERT OR REPLACE INTO tickets (ticket, epoch, stream, seq, made_s) VALUES (?, ?, ?, ?, ?)",
                (item.ticket, ledger.epoch, item.stream, seq, made_s),
            )
        return Kept(epoch=ledger.epoch, stream=item.stream, seq=seq)

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """One transaction, in which settled rows leave as well; files without a row leave after it."""
        with self._lock:
            before = self.ledger.copy()
            try:
                with self.database.writing() as connection:
                    found = work(connection)
                    self.ledger.write_down(connection)
            except BaseException:
                self.ledger = before
                raise
            self.remove_unnamed(self.ledger.written())
            return found

    def remove_unnamed(self, names: Iterable[str]) -> None:
        """Remove those of these files that no row names."""
        with self.database.reading() as connection:
            unnamed = [
                name
                for name in names
                if connection.execute("SELECT 1 FROM items WHERE blob = ? AND blob <> ''", (name,)).fetchone() is None
                and connection.execute("SELECT 1 FROM tickets WHERE blob = ?", (name,)).fetchone() is None
            ]
        self.blobs.remove(unnamed)

    def _shed(self) -> bool:
        """The disk is full: what is settled leaves, else the older half of what may be dropped; whether anything did.

        Deleting needs some room itself: that is what the ballast is for, and for nothing else.
        """
        for_now = [kind for kind in DROPPED_FIRST if self.ledger.counts[kind].n_items]
        if not self.ledger.settled and not for_now:
            return False
        self._disk.remove(self._ballast)
        try:
            with suppress(DiskFull):
                self.database.checkpoint()  # what the log holds twice
            if self.ledger.settled:
                self.write(lambda _: None)
            else:
                n_items = self.ledger.counts[for_now[0]].n_items
                self.write(partial(self._halve, kind=for_now[0], goal=n_items // 2))
                _log.warning("outbox.shed kind=%s n_items=%d reason=disk_full", for_now[0], n_items - n_items // 2)
            self.database.give_back(0)
        except DiskFull:
            return False
        finally:
            self._lay_ballast()
        return True

    def _halve(self, connection: sqlite3.Connection, kind: Kind, goal: int) -> None:
        while self.ledger.counts[kind].n_items > goal:
            if not self.ledger.drop_oldest(connection, kind, 1 << 40):
                return

    def _lay_ballast(self) -> None:
        if self._disk.size(self._ballast) >= _BALLAST_BYTES:
            return
        if self._disk.free_bytes(self._folder) < _BALLAST_BYTES + _SPARE_BYTES:
            return
        try:
            self._disk.remove(self._ballast)
            self._disk.append(self._ballast, self._rng.randbytes(_BALLAST_BYTES))
            self._disk.sync(self._ballast)
        except DiskFull:
            self._disk.remove(self._ballast)

    # Sending.

    def batch(self, *, least_important: int, held: Collection[str], now_s: float) -> Batch:
        """What travels next, most important first; empty where nothing may."""

        def read() -> Batch:
            if len(self.ledger.settled) >= _SETTLED_ITEMS:
                self.write(lambda _: None)  # else a restart would send again more than the gateway can recognise
            with self.database.reading() as connection:
                return next_batch(
                    connection,
                    self.ledger,
                    self._vault,
                    least_important=least_important,
                    held=held,
                    age_s=lambda made_s: now_s - made_s if made_s > self.clock_s else -1.0,
                )

        return self.sound(read)

    def read_file(self, item: StoredItem) -> bytes:
        """The content of an item whose body is a file. Raises `CorruptContent` where it is gone or damaged."""
        return self.blobs.read(item.blob)

    def settle(self, done: Iterable[StoredItem], acked: dict[str, int]) -> None:
        """The gateway has these items; their rows leave soon."""
        with self._lock:
            for item in done:
                self._leave(item)
                self.ledger.counts[item.kind].n_sent += 1
            for stream, seq in acked.items():  # whatever is answered, it has no more than was numbered here
                self.ledger.acked[stream] = max(-1, min(seq, self.ledger.next.get(stream, 0) - 1))
            self._leave_now()

    def give_up(self, items: Iterable[StoredItem], *, why: str) -> None:
        """The gateway will never take these items (`refused`), or their bytes are gone (`lost`)."""
        with self._lock:
            for item in items:
                self._leave(item)
                self.ledger.tally(item.kind, refused=why == "refused", lost=why == "lost")
            self._leave_now(always=True)

    def renew(self) -> None:
        """Number everything anew under a new epoch: these numbers were used before."""
        self.sound(lambda: self.write(lambda connection: self.ledger.renew(connection, self._rng)))

    def tidy(self, now_s: float, *, always: bool = False) -> None:
        """Let go what is settled or too old, and give room back to the file system."""

        def expire(connection: sqlite3.Connection) -> None:
            for kind in DROPPED_FIRST:
                age_s = self._limits.kinds[kind].age_s
                if age_s is None:
                    continue
                query = f"SELECT {ROW} FROM items WHERE priority = ? AND kind = ? AND made_s < ? LIMIT 10000"  # noqa: S608
                found = connection.execute(query, (PRIORITY[kind], kind, now_s - age_s)).fetchall()
                rows = [row for row in found if row[0] not in self.ledger.settled]
                if rows:
                    self.ledger.drop(connection, rows)
                    self.ledger.tally(kind, dropped=len(rows))

        def work() -> None:
            if always or self.ledger.settled or self.ledger.n_items:
                self.write(expire)
            self.database.give_back(_VACUUM_BYTES if self.ledger.n_items else _VACUUM_BYTES // 8)
            self._lay_ballast()

        self.sound(work)

    def probe(self) -> None:
        """Write a little, to see whether the disk takes it."""
        self.sound(lambda: self.write(lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES ('probe', '')")))
        self.is_full = False

    def _leave(self, item: StoredItem) -> None:
        if item.id in self.ledger.settled:
            return
        with self.database.reading() as connection:
            # Not by the id alone: while an item travels it may be dropped, and another one gets its id.
            row: Row | None = connection.execute(
                f"SELECT {ROW} FROM items WHERE id = ? AND stream = ? AND seq = ? AND digest = ?",  # noqa: S608
                (item.id, item.stream, item.seq, item.digest),
            ).fetchone()
        if row is not None and item.epoch == self.ledger.epoch:
            self.ledger.settle(row)

    def _leave_now(self, *, always: bool = False) -> None:
        n_bytes = sum(row[5] for row in self.ledger.settled.values())
        self.is_full = False
        if always or len(self.ledger.settled) >= _SETTLED_ITEMS or n_bytes >= _SETTLED_BYTES:
            try:
                self.sound(lambda: self.write(lambda _: None))
                self.database.give_back(_VACUUM_BYTES)
            except DiskFull:
                if not self._shed():
                    raise
