"""Enrolment tokens: made for one box or many, used once a key, and refused without saying why."""

import hmac
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from cloud_gateway.fleet.admission.boxes import MAX_NAME, check_tags
from hybrid.errors import BadMessage, Forbidden, NotFound
from hybrid.fleet.enrolment_token import MAX_URL_BYTES, EnrolmentToken, secret_key
from hybrid.hosting.database import Database

DAY_S: Final = 86400.0
LONGEST_S: Final = 3660 * DAY_S
MOST_BOXES: Final = 1_000_000
_REFUSAL: Final = (
    "the gateway does not take this enrolment token: it is unknown there, used up, expired or revoked "
    "(an administrator sees which: hybrid fleet token ls); have a new one made: hybrid fleet token create"
)
_NO_KEY: Final = bytes(32)


class EnrolmentWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a token shall be.

    Attributes:
        count: how many keys may be enrolled with it.
        expires_in_s: from now on.
        tags: its boxes get them.
        approve: its boxes wait until a person approves them.
        needs_root: False for a fleet without a root.
        url: the gateway's as boxes reach it; empty: they discover it.
        name: for people.
    """

    count: int = 1
    expires_in_s: float = DAY_S
    tags: dict[str, str] = {}
    approve: bool = False
    needs_root: bool = True
    url: str = ""
    name: str = ""


class EnrolmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway keeps of a token; the secret is not among it."""

    id: str
    key: bytes
    name: str
    n_allowed: int
    expires_s: float
    tags: dict[str, str]
    approve: bool
    has_root: bool
    created_s: float
    created_by: str
    revoked_s: float | None = None
    n_used: int = 0


class EnrolmentTokens:
    """The enrolment tokens of a fleet, on the disk."""

    def __init__(
        self, database: Database, wall_s: Callable[[], float], draw: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._database = database
        self._wall_s = wall_s
        self._draw = draw

    def create(
        self, wish: EnrolmentWish, *, authority_sha256: bytes, root_sha256: bytes | None, who: str
    ) -> EnrolmentToken:
        """A new token; its text is kept nowhere.

        Raises:
            BadMessage: a wish that makes no sense.
        """
        _check(wish)
        token = EnrolmentToken.fresh(
            authority_sha256=authority_sha256, root_sha256=root_sha256, url=wish.url, draw=self._draw
        )
        now_s, columns = self._wall_s(), _COLUMNS[:-1]
        row = (
            token.id,
            token.key,
            wish.name[:MAX_NAME],
            wish.count,
            now_s + wish.expires_in_s,
            msgspec.json.encode(wish.tags).decode(),
            int(wish.approve),
            int(root_sha256 is not None),
            now_s,
            who,
        )
        marks = ", ".join("?" for _ in columns)
        with self._database.writing() as db:
            db.execute(f"INSERT INTO token ({', '.join(columns)}) VALUES ({marks})", row)  # noqa: S608 (fixed names)
        return token

    def listed(self) -> tuple[EnrolmentRecord, ...]:
        """Every token, oldest first."""
        with self._database.reading() as db:
            rows = db.execute(f"{_SELECT} ORDER BY created_s, id").fetchall()
        return tuple(map(_record, rows))

    def revoke(self, token_id: str) -> None:
        """End a token; boxes that came with it stay. Saying it twice changes nothing.

        Raises:
            NotFound: there is no such token.
        """
        with self._database.writing() as db:
            if db.execute("SELECT 1 FROM token WHERE id = ?", (token_id,)).fetchone() is None:
                raise NotFound(
                    f"no enrolment token {token_id[:40]!r} here; `hybrid fleet token ls` lists them",
                    advice="List the tokens: hybrid fleet token ls.",
                )
            db.execute("UPDATE token SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL", (self._wall_s(), token_id))

    def known(self, db: sqlite3.Connection, token_id: str, secret: str) -> EnrolmentRecord:
        """The token of this id and secret, used up or not.

        Raises:
            Forbidden: there is none.
        """
        row = db.execute(f"{_SELECT} WHERE id = ?", (token_id,)).fetchone()
        record = None if row is None else _record(row)
        key = _NO_KEY if record is None else record.key
        if not hmac.compare_digest(key, secret_key(secret)) or record is None:
            raise refusal()
        return record

    def has_enrolled(self, db: sqlite3.Connection, token_id: str, box_id: str) -> bool:
        """Whether a key came with a token before."""
        query = "SELECT 1 FROM enrolment WHERE token_id = ? AND box_id = ?"
        return db.execute(query, (token_id, box_id)).fetchone() is not None

    def note(self, db: sqlite3.Connection, token_id: str, box_id: str) -> None:
        """A key came with a token."""
        row = (token_id, box_id, self._wall_s())
        db.execute("INSERT OR IGNORE INTO enrolment (token_id, box_id, at_s) VALUES (?, ?, ?)", row)

    def check_free(self, record: EnrolmentRecord) -> None:
        """Return if another key may be enrolled with a token.

        Raises:
            Forbidden: it is used up, expired or revoked; the message does not say which.
        """
        if record.revoked_s is not None or self._wall_s() >= record.expires_s or record.n_used >= record.n_allowed:
            raise refusal()


def refusal() -> Forbidden:
    """The one answer to every token that does not let a key in."""
    return Forbidden(_REFUSAL, advice="Have a new enrolment token made on the gateway: hybrid fleet token create.")


_COLUMNS: Final = (
    "id", "key", "name", "n_allowed", "expires_s", "tags", "approve", "has_root", "created_s", "created_by",
    "revoked_s",
)  # fmt: skip
_SELECT: Final = (
    f"SELECT {', '.join(_COLUMNS)}, (SELECT count(*) FROM enrolment WHERE enrolment.token_id = token.id) FROM token"  # noqa: S608
)


def _record(row: Iterable[object]) -> EnrolmentRecord:
    fields: dict[str, object] = dict(zip((*_COLUMNS, "n_used"), row, strict=True))
    fields["tags"] = msgspec.json.decode(str(fields["tags"]), type=dict[str, str])
    fields |= {name: bool(fields[name]) for name in ("approve", "has_root")}
    return msgspec.convert(fields, EnrolmentRecord, builtin_types=(bytes,))


def _check(wish: EnrolmentWish) -> None:
    if not 1 <= wish.count <= MOST_BOXES:
        raise BadMessage(f"a token for {wish.count} boxes; 1 to {MOST_BOXES} are possible")
    if not 1 <= wish.expires_in_s <= LONGEST_S:
        raise BadMessage(f"a token that expires in {wish.expires_in_s:g} s; 1 s to ten years are possible")
    if wish.url and not (wish.url.startswith(("https://", "http://")) and len(wish.url.encode()) <= MAX_URL_BYTES):
        raise BadMessage(f"{wish.url[:80]!r} is no gateway's URL; https://HOST:PORT is wanted, or none")
    check_tags(wish.tags)


def tags_text(tags: Mapping[str, str]) -> str:
    """Tags as people write them."""
    return ",".join(f"{key}={value}" for key, value in sorted(tags.items()))
