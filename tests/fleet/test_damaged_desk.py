"""What lies on the disk of a fleet's front desk, damaged: the registry, its copy, the authority's key."""

import random
import stat
from pathlib import Path

import pytest

from cloud_gateway.fleet.admission.alarms import Alarm
from hybrid.errors import HybridError
from hybrid.hosting.identity import Identity
from hybrid.transport.token import Token
from tests.fleet_lab import Caller, Desk, SteppedWall


@pytest.fixture
def wall() -> SteppedWall:
    return SteppedWall()


def holder(desk: Desk, text: str) -> Identity | None:
    """Who holds an access token now."""
    token = Token.parse(text)
    found = desk.access_tokens.find(token.id)
    return found[1] if found is not None and found[0] == token.key else None


def alarms(desk: Desk) -> tuple[Alarm, ...]:
    return desk.alarms.listed(with_acked=False)


@pytest.mark.parametrize("how", ["zeros", "cut", "gone", "noise"])
def test_a_damaged_registry_comes_back_from_its_copy(tmp_path: Path, wall: SteppedWall, how: str) -> None:
    """No box is a stranger, no revoked one comes back, and a person is told."""
    desk, box, out = Desk(tmp_path, wall), Caller(), Caller()
    for one in (box, out):
        one.enroll(desk, desk.token())
    text = box.access(desk).token
    desk.revoke(out.box_id, "tester")
    desk.copy.write()
    desk.database.close()
    path = tmp_path / "fleet.db"
    content = path.read_bytes()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if how == "gone":
        path.unlink()
    else:
        rest = {"zeros": bytes(len(content)), "cut": content[:300], "noise": random.Random(1).randbytes(len(content))}
        path.write_bytes(rest[how])
    again = Desk(tmp_path, wall)
    try:
        assert again.was_restored
        assert holder(again, text) is not None
        assert box.access(again).token
        assert out.access(again).admission == "revoked"
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(again.copy.path.stat().st_mode) == 0o600
    finally:
        again.database.close()
    third = Desk(tmp_path, wall)
    assert not third.was_restored
    third.database.close()


def test_whatever_byte_is_changed_every_box_is_known(tmp_path: Path, wall: SteppedWall) -> None:
    """All of the header, and places drawn from the rest: the registry is sound, or comes back from its copy."""
    desk, boxes = Desk(tmp_path, wall), [Caller() for _ in range(3)]
    token = desk.token(count=3, tags={"site": "oslo"})
    for box in boxes:
        box.enroll(desk, token)
    desk.copy.write()
    with desk.database.writing() as db:
        db.execute("DELETE FROM event")
    desk.database.close()
    path, rng = tmp_path / "fleet.db", random.Random(3)
    good, spare = path.read_bytes(), (tmp_path / "fleet.db.copy").read_bytes()
    assert not (tmp_path / "fleet.db-wal").exists()
    places = [*range(100), *(rng.randrange(100, len(good)) for _ in range(100))]
    n_restored = 0
    for at in places:
        path.write_bytes(bytes([*good[:at], good[at] ^ 1 << rng.randrange(8), *good[at + 1 :]]))
        again = Desk(tmp_path, wall)
        n_restored += again.was_restored
        assert {box.id for box in again.boxes.all()} == {box.box_id for box in boxes}, at
        again.database.close()
        for left in tmp_path.glob("fleet.db*"):
            left.unlink()
        (tmp_path / "fleet.db.copy").write_bytes(spare)
    assert n_restored >= 20


def test_without_a_sound_copy_it_begins_anew(tmp_path: Path, wall: SteppedWall) -> None:
    (tmp_path / "fleet.db").write_bytes(b"rubbish" * 100)
    (tmp_path / "fleet.db.copy").write_bytes(b"rubbish" * 100)
    desk = Desk(tmp_path, wall)
    assert not desk.was_restored
    assert desk.boxes.all() == ()
    desk.database.close()


def test_an_authority_key_that_is_damaged_is_said_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "authority.key").write_bytes(b"rubbish")
    with pytest.raises(HybridError, match="restore it from a backup"):
        Desk(tmp_path)
    assert (tmp_path / "authority.key").read_bytes() == b"rubbish"
