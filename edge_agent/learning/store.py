"""What learning keeps on the disk: campaigns, their vectors, the update that waits, what became of tasks.

Design: the update's bytes and what is left over of them change in one transaction, before anything is sent. So after a
power cut the same bytes are sent again, and what the gateway has refused is not lost. That an update counted comes to
the disk with the next one where that follows at once: a task costs one transaction. Small vectors lie in their rows,
large ones are files beside (`BlobFiles`), on the disk before the row that names them. All of them are sealed: what a
box learned says something about its samples.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Final, TypeVar

import msgspec

from edge_agent.learning import rows
from edge_agent.learning.records import PERSONAL, VECTORS, CampaignNote, Outcome, VectorName, Waiting
from edge_agent.outbox.blob_files import BlobFiles
from edge_agent.outbox.database import BoxDatabase
from edge_agent.outbox.place import Place
from hybrid.errors import CorruptContent, HybridError
from hybrid.federated.messages import Terms

INLINE_BYTES: Final = 32 << 10
MOST_CAMPAIGNS: Final = 32
"""More are forgotten, those first that ended, then those that were heard of least lately."""

_UPDATE: Final = "update"
_CONTROL_AFTER: Final = "control-after"
_VACUUM_BYTES: Final = 256 << 10
_T = TypeVar("_T")
_log = logging.getLogger("hybrid.agent.learning")

Vectors = Mapping[VectorName, bytes | None]
"""New contents by name; None removes one, and what is not named stays."""


class LearningStore:
    """See the module; every method blocks, may be called from any thread, and raises `StorageError`s.

    Attributes:
        notes: campaigns by id, the one heard of last at the end.
        waiting: the update that is to be sent; None where none is.
        done: what became of the last tasks.
        n_begun_anew: how often a damaged file was set aside since the start.
    """

    def __init__(self, place: Place) -> None:
        self.notes: dict[str, CampaignNote] = {}
        self.waiting: Waiting | None = None
        self.done: dict[str, Outcome] = {}
        self.n_begun_anew = 0
        self._vault = place.vault
        self._database = BoxDatabase(
            place.folder / "learning.db", rows.SCRIPT, place.disk, connect=place.connect, wall_s=place.wall_s
        )
        self._files = BlobFiles(place.folder / "vectors", place.disk, place.vault)
        self._lock = threading.RLock()
        self._content = b""
        self._owed: list[Callable[[sqlite3.Connection], object]] = []

    def open(self, gateway: str) -> None:
        """Open the file, a damaged one is begun anew; what belongs to another gateway is forgotten.

        Args:
            gateway: names the one that this box belongs to.
        """
        with self._lock:
            self._owed.clear()
            self._database.open()
            self._look_aside()
            self._sound(lambda: self._load(gateway))

    def close(self) -> None:
        """Close the file."""
        with suppress(HybridError):  # what is owed is asked of the gateway once more
            self.pay()
        self._database.close()

    def note(self, campaign: str, terms: Terms) -> CampaignNote:
        """What is known of a campaign, with these terms; a new note where nothing is."""
        known = self.notes.get(campaign) or CampaignNote(id=campaign, terms=terms)
        return msgspec.structs.replace(known, terms=terms, is_over=False)

    def vector(self, campaign: str, name: VectorName) -> bytes | None:
        """A vector; None where there is none, or where the disk has damaged it."""
        return self._read(campaign, name)

    def update(self) -> bytes | None:
        """The content of the update that waits; None where the disk has damaged it."""
        return self._read(self.waiting.campaign, _UPDATE) if self.waiting is not None else None

    def update_in_memory(self) -> bytes:
        """The same, where it was kept in this life and is small; empty otherwise. Does not block."""
        return self._content if self.waiting is not None else b""

    def control_after(self) -> bytes | None:
        """The control variate that becomes the campaign's own once the update that waits has counted."""
        return self._read(self.waiting.campaign, _CONTROL_AFTER) if self.waiting is not None else None

    def keep(
        self, note: CampaignNote, vectors: Vectors, update: tuple[Waiting, bytes] | None = None, control: bytes = b""
    ) -> None:
        """In one transaction: a campaign, vectors of it, and an update that waits from now on.

        Args:
            control: see `control_after`; with an update only.

        Raises:
            DiskFull, StorageError: nothing has changed.
        """
        contents: dict[str, bytes | None] = {str(name): content for name, content in vectors.items()}
        if update is not None:
            contents |= {_UPDATE: update[1], _CONTROL_AFTER: control or None}

        def write(db: sqlite3.Connection) -> None:
            if update is not None:
                db.execute("INSERT OR REPLACE INTO waiting VALUES (1, ?)", (msgspec.msgpack.encode(update[0]),))

        self._change(note, contents, write)
        if update is not None:
            self.waiting = update[0]
            self._content = update[1] if len(update[1]) <= INLINE_BYTES else b""

    def settle(self, outcome: Outcome, note: CampaignNote, vectors: Vectors, accounts: Mapping[str, bytes]) -> None:
        """In one transaction: the update that waits is gone, its outcome noted, vectors and accounts as they are now.

        Raises:
            DiskFull, StorageError: nothing has changed.
        """
        waiting = self.waiting
        if waiting is None:
            return

        def write(db: sqlite3.Connection) -> None:
            rows.put_settled(db, waiting, outcome)
            rows.put_accounts(db, accounts)

        contents: dict[str, bytes | None] = {str(name): content for name, content in vectors.items()}
        self._change(note, contents | {_UPDATE: None, _CONTROL_AFTER: None}, write)
        self.waiting = None
        self._remember(waiting.task, outcome)

    def settle_with_next(self, outcome: Outcome, note: CampaignNote) -> bool:
        """As `settle`, in memory: the next transaction brings it to the disk. Does not block; False where it would.

        A box that falls over before that sends the update again, and the gateway says again what became of it: so only
        what changes no vector and no account may wait, and only while there is a next task.
        """
        if self.waiting is None or not self._lock.acquire(blocking=False):
            return False
        try:
            if self.notes[note.id].is_forgotten:  # a person may have said so after the note was read
                return False
            waiting, self.waiting = self.waiting, None

            def write(db: sqlite3.Connection) -> None:
                rows.put_note(db, note)
                gone = [(note.id, name) for name in (_UPDATE, _CONTROL_AFTER)]
                db.executemany("DELETE FROM vector WHERE campaign = ? AND name = ?", gone)
                rows.put_settled(db, waiting, outcome)

            self._owed.append(write)
            self._heard_of(note)
            self._remember(waiting.task, outcome)
        finally:
            self._lock.release()
        return True

    @property
    def owes(self) -> bool:
        """Whether something waits for the next transaction."""
        return bool(self._owed)

    def pay(self) -> None:
        """Bring to the disk what waits for the next transaction."""

        def change() -> None:
            with self._database.writing() as db:
                for write in self._owed:
                    write(db)
            self._owed.clear()
            self._tidy()

        with self._lock:
            if self._owed:
                self._sound(change)

    def finish(self, task: str, outcome: Outcome, note: CampaignNote, vectors: Vectors | None = None) -> None:
        """A task that left no update here is over; with what it left."""
        contents: dict[str, bytes | None] = {str(name): content for name, content in (vectors or {}).items()}
        self._change(note, contents, lambda db: rows.put_done(db, task, outcome))
        self._remember(task, outcome)

    def n_masked(self, campaign: str, step: int) -> int:
        """How many inputs of this step, or of a later one, this box has masked, in all its lives."""
        newest = self._fact(f"masked/{campaign}")
        return int(newest != "" and int(newest) >= step)

    def note_masked(self, step: int, note: CampaignNote, accounts: Mapping[str, bytes]) -> None:
        """One more input is about to leave, masked: with it the residual, and what privacy it costs.

        The newest step stays: a gateway that goes back gets no second input of an older one.
        """
        newest = max(step, int(self._fact(f"masked/{note.id}") or step))

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (f"masked/{note.id}", str(newest)))
            rows.put_accounts(db, accounts)

        self._change(note, {"residual": None}, write)

    @property
    def device_list(self) -> int:
        """The newest list of devices that the operator's root signed and this box has seen; -1 for none."""
        return int(self._fact("device-list") or -1)

    def note_device_list(self, sequence: int) -> None:
        """A newer one came."""
        with self._lock, self._database.writing() as db:
            db.execute("INSERT OR REPLACE INTO fact VALUES ('device-list', ?)", (str(sequence),))

    def end(self, campaigns: Sequence[str]) -> None:
        """Campaigns that are over: their vectors leave but for personal ones; what they came to stays for people."""
        for campaign in campaigns:
            note = self.notes.get(campaign)
            if note is None or note.is_over:
                continue
            over = msgspec.structs.replace(note, is_over=True, step=-1, sha256="")
            gone: dict[str, bytes | None] = dict.fromkeys(name for name in VECTORS if name not in PERSONAL)
            if self.waiting is not None and self.waiting.campaign == campaign:
                gone |= {_UPDATE: None, _CONTROL_AFTER: None}
                self._change(over, gone, lambda db: db.execute("DELETE FROM waiting"))
                self.waiting = None
            else:
                self._change(over, gone, lambda _: None)

    def forget(self, campaign: str) -> None:
        """A person wants no personal layers of a campaign on this box, now or later."""
        note = self.notes.get(campaign)
        if note is not None:
            gone: dict[str, bytes | None] = dict.fromkeys(PERSONAL)
            self._change(msgspec.structs.replace(note, is_forgotten=True, judged=None), gone, lambda _: None)

    def account(self, model: str) -> bytes | None:
        """What this box has spent on a model, encoded; None for nothing."""

        def look() -> bytes | None:
            with self._database.reading() as db:
                row = db.execute("SELECT content FROM account WHERE model = ?", (model,)).fetchone()
            return bytes(row[0]) if row is not None else None

        return self._sound(look)

    # Inside.

    def _fact(self, name: str) -> str:
        def look() -> str:
            with self._database.reading() as db:
                row = db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
            return "" if row is None else str(row[0])

        return self._sound(look)

    def _change(
        self, note: CampaignNote, contents: Mapping[str, bytes | None], more: Callable[[sqlite3.Connection], object]
    ) -> None:
        with self._lock:
            known = self.notes.get(note.id)
            if known is not None and known.is_forgotten:  # whatever was on its way when a person said so
                note = msgspec.structs.replace(note, is_forgotten=True, judged=None)
                contents = {**contents, **dict.fromkeys(PERSONAL)}
            self._write(note, contents, more)

    def _write(
        self, note: CampaignNote, contents: Mapping[str, bytes | None], more: Callable[[sqlite3.Connection], object]
    ) -> None:
        leaving = self._oldest_but(note.id)
        digests = {name: sha256(content).hexdigest() for name, content in contents.items() if content is not None}
        files = {
            digests[name]: content
            for name, content in contents.items()
            if content is not None and len(content) > INLINE_BYTES
        }

        def change() -> None:
            self._files.write(files)
            with self._database.writing() as db:
                for owed in self._owed:
                    owed(db)
                rows.put_note(db, note)
                for old in leaving:
                    rows.put_gone(db, old)
                for name, content in contents.items():
                    db.execute("DELETE FROM vector WHERE campaign = ? AND name = ?", (note.id, name))
                    if content is None:
                        continue
                    digest = digests[name]
                    sealed = None if digest in files else self._vault.seal(content, digest.encode())
                    db.execute("INSERT INTO vector VALUES (?, ?, ?, ?)", (note.id, name, digest, sealed))
                more(db)
            self._owed.clear()
            self._tidy()

        try:
            self._sound(change)
        except Exception:
            self._sound(self._sweep)
            raise
        self._heard_of(note, leaving)

    def _heard_of(self, note: CampaignNote, leaving: Sequence[str] = ()) -> None:
        """A campaign was heard of last; in a new dict, for the loop may be reading the one before."""
        gone = {note.id, *leaving}
        self.notes = {one: kept for one, kept in self.notes.items() if one not in gone} | {note.id: note}

    def _remember(self, task: str, outcome: Outcome) -> None:
        self.done[task] = outcome
        while len(self.done) > rows.MOST_DONE:
            del self.done[next(iter(self.done))]

    def _oldest_but(self, campaign: str) -> list[str]:
        """Campaigns that leave once this one is noted."""
        held = self.waiting.campaign if self.waiting is not None else ""
        others = sorted(
            (note for note in self.notes.values() if note.id not in {campaign, held}), key=lambda note: note.worth
        )
        n_after = len(self.notes) + (campaign not in self.notes)
        return [note.id for note in others[: max(0, n_after - MOST_CAMPAIGNS)]]

    def _read(self, campaign: str, name: str) -> bytes | None:
        def look() -> tuple[str, bytes | None] | None:
            with self._database.reading() as db:
                row: tuple[str, bytes | None] | None = db.execute(
                    "SELECT sha256, sealed FROM vector WHERE campaign = ? AND name = ?", (campaign, name)
                ).fetchone()
            return row

        with self._lock:
            digest, sealed = self._sound(look) or ("", None)
            if not digest:
                return None
            try:
                return self._files.read(digest) if sealed is None else self._vault.unseal(sealed, digest.encode())
            except CorruptContent as exc:
                _log.warning("learning.vector_lost campaign=%s name=%s error=%s", campaign, name, exc)
                return None

    def _tidy(self) -> None:
        """Sweep behind a change that is on the disk: where that fails the change stands, and the next one sweeps."""
        try:
            self._sweep()
        except CorruptContent:
            raise
        except OSError as exc:  # a disk's errors among them
            _log.warning("learning.not_swept error=%s", exc)

    def _sweep(self) -> None:
        """Files that no row names leave."""
        with self._database.reading() as db:
            named = {digest for (digest,) in db.execute("SELECT sha256 FROM vector WHERE sealed IS NULL").fetchall()}
        self._files.keep_only(named)
        self._database.give_back(_VACUUM_BYTES)

    def _load(self, gateway: str) -> None:
        with self._database.writing() as db:
            if rows.put_gateway(db, gateway):
                _log.warning("learning.another_gateway what was learned for the one before is forgotten")
            notes = [row[0] for row in db.execute("SELECT note FROM campaign ORDER BY n").fetchall()]
            waiting = db.execute("SELECT note FROM waiting").fetchone()
            done = db.execute("SELECT task, outcome FROM done ORDER BY n").fetchall()
        try:
            found = [msgspec.msgpack.decode(note, type=CampaignNote) for note in notes]
            update = msgspec.msgpack.decode(waiting[0], type=Waiting) if waiting is not None else None
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as exc:
            raise CorruptContent(f"the disk has damaged a note of learning: {exc}") from exc
        self.notes, self.waiting, self.done = {note.id: note for note in found}, update, dict(done)
        self._sweep()

    def _look_aside(self) -> None:
        if self._database.aside is not None:
            self._database.aside = None
            self.n_begun_anew += 1

    def _sound(self, work: Callable[[], _T]) -> _T:
        """Do something with the database; where it turns out to be damaged, begin anew and do it there."""
        with self._lock:
            try:
                return work()
            except CorruptContent as exc:
                self._database.set_aside(str(exc))
                self._database.open()
                self._look_aside()
                self.notes, self.waiting, self.done = {}, None, {}
                self._owed.clear()
                return work()
