"""What the outbox's store takes and gives."""

from dataclasses import dataclass

from hybrid.fleet.messages import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An item that is on the disk (telemetry: in memory, with seq -1 until it is flushed)."""

    epoch: str
    stream: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """One thing to keep.

    Attributes:
        kind: decides priority and what happens when room is short.
        stream: KIND or KIND/SUFFIX; items of a stream travel in the order in which they were kept.
        about: where not empty, an unsent item of the same stream about the same is replaced.
        body: the content.
        ticket: of a deferred request: kept in the same transaction.
        made_s: on the outbox's clock; None takes the time of the commit.
        origin: epoch and number that it had in a store before this one.
    """

    kind: Kind
    stream: str
    body: bytes
    about: str = ""
    ticket: str = ""
    made_s: float | None = None
    origin: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """One item as it is to travel.

    Attributes:
        id: the order in which items were kept.
        blob: SHA-256 of its body where that is a file; then `body` is empty.
        skipped: how many numbers before it are not coming any more.
        age_s: -1 where it was made before a restart.
        origin: epoch and number under which it was kept first, where it has another now.
    """

    id: int
    kind: Kind
    epoch: str
    stream: str
    seq: int
    digest: str
    skipped: int
    age_s: float
    n_bytes: int
    body: bytes
    blob: str
    origin: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one call brings: items of one epoch, those of a stream in order; beside them what the disk damaged."""

    epoch: str
    items: tuple[StoredItem, ...]
    damaged: tuple[StoredItem, ...] = ()


@dataclass(slots=True)
class Count:
    """Of one kind: what waits, and what became of the rest since the store was made."""

    n_items: int = 0
    n_bytes: int = 0
    n_sent: int = 0
    n_dropped: int = 0
    n_replaced: int = 0
    n_refused: int = 0
    n_lost: int = 0
