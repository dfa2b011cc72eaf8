"""The registry of boxes: who they are, what they are called, and whether they are admitted."""

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from hybrid.errors import BadMessage, Conflict, CorruptContent, NotFound
from hybrid.fleet.messages import Admission
from hybrid.fleet.signing import box_id_of
from hybrid.hosting.database import Database

MAX_NAME: Final = 64
MAX_TAGS: Final = 32
MAX_TAG_CHARACTERS: Final = 64
_COLUMNS: Final = (
    "id", "key", "name", "tags", "admission", "reason", "token_id", "enrolled_s", "epoch", "run", "since_s", "pardoned",
    "seen_s", "software", "machine",
)  # fmt: skip


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """One box as the registry has it.

    Attributes:
        id: first 32 hex digits of the SHA-256 of its public key.
        key: that key, DER.
        name: for people; no two boxes share one.
        tags: what assignments select boxes by.
        admission: whether it gets a token and models.
        reason: why it is not admitted; empty where it is.
        token_id: by which enrolment token it came.
        enrolled_s: seconds since 1970, as `since_s` and `seen_s`.
        epoch: of the installation that counts now; empty before its first access call, as `run`.
        run: of the agent that counts now.
        since_s: when that epoch and run were first seen.
        pardoned: a person has admitted it again: whoever calls next is the box.
        seen_s: its last access call, 0 for none.
        software: version of its agent.
        machine: what it says of itself.
    """

    id: str
    key: bytes
    name: str
    tags: dict[str, str]
    admission: Admission
    token_id: str
    enrolled_s: float
    reason: str = ""
    epoch: str = ""
    run: str = ""
    since_s: float = 0.0
    pardoned: bool = False
    seen_s: float = 0.0
    software: str = ""
    machine: str = ""


