"""What is kept of campaigns: rows that decide what counts, and how they are read again after any end of the process."""

import json
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from cloud_gateway.rounds.messages import ENDED, CampaignState, PromotionView, RoundView
from hybrid.errors import BadMessage, CorruptContent
from hybrid.federated.campaign import Campaign
from hybrid.federated.layout import Layout
from hybrid.federated.privacy.account import Account
from hybrid.hosting.database import Database

FILE_NAME: Final = "rounds.db"
ORDER_FILE: Final = "campaign.json"
"""What was ordered, in a campaign's folder."""
DAMAGED: Final = "damaged"
"""Stands in an account, in place of a campaign, for what the disk has damaged of it: never less than that was."""
_T = TypeVar("_T")
_log = logging.getLogger("hybrid.gateway.rounds")

MIGRATIONS: Final = (
    """
    CREATE TABLE campaign (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE round (
      campaign TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL, body BLOB NOT NULL, noise BLOB NOT NULL,
      PRIMARY KEY (campaign, number)) WITHOUT ROWID;
    CREATE TABLE received (
      id INTEGER PRIMARY KEY AUTOINCREMENT, campaign TEXT NOT NULL, step INTEGER NOT NULL, box TEXT NOT NULL,
      round INTEGER NOT NULL, outcome TEXT NOT NULL, body BLOB NOT NULL, content BLOB,
      UNIQUE (campaign, step, box));
    CREATE INDEX received_in_round ON received (campaign, round);
    CREATE TABLE account (
      model TEXT NOT NULL, box TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (model, box)) WITHOUT ROWID;
    CREATE TABLE promotion (
      campaign TEXT NOT NULL, step INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (campaign, step)) WITHOUT ROWID;
    CREATE TABLE counts (
      campaign TEXT NOT NULL, step INTEGER NOT NULL, box TEXT NOT NULL, body BLOB NOT NULL,
      PRIMARY KEY (campaign, step, box)) WITHOUT ROWID
    """,
    """
    CREATE TABLE masked (
      id INTEGER PRIMARY KEY AUTOINCREMENT, campaign TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
      entry BLOB NOT NULL, box TEXT NOT NULL, input BLOB);
    CREATE INDEX masked_in_step ON masked (campaign, step, attempt)
    """,
)


class CampaignRow(msgspec.Struct, kw_only=True):
    """A campaign as it is kept.

    Attributes:
        id: eight letters and digits.
        order: what it is to do.
        state: how it stands; `reason`: why, where it does not run.
        base_digest: artifact digest of the version that it begins with.
        layout: of what learns; None for a campaign whose row was lost.
        step: the newest one.
        n_abandoned: rounds begun anew in a row.
        clip: norm to which boxes clip in the open round.
        cost: mu squared of the box that took part most often.
        base_accuracy: of step 0 on the evaluation set, 0 to 1; None without one.
        evaluation: digest of that set; empty for none.
        made_s: seconds since 1970 at which it was ordered, by the gateway's calendar.
        made_by: id of the token by which it was ordered.
        by_torch: operators of what learns that boxes need torch for.
    """

    id: str
    order: Campaign
    state: CampaignState = "running"
    reason: str = ""
    base_digest: str = ""
    layout: Layout | None = None
    step: int = 0
    n_abandoned: int = 0
    clip: float = 0.0
    cost: float = 0.0
    base_accuracy: float | None = None
    evaluation: str = ""
    made_s: float = 0.0
    made_by: str = ""
    by_torch: tuple[str, ...] = ()


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one update for good.

    Attributes:
        sha256, n_bytes: of its content.
        n_samples: that the box says it trained on; 1 where it is not told.
        norm: L2 norm of the content as decoded; 0 with noise, where none is kept.
        staleness: by how many steps the model had gone on.
        bit: +1 within the clip norm, -1 beyond, 0 where nobody asked.
        loss_before: the box's mean loss before it trained; 0 where it was not told.
        train_s: seconds that the box trained.
        n_bytes_down: of the weights that went with its task.
        gate: which one refused it; empty where none did.
        reason: why it does not count.
        norms: of its parts, as the gates judged them.
    """

    sha256: str
    n_bytes: int
    n_samples: int = 1
    norm: float = 0.0
    staleness: int = 0
    bit: int = 0
    loss_before: float = 0.0
    train_s: float = 0.0
    n_bytes_down: int = 0
    gate: str = ""
    reason: str = ""
    norms: dict[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRow:
    """One update: `step` it began with, the round it came in, what became of it (`accepted`, `counted`, …)."""

    id: int
    step: int
    box_id: str
    round: int
    outcome: str
    body: Received


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One round; `noise` is the seed of what is added to its sum, there from its closing on until it is closed."""

    view: RoundView
    noise: bytes


