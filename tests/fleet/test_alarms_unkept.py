"""Alarms where the disk takes nothing: told from memory, brought to the disk once it takes, and those that go."""

from pathlib import Path

import pytest

from cloud_gateway.fleet.admission.alarms import Alarms
from cloud_gateway.fleet.admission.store import open_store
from hybrid.errors import DiskFull


class Disk:
    """A database whose disk is full now and then."""

    def __init__(self, database) -> None:
        self._database = database
        self.is_full = self.is_gone = False

    def writing(self):
        if self.is_full:
            raise DiskFull("no room")
        return self._database.writing()

    def reading(self):
        if self.is_gone:
            raise DiskFull("no room for the log's index")
        return self._database.reading()


@pytest.fixture
def disk(tmp_path: Path):
    database = open_store(tmp_path)[0]
    yield Disk(database)
    database.close()


def told(alarms: Alarms, *, with_acked: bool = False) -> list[tuple[str, str, int]]:
    return [(one.kind, one.text, one.n) for one in alarms.listed(with_acked=with_acked)]


def test_what_the_disk_refuses_is_told_from_memory_until_it_takes(disk: Disk) -> None:
    alarms = Alarms(disk, lambda: 100.0)
    alarms.raise_alarm("halted", "", "one")
    disk.is_full = True
    for text in ("no room", "still no room"):
        alarms.raise_alarm("disk_refuses", "", text)
    assert told(alarms) == [("halted", "one", 1), ("disk_refuses", "still no room", 2)]
    assert alarms.n_open == 2
    disk.is_gone = True
    assert told(alarms) == [("disk_refuses", "still no room", 2)]
    disk.is_full = disk.is_gone = False
    alarms.raise_alarm("clone", "box", "two machines")
    assert sorted(told(Alarms(disk, lambda: 100.0))) == [
        ("clone", "two machines", 1), ("disk_refuses", "still no room", 2), ("halted", "one", 1),
    ]  # fmt: skip
    assert alarms.n_open == 3
    assert all(one.id for one in alarms.listed(with_acked=False))


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_is_over_goes_by_itself(disk: Disk, is_kept: bool) -> None:
    alarms = Alarms(disk, lambda: 100.0)
    disk.is_full = not is_kept
    alarms.raise_alarm("disk_refuses", "", "no room")
    alarms.raise_alarm("campaign_failed", "", "diverged")
    if not is_kept:
        with pytest.raises(DiskFull):
            alarms.lift("disk_refuses", "")
        assert alarms.n_open == 2
        disk.is_full = False
    alarms.lift("disk_refuses", "")
    assert told(alarms) == [("campaign_failed", "diverged", 1)]
    assert alarms.n_open == 1
    everything = alarms.listed(with_acked=True)
    assert [one.acked_by for one in everything if one.kind == "disk_refuses"] == (["gateway"] if is_kept else [])
    alarms.lift("disk_refuses", "")
    assert alarms.n_open == 1


def test_what_goes_and_comes_again_is_one_alarm(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes and goes all day would push the others out."""
    monkeypatch.setattr("cloud_gateway.fleet.admission.alarms._MOST_ALARMS", 5)
    clock = [100.0]
    alarms = Alarms(disk, lambda: clock[0])
    alarms.raise_alarm("clone", "box", "two machines")
    for _ in range(20):
        alarms.raise_alarm("disk_refuses", "", "no room")
        alarms.lift("disk_refuses", "")
        clock[0] += 10.0
    assert told(alarms, with_acked=True) == [("clone", "two machines", 1), ("disk_refuses", "no room", 20)]
    assert alarms.n_open == 1
    alarms.raise_alarm("disk_refuses", "", "no room")
    assert alarms.n_open == 2
    alarms.lift("disk_refuses", "")
    clock[0] += 86_400.0
    alarms.raise_alarm("disk_refuses", "", "no room")
    assert [one.n for one in alarms.listed(with_acked=True)] == [1, 21, 1]


def test_what_a_person_has_seen_is_another_alarm_when_it_comes_again(disk: Disk) -> None:
    alarms = Alarms(disk, lambda: 100.0)
    alarms.raise_alarm("disk_refuses", "", "no room")
    alarms.acknowledge(1, "a person")
    alarms.raise_alarm("disk_refuses", "", "no room")
    assert [(one.n, one.acked_by) for one in alarms.listed(with_acked=True)] == [(1, "a person"), (1, "")]