class Boxes:
    """All boxes, in memory and on the disk. Reading costs a look into a dictionary, from any thread.

    Attributes:
        lock: held from before a transaction that changes a box until `take` is done: memory and disk say the same.
    """

    def __init__(self, database: Database) -> None:
        """Reads all of them.

        Raises:
            CorruptContent: a row is damaged.
        """
        self._database = database
        self.lock = threading.RLock()
        self._listeners: list[Callable[[str], None]] = []
        with database.reading() as db:
            rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM box ORDER BY enrolled_s, id").fetchall()  # noqa: S608
        try:
            self._by_id = {box.id: box for box in map(_box, rows)}
        except (msgspec.MsgspecError, ValueError) as exc:
            raise CorruptContent(f"the registry of boxes holds what nobody wrote: {exc}") from exc

    def all(self) -> tuple[Box, ...]:
        """Every box, in the order in which they were enrolled."""
        return tuple(self._by_id.values())

    def find(self, box_id: str) -> Box | None:
        """One box by its whole id."""
        return self._by_id.get(box_id)

    def named(self, text: str) -> Box:
        """One box by its id, the beginning of its id (8 digits at least), or its name.

        Raises:
            NotFound: none, or more than one.
        """
        found = self._by_id.get(text)
        if found is not None:
            return found
        boxes = [box for box in self.all() if box.name == text]
        if not boxes and len(text) >= 8:
            boxes = [box for box in self.all() if box.id.startswith(text)]
        if len(boxes) != 1:
            raise NotFound(
                f"{len(boxes) or 'no'} boxes are meant by {text[:80]!r}; `hybrid fleet boxes ls` lists them",
                advice="List the boxes: hybrid fleet boxes ls.",
            )
        return boxes[0]

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call the listener with a box's id after its admission, name or tags changed; from whatever thread did it."""
        self._listeners.append(listener)

    def set_tags(self, box_id: str, tags: Mapping[str, str]) -> Box:
        """Give a box these tags, in place of those that it has.

        Raises:
            NotFound: no such box. BadMessage: tags that nobody could type.
        """
        return self.change(box_id, tags=check_tags(tags))

    def change_tags(self, box_id: str, put: Mapping[str, str], drop: Collection[str]) -> Box:
        """Give a box some tags and take others from it; what others change at the same time stays.

        Raises:
            NotFound: no such box. BadMessage: tags that nobody could type, or too many.
        """
        with self.lock:
            known = self._by_id.get(box_id)
            tags = (known.tags if known is not None else {}) | dict(put)
            return self.set_tags(box_id, {key: value for key, value in tags.items() if key not in drop})

    def rename(self, box_id: str, name: str) -> Box:
        """Call a box otherwise.

        Raises:
            NotFound: no such box. Conflict: another one is called so. BadMessage: no name.
        """
        wanted = name.strip()
        if not wanted or tidy_name(wanted) != wanted:
            raise BadMessage(f"{name[:80]!r} is no name: 1 to {MAX_NAME} printable characters are wanted")
        if any(box.name == wanted and box.id != box_id for box in self.all()):
            raise Conflict(f"another box is called {wanted!r}; choose another name")
        return self.change(box_id, name=wanted)

    def change(self, box_id: str, **fields: object) -> Box:
        """Change fields of a box in a transaction of its own.

        Raises:
            NotFound: no such box.
        """
        with self.lock:
            with self._database.writing() as db:
                changed = self.within(db, box_id, **fields)
            self.take(changed)
        return changed

    def within(self, db: sqlite3.Connection, box_id: str, **fields: object) -> Box:
        """The same inside a transaction that is under way; `take` what it returns once that is on the disk.

        Raises:
            NotFound: no such box.
        """
        before = self._by_id.get(box_id)
        if before is None:
            raise NotFound(f"no box {box_id[:80]!r} in this fleet")
        changed = msgspec.structs.replace(before, **fields)
        columns = ", ".join(f"{name} = ?" for name in fields)
        row = msgspec.structs.asdict(changed)
        db.execute(f"UPDATE box SET {columns} WHERE id = ?", (*(_stored(row[name]) for name in fields), box_id))  # noqa: S608
        return changed

    def insert(self, db: sqlite3.Connection, box: Box) -> None:
        """Put a new box into a transaction that is under way; `take` it once that is on the disk."""
        row = msgspec.structs.asdict(box)
        marks = ", ".join("?" for _ in _COLUMNS)
        db.execute(
            f"INSERT INTO box ({', '.join(_COLUMNS)}) VALUES ({marks})",  # noqa: S608
            tuple(_stored(row[name]) for name in _COLUMNS),
        )

    def take(self, box: Box) -> None:
        """From now on this is what is known of it."""
        before = self._by_id.get(box.id)
        self._by_id = self._by_id | {box.id: box}
        if before is None or _shown(before) != _shown(box):
            for listener in self._listeners:
                listener(box.id)

    def free_name(self, wished: str, box_id: str) -> str:
        """A name that no box has: the wished one, or that with some digits of its id."""
        name = tidy_name(wished) or f"box-{box_id[:8]}"
        taken = {box.name for box in self.all()}
        if name not in taken:
            return name
        name = f"{name[: MAX_NAME - 9]}-{box_id[:8]}"
        return name if name not in taken else box_id


def tidy_name(text: str) -> str:
    """A name as people can read it in a list."""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_NAME].strip()


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags, once they are such as can be typed in a selector.

    Raises:
        BadMessage: they are not.
    """
    if len(tags) > MAX_TAGS:
        raise BadMessage(f"{len(tags)} tags are given; at most {MAX_TAGS}")
    for key, value in tags.items():
        if not _is_word(key) or not (value == "" or _is_word(value)):
            raise BadMessage(
                f"{f'{key}={value}'[:140]!r} is no tag: KEY=VALUE of letters, digits and . _ - / is wanted, "
                f"at most {MAX_TAG_CHARACTERS} each"
            )
    return dict(tags)


def _is_word(text: str) -> bool:
    return 0 < len(text) <= MAX_TAG_CHARACTERS and all(
        letter.isascii() and (letter.isalnum() or letter in "._-/") for letter in text
    )


def _shown(box: Box) -> tuple[object, ...]:
    return box.admission, box.name, box.tags


def _stored(value: object) -> object:
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return int(value) if isinstance(value, bool) else value


def _box(row: Iterable[object]) -> Box:
    fields = dict(zip(_COLUMNS, row, strict=True))
    fields["tags"] = msgspec.json.decode(str(fields["tags"]), type=dict[str, str])
    fields["pardoned"] = bool(fields["pardoned"])
    box = msgspec.convert(fields, Box, builtin_types=(bytes,))
    if box_id_of(box.key) != box.id:
        raise ValueError(f"the key of box {box.id[:8]} is not its key")
    return box