class RoundStore:
    """Reads rows; every method blocks. A row whose content the disk has damaged is left out, unless it says otherwise.

    Attributes:
        was_begun_anew: the file was made at this start, though there were campaigns before.
    """

    def __init__(self, folder: Path, connect: Callable[[Path], sqlite3.Connection] | None = None) -> None:
        if connect is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / FILE_NAME).touch(mode=0o600)
        self.database = Database(folder / FILE_NAME, MIGRATIONS, connect=connect)
        self.was_begun_anew = self.database.is_new and any(
            found for pattern in (f"{FILE_NAME}.corrupt-*", f"*/{ORDER_FILE}") for found in folder.glob(pattern)
        )

    # Reading.

    def campaigns(self) -> list[CampaignRow]:
        """All campaigns, oldest first."""
        with self.database.reading() as db:
            rows = db.execute("SELECT body FROM campaign").fetchall()
        return sorted(_sound(rows, CampaignRow), key=lambda row: (row.made_s, row.id))

    def campaign_ids(self) -> set[str]:
        """Of all campaigns, also of those whose rows are damaged."""
        with self.database.reading() as db:
            rows = db.execute("SELECT CAST(id AS BLOB) FROM campaign").fetchall()
        return {bytes(row[0]).decode(errors="replace") for row in rows}

    def rounds(self, campaign: str, newest: int = 0) -> list[RoundRow]:
        """Rounds of a campaign, oldest first; all of them, or the newest few."""
        query = "SELECT body, noise FROM round WHERE campaign = ? ORDER BY number DESC LIMIT ?"
        with self.database.reading() as db:
            rows = db.execute(query, (campaign, newest or -1)).fetchall()
        noises = {view.number: bytes(row[1]) for row in rows for view in _sound([row], RoundView)}
        return [RoundRow(view=view, noise=noises[view.number]) for view in _sound(rows[::-1], RoundView)]

    def received(self, campaign: str, round_number: int | None = None, step: int | None = None) -> list[ReceivedRow]:
        """Updates in the order in which they came: all, those of one round, those that began with a step or later.

        Raises:
            CorruptContent: the disk has damaged one of them.
        """
        query = "SELECT id, step, box, round, outcome, body FROM received WHERE campaign = ?"
        values: list[object] = [campaign]
        if round_number is not None:
            query, values = query + " AND round = ?", [*values, round_number]
        if step is not None:
            query, values = query + " AND step >= ?", [*values, step]
        with self.database.reading() as db:
            rows = db.execute(query + " ORDER BY id", values).fetchall()
        return [_received(row) for row in rows]

    def known(self, campaign: str, step: int, box_id: str) -> ReceivedRow | None:
        """The update of a box that began with a step."""
        query = "SELECT id, step, box, round, outcome, body FROM received WHERE campaign = ? AND step = ? AND box = ?"
        with self.database.reading() as db:
            row = db.execute(query, (campaign, step, box_id)).fetchone()
        try:
            return None if row is None else _received(row)
        except CorruptContent as exc:
            _log.error("rounds.row_damaged campaign=%s step=%d box=%s error=%s", campaign, step, box_id, exc)
            return None

    def contents(self, ids: Sequence[int]) -> Iterator[bytes]:
        """The contents of updates, one after the other; empty for one that lies in a file."""
        with self.database.reading() as db:
            for row_id in ids:
                row = db.execute("SELECT content FROM received WHERE id = ?", (row_id,)).fetchone()
                yield bytes(row[0] or b"")

    def boxes_counted(self, campaign: str) -> int:
        """Different boxes whose updates counted, or will."""
        query = (
            "SELECT count(DISTINCT box) FROM received"
            " WHERE campaign = ? AND outcome IN ('accepted', 'chosen', 'counted')"
        )
        with self.database.reading() as db:
            return int(db.execute(query, (campaign,)).fetchone()[0])

    def ended(self, campaigns: Collection[str]) -> set[str]:
        """Those of these campaigns of which the disk says that they have ended."""
        query = "SELECT body FROM campaign WHERE id = ?"
        with self.database.reading() as db:
            rows = [row for campaign in campaigns for row in db.execute(query, (campaign,))]
        return {row.id for row in _sound(rows, CampaignRow) if row.state in ENDED}

    def accounts(self, model: str) -> dict[str, Account]:
        """What each box has spent on a model; one that the disk has damaged holds the most that any box spent on it."""
        with self.database.reading() as db:
            rows = db.execute("SELECT box, body FROM account WHERE model = ?", (model,)).fetchall()
        found = {}
        for box_id, body in rows:
            try:
                found[box_id] = Account.decoded(bytes(body))
            except (BadMessage, TypeError) as exc:
                _log.error("rounds.account_damaged model=%s box=%s error=%s", model, box_id, exc)
                most = max((row.cost for row in self.campaigns() if row.order.model == model), default=0.0)
                found[box_id] = Account(closed={DAMAGED: most})
        return found

    def promotions(self, campaign: str) -> list[PromotionView]:
        """What became of steps that were to become versions, oldest step first."""
        with self.database.reading() as db:
            rows = db.execute("SELECT body FROM promotion WHERE campaign = ? ORDER BY step", (campaign,)).fetchall()
        return _sound(rows, PromotionView)

    def counts(self, campaign: str, step: int) -> dict[str, dict[str, int]]:
        """What boxes counted of a step that is to become a version."""
        with self.database.reading() as db:
            query = "SELECT box, body FROM counts WHERE campaign = ? AND step = ?"
            rows = db.execute(query, (campaign, step)).fetchall()
        return {row[0]: count for row in rows for count in _sound([row[1:]], dict[str, int])}

    def close(self) -> None:
        """Close the database."""
        self.database.close()


