"""Tokens: made, verified, revoked at once and from another process; the administrator's first one; their file."""

import hashlib
import logging
import multiprocessing
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.errors import Conflict, CorruptContent, DiskFull, Forbidden, NotFound, StorageError, Unauthenticated
from hybrid.hosting.auth import Tokens, authenticate, ensure_admin_token
from hybrid.hosting.identity import ANYONE, RIGHTS, ROLES, Identity
from hybrid.hosting.token_store import FILE_NAME, TokenRecord
from hybrid.transport.token import Token

FORM = re.compile(r"hyb_[a-z2-7]{8}_[a-z2-7]{32}")


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    with Tokens(tmp_path) as opened:
        yield opened


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_says_who_holds_it(tokens: Tokens) -> None:
    token_id, text = tokens.create("publisher", "ci")
    assert FORM.fullmatch(text)
    assert text.split("_")[1] == token_id
    assert tokens.verify(text) == Identity(token_id=token_id, role="publisher", name="ci")


def test_tokens_are_all_different(tokens: Tokens) -> None:
    made = [tokens.create("device", "same name") for _ in range(50)]
    assert len({text for _, text in made}) == len({token_id for token_id, _ in made}) == 50


@pytest.mark.parametrize(
    "text",
    ["", "hyb_", "hyb_aaaaaaaa_" + "a" * 31, "HYB_aaaaaaaa_" + "a" * 32, "hyb_aaaaaaaa_" + "a" * 32 + "\n", "é" * 45,
     "hyb_aaaaaaa1_" + "a" * 32, "hyb_aaaaaaaa_" + "a" * 33, "hyb_aaaaaaaa_" + "à" * 32, "\0" * 45, "x" * 1_000_000],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_token_is_refused_without_repeating_it(tokens: Tokens, text: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        tokens.verify(text)
    assert len(str(caught.value)) < 300


def test_unknown_wrong_and_revoked_read_alike(tokens: Tokens) -> None:
    token_id, text = tokens.create("device", "camera")
    revoked_id, revoked = tokens.create("device", "lost camera")
    tokens.revoke(revoked_id)
    wrong = f"hyb_{token_id}_{'a' * 32}"
    told = set()
    for bad in (Token.fresh().text, wrong, revoked):
        with pytest.raises(Unauthenticated) as caught:
            tokens.verify(bad)
        told.add(str(caught.value))
    assert len(told) == 1
    assert tokens.verify(text).token_id == token_id


def test_revocation_is_seen_at_once_and_on_open_connections(tokens: Tokens) -> None:
    token_id, text = tokens.create("device", "camera")
    identity = tokens.verify(text)
    tokens.check(identity)
    tokens.revoke(token_id)
    with pytest.raises(Unauthenticated):
        tokens.verify(text)
    with pytest.raises(Unauthenticated):
        tokens.check(identity)
    tokens.revoke(token_id)  # saying it twice changes nothing
    with pytest.raises(NotFound, match="token ls"):
        tokens.revoke("aaaaaaaa")


def test_a_revoked_token_does_not_come_back(tokens: Tokens) -> None:
    token_id, text = tokens.create("device", "camera")
    tokens.revoke(token_id)
    with pytest.raises(Conflict, match="never comes back"):
        tokens.adopt(text, "admin", "again")


def test_another_process_creates_and_revokes_within_a_second(tokens: Tokens, tmp_path: Path) -> None:
    """By the command itself, while this process holds the file open."""
    tokens.watch()
    command = [sys.executable, "-c", "from cloud_gateway.commands import app; app()", "token"]
    data = ["--data", str(tmp_path)]

    def said(*words: str) -> str:
        return subprocess.run([*command, *words, *data], capture_output=True, text=True, check=True).stdout.strip()

    def wait_until_known(text: str, *, known: bool) -> float:
        began_s = time.monotonic()
        while time.monotonic() < began_s + 10:
            try:
                tokens.verify(text)
                now_known = True
            except Unauthenticated:
                now_known = False
            if now_known is known:
                return time.monotonic() - began_s
            threading.Event().wait(0.01)
        raise AssertionError(f"known stayed {not known}")

    text = said("create", "--role", "device", "--name", "camera")
    assert wait_until_known(text, known=True) < 1.0
    said("revoke", text.split("_")[1])
    assert wait_until_known(text, known=False) < 1.0


def test_without_watching_a_refresh_takes_over_what_others_wrote(tokens: Tokens, tmp_path: Path) -> None:
    with Tokens(tmp_path) as other:
        token_id, text = other.create("device", "camera")
        assert tokens.refresh()
        assert not tokens.refresh()
        assert tokens.verify(text).token_id == token_id
        other.revoke(token_id)
        assert tokens.refresh()
    with pytest.raises(Unauthenticated):
        tokens.verify(text)


def test_an_older_reading_of_the_file_never_undoes_a_revocation(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh is held up between its reading and its taking over, while the token is revoked."""
    token_id, text = tokens.create("device", "camera")
    has_read, go_on = threading.Event(), threading.Event()
    read = tokens._store.records

    def read_slowly() -> tuple[TokenRecord, ...]:
        records = read()
        if threading.current_thread() is refresher:
            has_read.set()
            assert go_on.wait(30)
        return records

    monkeypatch.setattr(tokens._store, "records", read_slowly)
    with Tokens(tmp_path) as other:
        other.create("device", "news for the refresh")
    refresher = threading.Thread(target=tokens.refresh)
    revoker = threading.Thread(target=tokens.revoke, args=(token_id,))
    refresher.start()
    assert has_read.wait(30)
    revoker.start()
    revoker.join(0.3)
    go_on.set()
    refresher.join(30)
    revoker.join(30)
    with pytest.raises(Unauthenticated):
        tokens.verify(text)


def test_a_secret_is_stored_nowhere(tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.create("admin", "root")
    secret = text.split("_")[2]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in stored
    assert hashlib.sha256(secret.encode()).digest() in stored
    assert mode(tmp_path / FILE_NAME) == 0o600
    assert secret not in repr(tokens.records())
    assert repr(hashlib.sha256(secret.encode()).digest()) not in repr(tokens.records())
    assert secret not in repr(Token.parse(text))


def test_the_last_use_is_written_down(tokens: Tokens, tmp_path: Path) -> None:
    _, used = tokens.create("device", "used")
    tokens.create("device", "unused")
    before_s = time.time()
    tokens.verify(used)
    tokens.close()
    with Tokens(tmp_path) as again:
        last = {record.name: record.last_used_s for record in again.records()}
    assert last["unused"] is None
    assert last["used"] is not None
    assert before_s <= last["used"] <= time.time()


def test_verifying_costs_at_most_ten_microseconds(tokens: Tokens) -> None:
    _, text = tokens.create("device", "camera")
    for _ in range(100):
        tokens.create("device", "another")
    tokens.watch()
    each_s = min(timeit.repeat(lambda: tokens.verify(text), number=1000, repeat=20)) / 1000
    assert each_s <= 10e-6


def test_verifying_blocks_no_event_loop(tokens: Tokens, blocking_calls_fail: None) -> None:
    _, text = tokens.create("device", "camera")

    async def ask() -> Identity:
        return tokens.verify(text)

    import asyncio

    assert asyncio.run(ask()).name == "camera"


@pytest.mark.parametrize("role", ROLES)
def test_rights_follow_the_page(role: str, root: Path) -> None:
    """The table of docs/security.md is the one in the code."""
    page = (root / "docs" / "security.md").read_text(encoding="utf-8")
    header = re.search(r"^\| role \|(.*)\|$", page, re.MULTILINE)
    row = re.search(rf"^\| `{role}` \|(.*)\|$", page, re.MULTILINE)
    assert header is not None
    assert row is not None
    rights = [cell.strip(" `") for cell in header[1].split("|")]
    documented = {right for right, cell in zip(rights, row[1].split("|"), strict=True) if cell.strip() == "yes"}
    assert documented == set(RIGHTS[role])
    identity = Identity(token_id="aaaaaaaa", role=role)
    for right in rights:
        assert identity.may(right) == (right in documented)
        if right not in documented:
            with pytest.raises(Forbidden, match=f"{role}.*{right}"):
                identity.require(right)
        else:
            identity.require(right)


def test_the_header_is_read(tokens: Tokens) -> None:
    _, text = tokens.create("device", "camera")
    assert authenticate(f"Bearer {text}", tokens).name == "camera"
    assert authenticate(f"bearer  {text}", tokens).name == "camera"
    for bad in (None, "", "Bearer", "Bearer ", text, f"Basic {text}", f"Bearer {text} {text}"):
        with pytest.raises(Unauthenticated):
            authenticate(bad, tokens)
    assert authenticate(None, None) is ANYONE
    assert ANYONE.may("admin")
    tokens.check(ANYONE)


def test_the_first_start_leaves_an_administrators_token(
    tokens: Tokens, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    path = ensure_admin_token(tmp_path, tokens)
    text = path.read_text().strip()
    assert mode(path) == 0o600
    assert tokens.verify(text).role == "admin"
    assert ensure_admin_token(tmp_path, tokens).read_text().strip() == text, "the second start makes no other"
    assert len(tokens.records()) == 1
    secret = text.split("_")[2]
    assert secret not in caplog.text
    assert secret not in "".join(capfd.readouterr())


def test_a_token_laid_down_before_is_adopted(tokens: Tokens, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = Token.fresh().text
    path = tmp_path / "admin.token"
    path.write_text(text)
    path.chmod(0o644)
    ensure_admin_token(tmp_path, tokens)
    assert tokens.verify(text).role == "admin"
    assert "admin_token_readable_by_others" in caplog.text


def test_an_administrators_file_with_something_else_is_an_error(tokens: Tokens, tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("hunter2")
    with pytest.raises(StorageError, match=r"admin\.token does not hold a token") as caught:
        ensure_admin_token(tmp_path, tokens)
    assert "hunter2" not in str(caught.value)
    assert tokens.records() == ()


def test_a_revoked_administrator_is_not_revived_by_a_restart(tokens: Tokens, tmp_path: Path) -> None:
    text = ensure_admin_token(tmp_path, tokens).read_text().strip()
    tokens.revoke(text.split("_")[1])
    ensure_admin_token(tmp_path, tokens)
    with pytest.raises(Unauthenticated):
        tokens.verify(text)


def _first_start(data: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    with Tokens(data) as tokens:
        barrier.wait(30)
        ensure_admin_token(data, tokens)


def test_two_first_starts_at_once_leave_one_good_token(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    racers = [context.Process(target=_first_start, args=(tmp_path, barrier)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    with Tokens(tmp_path) as tokens:
        assert tokens.verify((tmp_path / "admin.token").read_text().strip()).role == "admin"
        assert len(tokens.records()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin.token", FILE_NAME]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database, only text " * 100)
    with pytest.raises(CorruptContent, match=rf"{FILE_NAME} is damaged"):
        Tokens(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=FILE_NAME):
        Tokens(tmp_path / "nowhere")


def test_a_file_of_a_later_version_is_left_alone(tokens: Tokens, tmp_path: Path) -> None:
    tokens.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StorageError, match="upgrade"):
        Tokens(tmp_path)


def test_a_full_disk_changes_nothing(tokens: Tokens) -> None:
    token_id, text = tokens.create("device", "camera")
    db = tokens._store._db
    (n_pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {n_pages}")
    with pytest.raises(DiskFull, match="nothing was changed"):
        tokens.create("device", "x" * 20_000)
    n_before = len(tokens.records())
    with pytest.raises(DiskFull):
        tokens.create("device", "x" * 20_000)
    assert len(tokens.records()) == n_before
    assert tokens.verify(text).token_id == token_id
    db.execute("PRAGMA max_page_count = 1000000")
    assert tokens.verify(tokens.create("device", "later")[1]).name == "later"


def test_a_file_that_cannot_be_read_for_a_while_stops_nothing(
    tokens: Tokens, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, text = tokens.create("device", "camera")
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("ALTER TABLE token RENAME TO elsewhere")
    with pytest.raises(StorageError):
        tokens.refresh()
    assert tokens.verify(text).name == "camera"
    with db:
        db.execute("ALTER TABLE elsewhere RENAME TO token")
    db.close()
    tokens.refresh()
    assert tokens.verify(text).name == "camera"
