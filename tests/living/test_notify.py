"""What systemd is told: by a real socket, of both kinds, and nothing where nobody listens."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.living.crash_guard import Boot, CrashGuard
from edge_agent.living.living import Living
from hybrid.hosting.systemd import Notifier


class Listener:
    """The end of the socket that systemd has."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every datagram since the last look."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def system(request: pytest.FixtureRequest) -> Iterator[tuple[Listener, str]]:
    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/s" if request.param == "path" else f"@hybrid-test-{os.getpid()}-{id(request)}"
        listener = Listener(name.replace("@", "\0", 1))
        yield listener, name
        listener.close()


def test_each_word_is_one_datagram_and_a_status_is_told_once(system: tuple[Listener, str]):
    listener, name = system
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
    assert notifier.watchdog_s == 30
    notifier.ready("serves 2 models")
    notifier.status("serves\n2  models")
    notifier.status("serves 3 models")
    notifier.reloading()
    notifier.alive()
    notifier.extend(1.5)
    notifier.stopping()
    heard = listener.heard()
    assert heard[0] == "READY=1\nSTATUS=serves 2 models"
    assert heard[1] == "STATUS=serves 3 models"
    assert heard[2].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[3:] == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1\nSTATUS=stopping"]


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "-5"}, 0),
        ({"WATCHDOG_USEC": "x"}, 0),
    ],
)
def test_without_a_listener_nothing_is_sent_and_nothing_raises(environment: dict[str, str], watchdog_s: float):
    notifier = Notifier(environment)
    notifier.ready("x")
    notifier.alive()
    assert notifier.watchdog_s == watchdog_s
    assert not notifier.is_wanted
    gone = Notifier({"NOTIFY_SOCKET": "/nonexistent/socket"})
    gone.ready("x")
    gone.stopping()


async def test_a_hang_ends_the_signs_of_life_and_is_told(system: tuple[Listener, str], tmp_path: Path):
    listener, name = system
    hangs = ""
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000"})
    living = Living(notifier, CrashGuard(tmp_path, RealDisk()), hangs=lambda: hangs, summary=lambda: "2 models")
    living.ready("")
    running = asyncio.create_task(living.run())
    await asyncio.sleep(0.15)
    heard = listener.heard()
    assert heard[0] == "READY=1"
    assert heard.count("WATCHDOG=1") >= 3
    assert "STATUS=2 models" in heard
    hangs = "a run of detector has not ended for 90 s"
    await asyncio.sleep(0.1)
    listener.heard()
    await asyncio.sleep(0.1)
    assert "WATCHDOG=1" not in listener.heard()
    assert [problem.code for problem in living.problems()] == ["engine_hangs"]
    assert living.problems()[0].blocks
    hangs = ""
    await asyncio.sleep(0.1)
    assert "WATCHDOG=1" in listener.heard()
    assert living.problems() == []
    living.reloading()
    living.reloaded("again")
    await living.stopping()
    words = [text.partition("=")[0] for text in listener.heard()]
    assert [word for word in words if word in ("RELOADING", "READY", "STOPPING")] == ["RELOADING", "READY", "STOPPING"]
    running.cancel()


def test_the_loop_of_crashes_starts_with_less_and_then_with_nothing(tmp_path: Path):
    now = Boot("boot", 100.0)
    modes = []
    for index in range(8):
        now = Boot("boot", 100.0 + 5 * index)
        modes.append(CrashGuard(tmp_path, RealDisk(), lambda now=now: now).begin())
    assert modes == ["normal"] * 3 + ["safe"] * 3 + ["bare"] * 2
    guard = CrashGuard(tmp_path, RealDisk(), lambda: now)
    assert guard.begin() == "bare"
    assert guard.settled_after_s == 600
    guard.settled()
    assert guard.mode == "normal"
    assert CrashGuard(tmp_path, RealDisk(), lambda: now).begin() == "normal"


@pytest.mark.parametrize("change", ["another boot", "an orderly stop", "an hour", "damage", "a clock that fell"])
def test_what_is_no_loop_starts_normally(tmp_path: Path, change: str):
    for index in range(7):
        guard = CrashGuard(tmp_path, RealDisk(), lambda index=index: Boot("boot", 10_000.0 + index))
        guard.begin()
    assert guard.mode == "bare"
    boot = Boot("boot", 10_010.0)
    if change == "another boot":
        boot = Boot("other", 20.0)
    elif change == "an orderly stop":
        guard.end()
    elif change == "an hour":
        boot = Boot("boot", 20_000.0)
    elif change == "a clock that fell":
        boot = Boot("boot", 20.0)
    else:
        (tmp_path / "starts.json").write_bytes(b"\0" * 100)
    assert CrashGuard(tmp_path, RealDisk(), lambda: boot).begin() == "normal"


async def test_after_a_quiet_while_everything_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edge_agent.living.crash_guard.SETTLED_S", 0.03)
    monkeypatch.setattr("edge_agent.living.living._PAUSE_S", 0.01)
    for _ in range(4):
        guard = CrashGuard(tmp_path, RealDisk())
        guard.begin()
    resumed = asyncio.Event()

    async def resume() -> None:
        resumed.set()

    living = Living(Notifier({}), guard, resumed=resume)
    assert [(problem.code, problem.blocks) for problem in living.problems()] == [("crash_loop", False)]
    running = asyncio.create_task(living.run())
    async with asyncio.timeout(2):
        await resumed.wait()
    assert living.problems() == []
    assert living.status().mode == "normal"
    running.cancel()


async def test_models_that_open_slowly_again_do_not_end_the_signs_of_life(
    system: tuple[Listener, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listener, name = system
    monkeypatch.setattr("edge_agent.living.crash_guard.SETTLED_S", 0.0)
    for _ in range(4):
        guard = CrashGuard(tmp_path, RealDisk())
        guard.begin()
    resumed = asyncio.Event()

    async def resume() -> None:
        resumed.set()
        await asyncio.sleep(60)

    living = Living(Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000"}), guard, resumed=resume)
    running = asyncio.create_task(living.run())
    async with asyncio.timeout(2):
        await resumed.wait()
    listener.heard()
    await asyncio.sleep(0.15)
    assert "WATCHDOG=1" in listener.heard()
    running.cancel()


async def test_models_that_do_not_open_again_are_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edge_agent.living.crash_guard.SETTLED_S", 0.0)
    monkeypatch.setattr("edge_agent.living.living._AGAIN_S", 0.02)
    for _ in range(4):
        guard = CrashGuard(tmp_path, RealDisk())
        guard.begin()
    attempts, done = [], asyncio.Event()

    async def resume() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("the disk was busy")
        done.set()

    living = Living(Notifier({}), guard, resumed=resume)
    running = asyncio.create_task(living.run())
    async with asyncio.timeout(5):
        await done.wait()
    await asyncio.sleep(0.1)
    assert len(attempts) == 3, "and no more once it went well"
    assert not running.done(), "signs of life go on meanwhile"
    running.cancel()