# Writing, each within a transaction.


def put_campaign(db: sqlite3.Connection, row: CampaignRow) -> None:
    """Keep a campaign as it stands."""
    db.execute("INSERT OR REPLACE INTO campaign VALUES (?, ?)", (row.id, msgspec.json.encode(row)))


def put_round(db: sqlite3.Connection, campaign: str, view: RoundView, noise: bytes = b"") -> None:
    """Keep a round as it stands."""
    body = msgspec.json.encode(view)
    db.execute("INSERT OR REPLACE INTO round VALUES (?, ?, ?, ?, ?)", (campaign, view.number, view.state, body, noise))


def put_received(db: sqlite3.Connection, campaign: str, row: ReceivedRow, content: bytes | None) -> int:
    """Keep what came; its number."""
    cursor = db.execute(
        "INSERT INTO received (campaign, step, box, round, outcome, body, content) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (campaign, row.step, row.box_id, row.round, row.outcome, msgspec.msgpack.encode(row.body), content),
    )
    return cursor.lastrowid or 0


def put_outcomes(db: sqlite3.Connection, outcomes: Sequence[tuple[int, str]]) -> None:
    """What became of updates whose round closed; their contents go."""
    db.executemany(
        "UPDATE received SET outcome = ?, content = NULL WHERE id = ?", [(outcome, row) for row, outcome in outcomes]
    )


def choose(db: sqlite3.Connection, chosen: Sequence[int], left_out: Sequence[int]) -> None:
    """Which updates count in a round that closes."""
    db.executemany("UPDATE received SET outcome = 'chosen' WHERE id = ?", [(row,) for row in chosen])
    db.executemany("UPDATE received SET outcome = 'outlier' WHERE id = ?", [(row,) for row in left_out])


def put_account(db: sqlite3.Connection, model: str, box_id: str, body: bytes) -> None:
    """What a box has spent on a model."""
    db.execute("INSERT OR REPLACE INTO account VALUES (?, ?, ?)", (model, box_id, body))


def put_promotion(db: sqlite3.Connection, campaign: str, step: int, body: bytes) -> None:
    """How a promotion stands."""
    db.execute("INSERT OR REPLACE INTO promotion VALUES (?, ?, ?)", (campaign, step, body))


def put_counts(db: sqlite3.Connection, campaign: str, step: int, box_id: str, body: dict[str, int]) -> None:
    """What a box counted; the first word stays."""
    db.execute("INSERT OR IGNORE INTO counts VALUES (?, ?, ?, ?)", (campaign, step, box_id, json.dumps(body)))


def _sound(rows: Sequence[Sequence[Any]], kind: type[_T]) -> list[_T]:
    """The first columns, JSON, of rows that the disk has not damaged."""
    found = []
    for row in rows:
        try:
            found.append(msgspec.json.decode(row[0], type=kind))
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as exc:
            _log.error("rounds.row_damaged kind=%s error=%s", getattr(kind, "__name__", kind), exc)
    return found


def _received(row: tuple[int, int, str, int, str, bytes]) -> ReceivedRow:
    try:
        body = msgspec.msgpack.decode(row[5], type=Received)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as exc:
        raise CorruptContent(f"the disk has damaged what was kept of an update for step {row[1]}: {exc}") from exc
    return ReceivedRow(id=row[0], step=row[1], box_id=row[2], round=row[3], outcome=row[4], body=body)
