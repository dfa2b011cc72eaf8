"""What a box keeps of itself: found again after damage, never replaced in silence, bound to its machine."""

import random
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.trust.access import NONE_WANTED, REFUSED_TRUST_S, Access
from edge_agent.trust.identity import ENROLMENT_FILE, FOLDER, BoxIdentity, Enrolment
from edge_agent.trust.machine import Machine, this_machine
from edge_agent.trust.record_file import RecordFiles
from edge_agent.trust.trusted_time import BUILT_S, TrustedTime
from hybrid.artifact.signature import new_private_key, public_key_of
from hybrid.errors import Conflict, DiskFull, Forbidden
from hybrid.fleet.trust_bundle import DelegatedKey, delegate
from tests.enrolled_box import HERE

ROOT = new_private_key()
FILES = ("box.key", "installation.json", "enrolment.json", "trust.json")


def identity_in(data: Path, machine: Machine = HERE) -> BoxIdentity:
    return BoxIdentity(data, RealDisk(), machine)


def enrolled_in(data: Path) -> BoxIdentity:
    import hashlib

    made = identity_in(data)
    key = made.make_key()
    root = hashlib.sha256(public_key_of(ROOT)).hexdigest()
    enrolment = Enrolment(url="https://gw:8700", authority_sha256="a" * 64, root_sha256=root, box_id=key.box_id)
    made.enrolled(enrolment, delegate(ROOT, [DelegatedKey(public_key=public_key_of(ROOT).hex(), role="publisher")], 4))
    return made


