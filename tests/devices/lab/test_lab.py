"""A lab: programs at both ends, what they see, and that nothing of it stays behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from devices.catalog.load import device
from devices.cpu_quota import why_unavailable
from devices.errors import CatalogUnknown, EmulationError, EmulationUnavailable
from devices.lab import lab as lab_module
from devices.lab.lab import Lab, Place
from devices.lab.machine import Emulated
from devices.shape import Shape

ROOT = Path(__file__).parent.parent.parent.parent
KINDS = [pytest.param("tun", marks=pytest.mark.root), "proxy"]
CRASHING = """
import json, os, signal, subprocess, sys
from devices.lab.lab import Lab
kind, slowdown = sys.argv[1:]
lab = Lab(kind=kind, slowdown=slowdown, factor=4)
family = "sleep 600 & echo $!; exec setsid sleep 600"
parent = lab.device.popen(["sh", "-c", family], stdout=subprocess.PIPE, text=True)
programs = [parent.pid, int(parent.stdout.readline()), lab.gateway.popen(["setsid", "sleep", "600"]).pid]
programs += [lab.link.pid] if kind == "tun" else []
slowed = lab.device.command(["true"])
groups = [os.path.dirname(after) for word, after in zip(slowed, slowed[1:]) if word == "--group"]
print(json.dumps({"programs": programs, "folders": [str(lab.folder), *groups]}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
PLAIN = """
import json, socket, subprocess, sys
from devices.lab.tun_link import TunLink
from devices.shape import Shape
with TunLink(Shape.even(rtt_s=0.02), congestion_control="reno") as link:
    program = "import os, socket; print(os.geteuid(), [name for _, name in socket.if_nameindex()])"
    seen = subprocess.run(link.command("device", [sys.executable, "-c", program]), capture_output=True, text=True)
    print(seen.stdout, seen.stderr)
"""


@dataclass
class Files:
    """A slowdown whose control groups are plain files, so that a test can read who joined."""

    groups: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Nothing to take away."""


def alive(pid: int) -> bool:
    """Whether a process is there and not only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: Sequence[int], patience_s: float = 10.0) -> bool:
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_programs_run_on_their_machine_and_end_with_the_lab(
    lab_of: Callable[..., Lab], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_module, "_POLITE_S", 0.5)
    lab = lab_of(Shape.even(rtt_s=0.002), kind=kind, device="rpi-4b", slowdown="pacing", factor=7.5, seed=1)
    assert lab.machine == Emulated(name="rpi-4b", factor=7.5, kind="pacing", n_cores=1)
    show = [
        sys.executable,
        "-c",
        "import os, sys; print(os.environ.get('HYBRID_PACE'), os.environ.get('HYBRID_DEVICE'), sys.argv[1:])",
        "--",
        "a b",
    ]
    on_device = lab.device.run(show, capture_output=True, text=True, check=True, timeout_s=30)
    assert on_device.stdout == "7.5 rpi-4b ['--', 'a b']\n"
    assert lab.device.environment["HYBRID_DEVICE_FACTOR"] == "7.5"
    own = lab.gateway.run(show, capture_output=True, text=True, env={"HYBRID_PACE": "own"})
    assert own.stdout == "own None ['--', 'a b']\n"
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    polite = lab.gateway.popen(["sleep", "600"])
    rude = lab.device.popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    assert rude.stdout is not None
    rude.stdout.readline()
    rude.stdout.close()
    began_s = time.monotonic()
    lab.close()
    assert time.monotonic() - began_s < 12
    assert (polite.returncode, rude.returncode) == (-signal.SIGTERM, -signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_is_not_there_is_told_as_a_shell_would(lab_of: Callable[..., Lab], kind: str) -> None:
    lab = lab_of(kind=kind)
    if kind == "proxy":
        with pytest.raises(FileNotFoundError):
            lab.device.run(["no-such-program"])
    else:
        done = lab.device.run(["no-such-program"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (127, "no-such-program: No such file or directory\n")


def test_a_machine_that_is_not_slower_is_this_one() -> None:
    fast = replace(device("rpi-5"), slowdown_ratio=0.001)
    with Lab(kind="proxy", device=fast) as lab:
        assert lab.machine == Emulated(name="rpi-5", factor=1.0, kind="nothing", n_cores=None)
        assert lab.device.environment.items() >= {"HYBRID_DEVICE": "rpi-5"}.items()
    with Lab(kind="proxy", device=replace(fast, slowdown_ratio=1000.0), slowdown="pacing") as lab:
        assert 100 < lab.machine.factor < 10_000, "by a benchmark of this machine"
    with pytest.raises(CatalogUnknown):
        Lab(device="rpi-99")


@pytest.mark.root
def test_a_program_on_the_device_is_slowed_by_the_kernel(lab_of: Callable[..., Lab]) -> None:
    """Processor seconds stay, seconds grow; `tests/devices/test_cpu_quota.py` measures how exactly."""
    lab = lab_of(kind="tun", slowdown="quota", factor=6)
    spin = (
        "import time; began_s = time.perf_counter(); sum(range(10_000_000)); "
        "print((time.perf_counter() - began_s) / time.process_time())"
    )
    ratio = float(lab.device.run([sys.executable, "-S", "-c", spin], capture_output=True, text=True).stdout)
    assert ratio > lab.machine.factor / 2


@pytest.mark.root
def test_a_device_has_as_many_cores_as_fit(lab_of: Callable[..., Lab]) -> None:
    lab = lab_of(kind="tun", device="rpi-4b", slowdown="quota", factor=10)
    if lab.machine.kind == "cgroup v1":
        assert lab.machine.n_cores == 4
    with pytest.raises(EmulationError, match="cores"):
        lab_of(kind="tun", slowdown="quota", factor=1.5, n_cores=64)


@pytest.mark.root
def test_programs_join_the_groups_of_their_machine(lab_of: Callable[..., Lab], tmp_path: Path) -> None:
    """The launcher writes itself into every list of processes; plain files stand for control groups here."""
    lists = [tmp_path / "one", tmp_path / "two"]
    lab = lab_of(kind="tun")
    process = Place("device", lab.link, Files([str(one) for one in lists])).popen(["true"])
    assert process.wait(30) == 0
    assert [one.read_text() for one in lists] == [str(process.pid)] * 2


@pytest.mark.root
def test_labs_beside_each_other_do_not_meet(lab_of: Callable[..., Lab]) -> None:
    one, other = lab_of(kind="tun"), lab_of(kind="tun")
    with one.gateway.entered():
        listening = [sys.executable, "-c", "import socket, sys; socket.create_connection(('10.77.0.1', 9000), 2)"]
        import socket

        with socket.create_server((one.gateway.address, 9000)):
            assert one.device.run(listening).returncode == 0
            assert other.device.run(listening, stderr=subprocess.DEVNULL).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process can be found by its environment")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_when_the_program_that_made_it_is_killed(lab_of: Callable[..., Lab], kind: str) -> None:
    """Programs, what they started and sent into sessions of its own, relay, control groups, files."""
    lab_of(kind=kind).close()
    slowdown = "pacing" if why_unavailable() else "quota"
    killed = subprocess.run(
        [sys.executable, "-c", CRASHING, kind, slowdown],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = json.loads(killed.stdout)
    assert len(left["programs"]) == (4 if kind == "tun" else 3)
    assert len(left["folders"]) > 1 or slowdown == "pacing"
    assert gone(left["programs"])
    end_s = time.monotonic() + 10
    while any(Path(folder).exists() for folder in left["folders"]) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not [folder for folder in left["folders"] if Path(folder).exists()]


@pytest.mark.root
def test_a_program_that_was_about_to_enter_does_not_survive_the_lab(lab_of: Callable[..., Lab], tmp_path: Path) -> None:
    """A launcher that has opened the namespace and is held up (by a group's file that nobody reads) comes too late."""
    lab = lab_of(kind="tun")
    door = tmp_path / "door"
    os.mkfifo(door)
    late = Place("device", lab.link, Files([str(door)])).popen(["sleep", "600"], stderr=subprocess.PIPE)
    end_s = time.monotonic() + 30
    while not any("net:[" in path for path in opened(late.pid)) and time.monotonic() < end_s:
        time.sleep(0.01)
    lab.close()
    door.read_text()
    assert late.communicate(timeout=30)[1].startswith(b"the emulated ")
    assert late.returncode == 1


def opened(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(str(file.readlink()))
    return found


@pytest.mark.root
def test_a_killed_relay_is_told_and_cleaned_up(lab_of: Callable[..., Lab]) -> None:
    lab = lab_of(kind="tun")
    os.kill(lab.link.pid, signal.SIGKILL)
    with pytest.raises(EmulationError, match="make a new one"):
        lab.link.statistics()
    assert lab.device.run(["true"], stderr=subprocess.DEVNULL).returncode == 1
    lab.close()
    assert gone([lab.link.pid])


@pytest.mark.root
def test_nobody_special_may_build_one_too(lab_of: Callable[..., Lab]) -> None:
    """Where user namespaces are allowed, root is not needed."""
    lab_of(kind="tun").close()
    system = shutil.which("python3", path="/usr/bin:/bin")
    if system is None or sys.version_info[:2] != system_version(system):
        pytest.skip("needs this same Python where every user may read it")
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True, user=65534).returncode:
        pytest.skip("this machine allows no user namespaces")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(ROOT / "devices", Path(folder) / "devices", ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run(
            [system, "-B", "-c", PLAIN], cwd=folder, user=65534, group=65534, extra_groups=[],
            env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.stdout.startswith("65534 ['lo', 'lab0']"), done.stderr + done.stdout


def system_version(python: str) -> tuple[int, ...]:
    words = subprocess.run(
        [python, "-c", "import sys, json; print(json.dumps(sys.version_info[:2]))"], capture_output=True, check=True
    )
    return tuple(json.loads(words.stdout))


def test_elsewhere_the_proxy_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with Lab() as lab:
        assert lab.link.kind == "proxy"
        assert lab.link.congestion_control is None
        assert lab.url(8700).startswith("http://127.0.0.1:")
    with pytest.raises(EmulationUnavailable, match="Linux"):
        Lab(kind="tun")
