"""The tables of what learning keeps, and rows that are written in more than one place, each within a transaction."""

import sqlite3
from collections.abc import Mapping
from typing import Final

import msgspec

from edge_agent.learning.records import CampaignNote, Outcome, Waiting

MOST_DONE: Final = 256
SCRIPT: Final = """
CREATE TABLE IF NOT EXISTS campaign (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, note BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS vector (
  campaign TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, sealed BLOB, PRIMARY KEY (campaign, name))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (id INTEGER PRIMARY KEY CHECK (id = 1), note BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS done (n INTEGER PRIMARY KEY, task TEXT NOT NULL UNIQUE, outcome TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS account (model TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID
"""


def put_gateway(db: sqlite3.Connection, gateway: str) -> bool:
    """What is here belongs to this gateway; whether it was another one's, and is forgotten."""
    known = db.execute("SELECT value FROM fact WHERE name = 'gateway'").fetchone()
    is_another = known is not None and known[0] != gateway
    if is_another:
        for table in ("campaign", "vector", "waiting", "done"):  # what privacy was spent, was spent
            db.execute(f"DELETE FROM {table}")  # noqa: S608 (the names stand above)
    db.execute("INSERT OR REPLACE INTO fact VALUES ('gateway', ?)", (gateway,))
    return is_another


def put_note(db: sqlite3.Connection, note: CampaignNote) -> None:
    """Keep a campaign as it stands: it was heard of last."""
    db.execute("DELETE FROM campaign WHERE id = ?", (note.id,))
    db.execute("INSERT INTO campaign (id, note) VALUES (?, ?)", (note.id, msgspec.msgpack.encode(note)))


def put_gone(db: sqlite3.Connection, campaign: str) -> None:
    """A campaign leaves, with all that was kept of it."""
    db.execute("DELETE FROM campaign WHERE id = ?", (campaign,))
    db.execute("DELETE FROM vector WHERE campaign = ?", (campaign,))


def put_accounts(db: sqlite3.Connection, accounts: Mapping[str, bytes]) -> None:
    """What was spent on models, by model."""
    for model, content in accounts.items():
        db.execute("INSERT OR REPLACE INTO account VALUES (?, ?)", (model, content))


def put_done(db: sqlite3.Connection, task: str, outcome: Outcome) -> None:
    """What became of a task; the oldest are forgotten."""
    db.execute("INSERT OR REPLACE INTO done (task, outcome) VALUES (?, ?)", (task, outcome))
    db.execute("DELETE FROM done WHERE n <= (SELECT max(n) FROM done) - ?", (MOST_DONE,))


def put_settled(db: sqlite3.Connection, waiting: Waiting, outcome: Outcome) -> None:
    """The update that waited is gone, with what became of it."""
    db.execute("DELETE FROM waiting")
    put_done(db, waiting.task, outcome)