def damage(path: Path, how: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[rng.randrange(len(content)) :]
    elif how == "zero":
        content[:] = bytes(len(content))
    elif how == "swap":
        content[:] = b"\n" + bytes(content)
    path.write_bytes(content)


def facts(box: BoxIdentity) -> tuple[object, ...]:
    assert box.key is not None
    assert box.trust is not None
    return box.epoch, box.key.box_id, box.enrolment, box.trust.sequence


@pytest.mark.parametrize("how", ["flip", "cut", "zero", "swap", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_one_damaged_copy_costs_nothing(tmp_path: Path, name: str, how: str) -> None:
    before = facts(enrolled_in(tmp_path))
    rng = random.Random(f"{name} {how}")
    for copy in (name, f"{name}.spare"):
        path = tmp_path / FOLDER / copy
        path.unlink() if how == "gone" else damage(path, how, rng)
        again = identity_in(tmp_path)
        assert facts(again) == before
        assert again.problems() == []
        assert again.is_sound
        if copy == name:  # mended from its twin, so that the twin may go next
            assert facts(identity_in(tmp_path)) == before
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / FOLDER).iterdir()} == {0o600}


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_is_believed(tmp_path: Path, name: str) -> None:
    before = facts(enrolled_in(tmp_path))
    path, rng = tmp_path / FOLDER / name, random.Random(name)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(bytes([*content[:at], content[at] ^ 1 << rng.randrange(8), *content[at + 1 :]]))
        assert facts(identity_in(tmp_path)) == before, at


def test_both_copies_damaged_are_set_aside_and_said(tmp_path: Path) -> None:
    for name in FILES:
        data = tmp_path / name
        before = enrolled_in(data)
        for copy in (name, f"{name}.spare"):
            damage(data / FOLDER / copy, "zero", random.Random(1))
        again = identity_in(data)
        aside = [path.name for path in (data / FOLDER).iterdir() if ".corrupt-" in path.name]
        assert len(aside) == 2, name
        assert "identity_damaged" in {problem.code for problem in again.problems()}
        assert (again.epoch == before.epoch) is (name != "installation.json")


def test_the_key_of_an_enrolment_is_never_replaced_in_silence(tmp_path: Path) -> None:
    enrolled_in(tmp_path)
    for copy in ("box.key", "box.key.spare"):
        (tmp_path / FOLDER / copy).unlink()
    again = identity_in(tmp_path)
    assert not again.is_sound
    assert [problem.code for problem in again.problems()] == ["box_key_lost"]
    with pytest.raises(Conflict, match="--anew"):
        again.make_key()
    assert again.next_key().box_id == identity_in(tmp_path).next_key().box_id  # kept, so that asking again is the same


@pytest.mark.parametrize("cut", range(6))
def test_becoming_another_box_is_done_or_not_done(tmp_path: Path, cut: int) -> None:
    """Power is cut after so many writes: it is the old box, or the new one, whole."""

    class Cut(RealDisk):
        left = cut

        def replace(self, source: Path, target: Path) -> None:
            if not self.left:
                raise DiskFull("the power is gone")
            self.left -= 1
            super().replace(source, target)

    old = enrolled_in(tmp_path)
    assert old.enrolment is not None
    key = old.next_key()
    dying = BoxIdentity(tmp_path, Cut(), HERE)
    new = Enrolment(url="https://gw2:8700", authority_sha256="b" * 64, box_id=key.box_id)
    try:
        dying.enrolled(new, None)
    except DiskFull:
        pass
    again = identity_in(tmp_path)
    assert again.is_sound
    assert again.enrolment in (old.enrolment, new)
    assert again.enrolment == (old.enrolment if cut == 0 else new)
    assert again.problems() == []


def test_another_boxs_key_is_not_its_own(tmp_path: Path) -> None:
    enrolled_in(tmp_path / "a")
    other = enrolled_in(tmp_path / "b")
    for copy in ("box.key", "box.key.spare"):
        (tmp_path / "b" / FOLDER / copy).replace(tmp_path / "a" / FOLDER / copy)
    again = identity_in(tmp_path / "a")
    assert again.key is not None
    assert other.key is not None
    assert again.key.box_id == other.key.box_id
    assert not again.is_sound


def test_a_disk_without_room_gives_an_epoch_all_the_same(tmp_path: Path) -> None:
    class Full(RealDisk):
        def append(self, path: Path, content: bytes) -> None:
            raise DiskFull(f"{path}: no room")

    made = BoxIdentity(tmp_path, Full(), HERE)
    assert len(made.epoch) == 32
    assert [problem.code for problem in made.problems()] == ["storage"]


def test_an_installation_on_another_machine_is_another_one(tmp_path: Path) -> None:
    before = identity_in(tmp_path)
    same = identity_in(tmp_path)
    assert (same.epoch, same.moved) == (before.epoch, False)
    assert same.run != before.run
    moved = identity_in(tmp_path, Machine(serial="board-2", machine_id="m1", addresses=HERE.addresses))
    assert moved.moved
    assert moved.epoch != before.epoch
    assert not identity_in(tmp_path, Machine(serial="board-2")).moved


@pytest.mark.parametrize(
    ("before", "now", "is_another"),
    [
        (Machine(serial="a", addresses=("x",)), Machine(serial="a", addresses=("y",)), False),
        (
            Machine(serial="a", addresses=("x",), machine_id="m"),
            Machine(serial="b", addresses=("x",), machine_id="m"),
            True,
        ),
        (Machine(addresses=("x", "y")), Machine(addresses=("y", "z")), False),
        (Machine(addresses=("x",), machine_id="m"), Machine(addresses=("z",), machine_id="m"), True),
        (Machine(machine_id="m"), Machine(machine_id="n"), True),
        (Machine(), Machine(machine_id="n"), False),
        (Machine(serial="a"), Machine(addresses=("x",)), False),
    ],
)
def test_what_tells_machines_apart(before: Machine, now: Machine, is_another: bool) -> None:
    assert now.is_another(before) is is_another


def test_a_machine_is_read_from_the_systems_files(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert this_machine(tmp_path).serial == ""
    put("sys/firmware/devicetree/base/serial-number", "10000000ABCDEF\0")
    put("sys/firmware/devicetree/base/model", "Raspberry Pi 5\0")
    put("etc/machine-id", "0123\n")
    for card, address, is_hardware in (
        ("eth0", "B8:27:EB:11:22:33", True),
        ("wlan0", "02:27:eb:11:22:33", True),  # drawn, not burnt in
        ("docker0", "b8:27:eb:00:00:09", False),
        ("lo", "00:00:00:00:00:00", False),
    ):
        put(f"sys/class/net/{card}/address", address + "\n")
        if is_hardware:
            (tmp_path / f"sys/class/net/{card}/device").mkdir()
    seen = this_machine(tmp_path)
    assert (seen.serial, seen.machine_id, seen.addresses) == ("10000000abcdef", "0123", ("b8:27:eb:11:22:33",))
    assert seen.words.startswith("Raspberry Pi 5")
    assert not this_machine().is_another(this_machine())


# -- time -------------------------------------------------------------------------------------------------------------


def test_trusted_time_runs_on_by_itself_and_never_back(tmp_path: Path) -> None:
    at_s = 50.0
    time = TrustedTime(RecordFiles(tmp_path, RealDisk()), clock_s=lambda: at_s)
    assert time.now_s() == BUILT_S
    at_s += 10
    assert time.now_s() == BUILT_S + 10
    time.learn(BUILT_S - 1e6)  # a gateway whose own clock is behind
    assert time.now_s() == BUILT_S + 10
    time.learn(BUILT_S + 1e6)
    at_s += 5
    assert time.now_s() == BUILT_S + 1e6 + 5
    time.learn(float("inf"))
    assert time.now_s() == BUILT_S + 1e6 + 5


def test_trusted_time_is_written_once_an_hour_at_most_and_found_again(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, RealDisk())
    time = TrustedTime(files, clock_s=lambda: 0.0)
    for step in range(20):
        time.learn(BUILT_S + 4000 + step * 600)
        time.keep()
    found = TrustedTime(RecordFiles(tmp_path, RealDisk()), clock_s=lambda: 0.0).now_s()
    assert BUILT_S + 4000 + 19 * 600 - 3600 < found <= BUILT_S + 4000 + 19 * 600
    (tmp_path / "time.json").write_bytes(b"x")
    (tmp_path / "time.json.spare").write_bytes(b"")
    assert TrustedTime(RecordFiles(tmp_path, RealDisk()), clock_s=lambda: 0.0).now_s() == BUILT_S


# -- trust ------------------------------------------------------------------------------------------------------------


def test_a_box_takes_newer_bundles_of_its_root_only(tmp_path: Path) -> None:
    box = enrolled_in(tmp_path)
    assert box.take_trust(delegate(ROOT, [], 5)).sequence == 5
    for envelope in (delegate(ROOT, [], 4), delegate(new_private_key(), [], 9)):
        with pytest.raises(Forbidden):
            box.take_trust(envelope)
    again = identity_in(tmp_path)
    assert again.trust is not None
    assert again.trust.sequence == 5


def test_a_box_that_lost_its_enrolment_believes_nobody_rather_than_everybody(tmp_path: Path) -> None:
    from tests.enrolled_box import access_of

    enrolled_in(tmp_path)
    trust = access_of(tmp_path).trust()
    assert trust is not None
    assert trust.trusted("publisher")
    for copy in ("enrolment.json", "enrolment.json.spare"):
        (tmp_path / FOLDER / copy).unlink()
    trust = access_of(tmp_path).trust()
    assert trust is not None
    assert not trust.trusted("publisher")
    assert access_of(tmp_path / "fresh").trust() is None


async def test_after_a_refused_bundle_a_box_asks_again_within_hours(tmp_path: Path) -> None:
    enrolled_in(tmp_path)
    now_s = 0.0
    access = Access(tmp_path, RealDisk(), rng=random.Random(1), machine=HERE, clock_s=lambda: now_s)
    assert access.trust_sequence == 4
    with pytest.raises(Forbidden):
        await access.take_trust(delegate(ROOT, [], 3))
    assert access.trust_sequence == NONE_WANTED
    now_s = REFUSED_TRUST_S + 1.0
    assert access.trust_sequence == 4
    await access.take_trust(delegate(ROOT, [], 5))
    assert access.trust_sequence == 5


def test_agent_and_command_may_finish_a_new_identity_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two comes second: both know the new key, and the disk has it."""
    agent = enrolled_in(tmp_path)
    command = identity_in(tmp_path)
    key = command.next_key()
    store = command.files.store

    def store_slowly(name: str, content: bytes) -> None:
        store(name, content)
        if name == ENROLMENT_FILE:
            agent.reload()  # it looks before the command goes on

    monkeypatch.setattr(command.files, "store", store_slowly)
    command.enrolled(Enrolment(url="https://gw2:8700", authority_sha256="b" * 64, box_id=key.box_id), None)
    assert command.is_sound
    assert agent.is_sound
    again = identity_in(tmp_path).next_key()
    load = agent.files.load

    def load_slowly(name: str, parse: object) -> object:
        if name == ENROLMENT_FILE:  # the command does all of it while the agent reads
            monkeypatch.setattr(agent.files, "load", load)
            other = identity_in(tmp_path)
            other.enrolled(Enrolment(url="https://gw3:8700", authority_sha256="c" * 64, box_id=again.box_id), None)
        return load(name, parse)  # type: ignore[arg-type]

    monkeypatch.setattr(agent.files, "load", load_slowly)
    agent.reload()
    assert agent.is_sound
    assert agent.key is not None
    assert agent.key.box_id == again.box_id
    assert agent.problems() == []
