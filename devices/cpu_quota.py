"""A slower machine by a quota of processor time: a control group whose programs get a share of one or more cores.

Design: a quota is only as smooth as its period. With the usual 100 ms a job of 5 ms is not slowed at all, since it
ends within its first share. So the share is the least that the kernel takes (1 ms) and the period that times the
factor: 2 to 10 ms for factors of 2 to 10. One flaw remains: while the group idles, a share or two wait for the next
job, which is a third of a job of 5 ms. A **drain** takes these away: a process of the lowest priority inside the group
that uses up what nobody else wants. It gives the processor back after each system call, so that the kernel accounts for
it at once and not at its next tick, and it never costs more than the group's own share of a core. It must live on the
same processor as the jobs, so the group is tied to one; where that is not allowed there is no drain.

A group of several cores has one purse for all of them, and whoever comes first takes it: a program with as many threads
as cores is slowed by the factor on average, one with fewer threads by less, and there is no drain. `devices.slow_cores`
has a purse for each core.

Measured on a kernel with 250 ticks a second, factors 1.5 to 20, jobs of 5, 50 and 500 ms, back to back and after 50 ms
of rest: within 2 % of the factor (medians); without the drain, jobs of 5 ms after a rest are 20 to 35 % too fast.

Works on control groups v1 and v2, whichever this process may write; groups of dead owners are removed on the way.
"""

import contextlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from devices.errors import EmulationError, EmulationUnavailable

LEAST_QUOTA_S: Final = 0.001
"""The kernel takes no smaller quota, and no shorter period."""

LONGEST_PERIOD_S: Final = 1.0
"""The kernel takes no longer period; so the largest factor is 1000."""

_ROOT: Final = Path("/")
GROUP_PREFIX: Final = "hybrid-cpu-"
"""How the names of groups begin that are made here."""

_NAME: Final = re.compile(GROUP_PREFIX + r"(?P<pid>\d+)-(?P<born>\d+)-\d+")
_REMOVE_S, _REMOVE_WAIT_S = 5.0, 0.01
"""How long a group is tried to be removed: a process that ends holds its group for a while on a busy machine."""
_counter = itertools.count()

_DRAIN: Final = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
sys.stdin.buffer.read(1)
while os.getppid() == int(sys.argv[1]):
    for _ in range(200):
        os.sched_yield()
"""
"""Waits until it is in the group, then uses up what is left of every share; ends with its owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """Where groups can be made.

    Attributes:
        version: of the control groups.
        cpu: folder in which groups with a quota are made.
        cpuset: folder in which v1 groups tied to processors are made; None where there is none (v2 needs no second).
    """

    version: Literal["v1", "v2"]
    cpu: Path
    cpuset: Path | None = None


def hierarchies(root: Path = _ROOT) -> Iterator[Hierarchy]:
    """Places where this process might make groups, the likeliest first; whether it may is found out by trying.

    Args:
        root: of the file system, for tests.
    """
    own = _own_groups(root)
    mounts = _mounts(root)
    for kind, place, options in mounts:
        if kind == "cgroup" and "cpu" in options:
            cpuset = next((path for also, path, words in mounts if also == "cgroup" and "cpuset" in words), None)
            yield Hierarchy(
                version="v1",
                cpu=_inside(place, own.get("cpu", "/")),
                cpuset=None if cpuset is None else _inside(cpuset, own.get("cpuset", "/")),
            )
    for kind, place, _ in mounts:
        if kind == "cgroup2" and "cpu" in _text(place / "cgroup.controllers").split():
            below = _inside(place, own.get("", "/"))
            for folder in (below, *(above for above in below.parents if place in (above, *above.parents))):
                if folder == place or "cpu" in _text(folder / "cgroup.subtree_control").split():
                    yield Hierarchy(version="v2", cpu=folder)


def why_unavailable() -> str | None:
    """Why no group with a quota can be made here; None where one was made (and removed again)."""
    try:
        CpuQuota(2.0).close()
    except EmulationUnavailable as exc:
        return str(exc)
    return None


class CpuQuota:
    """A group whose programs are slowed by a factor; a context manager.

    Attributes:
        kind: `cgroup v1` or `cgroup v2`.
        factor: how many times slower a core is than this machine's, now.
        n_cores: how many of this machine's processors the group uses.
        groups: lists of processes (`cgroup.procs`) that a program joins by writing its id.
    """

    def __init__(
        self,
        factor: float,
        *,
        n_cores: int = 1,
        steady: bool = True,
        period_s: float | None = None,
        cpus: Sequence[int] | None = None,
        where: Sequence[Hierarchy] | None = None,
    ) -> None:
        """Makes the group, empty.

        Args:
            factor: from 1 on; 1 slows nothing.
            n_cores: of the emulated machine; at most this machine's.
            steady: with a drain, so that a job after a rest is slowed as one amid others; for one core, where the
                group can be tied to a processor; costs `1 / factor` of it at the lowest priority.
            period_s: of the quota, 0.001 to 1; None for the shortest that the factor allows.
            cpus: processors that the group is tied to; None for the last ones that this process may use.
            where: places to try; None for all of this machine.

        Raises:
            EmulationUnavailable: this process may not make such a group.
            EmulationError: a factor, a period or cores that are none.
        """
        self._period_s = period_s
        _check(factor, n_cores, period_s)
        if not hasattr(os, "sched_getaffinity"):
            raise EmulationUnavailable("this system has no control groups with a processor quota")
        here = sorted(os.sched_getaffinity(0))
        if n_cores > len(here):
            raise EmulationError(f"{n_cores} cores are wanted and {len(here)} are here; give fewer")
        self._cpus = here[-n_cores:] if cpus is None else list(cpus)
        self.n_cores, self.factor = n_cores, factor
        self._folders, hierarchy = _made(list(hierarchies()) if where is None else where)
        self.kind = f"cgroup {hierarchy.version}"
        self._drains: list[subprocess.Popen[bytes]] = []
        self._finish = weakref.finalize(self, _clear, self._folders, self._drains)
        try:
            self._write(factor)
            if _tied(self._folders[-1], self._cpus) and steady and n_cores == 1:
                self._drain(factor)
        except (OSError, EmulationError) as exc:
            self.close()
            raise EmulationUnavailable(f"the kernel refused a quota for {self.kind}: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def is_steady(self) -> bool:
        """Whether a job after a rest is slowed as one amid others."""
        return bool(self._drains)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of the group, the one with the quota first."""
        return tuple(self._folders)

    @property
    def own_processes(self) -> frozenset[int]:
        """Processes that the group itself has put into it."""
        return frozenset(drain.pid for drain in self._drains)

    @property
    def groups(self) -> tuple[str, ...]:
        """Lists of processes that a program joins by writing its id (a launcher does so before it becomes one)."""
        return tuple(str(folder / "cgroup.procs") for folder in self._folders)

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that programs need: none, the kernel slows them down."""
        return {}

    def attach(self, pid: int) -> None:
        """Slows down a running process, its threads, and what it starts from now on.

        Raises:
            EmulationError: there is no such process, or it may not be moved.
        """
        try:
            for group in self.groups:
                Path(group).write_text(str(pid), encoding="ascii")
        except OSError as exc:
            raise EmulationError(f"process {pid} cannot join {self._folders[0].name}: {exc}") from exc

    def set(self, factor: float) -> None:
        """Another factor from now on, for all that runs in the group.

        Raises:
            EmulationError: a factor that is none, or the group is closed.
        """
        _check(factor, self.n_cores, self._period_s)
        if not self._finish.alive:
            raise EmulationError("this quota is closed; make a new one")
        self._write(factor)
        for drain in self._drains:
            drain.send_signal(signal.SIGSTOP if factor == 1 else signal.SIGCONT)
        self.factor = factor

    def close(self) -> None:
        """Removes the group; programs that still run in it go on unslowed. A second call does nothing."""
        self._finish()

    def _write(self, factor: float) -> None:
        folder = self._folders[0]
        period_us, quota_us = _shares(factor, self.n_cores, self._period_s)
        if self.kind == "cgroup v2":
            (folder / "cpu.max").write_text(f"{'max' if quota_us < 0 else quota_us} {period_us}", encoding="ascii")
            return
        (folder / "cpu.cfs_quota_us").write_text("-1", encoding="ascii")  # else a shorter period might be refused
        (folder / "cpu.cfs_period_us").write_text(str(period_us), encoding="ascii")
        (folder / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="ascii")

    def _drain(self, factor: float) -> None:
        drain = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DRAIN, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        self._drains.append(drain)
        self.attach(drain.pid)
        assert drain.stdin is not None, "it was asked for"
        drain.stdin.write(b"-")
        drain.stdin.close()
        if factor == 1:
            drain.send_signal(signal.SIGSTOP)


def _check(factor: float, n_cores: int, period_s: float | None) -> None:
    largest = LONGEST_PERIOD_S / LEAST_QUOTA_S
    if not 1.0 <= factor <= largest:
        raise EmulationError(f"a slowdown of {factor} is none; give a factor from 1 to {largest:g}")
    if n_cores < 1:
        raise EmulationError(f"a machine of {n_cores} cores is none; give 1 or more")
    if period_s is not None and not LEAST_QUOTA_S * factor / n_cores <= period_s <= LONGEST_PERIOD_S:
        raise EmulationError(
            f"a period of {period_s} s leaves less than {LEAST_QUOTA_S} s of quota, or is above {LONGEST_PERIOD_S} s"
        )


def _shares(factor: float, n_cores: int, period_s: float | None) -> tuple[int, int]:
    """Period and quota in microseconds; a quota of -1 is none."""
    period_us = math.ceil(1e6 * (LEAST_QUOTA_S * factor if period_s is None else period_s))
    return period_us, -1 if factor == 1 else round(n_cores * period_us / factor)


def _made(where: Sequence[Hierarchy]) -> tuple[list[Path], Hierarchy]:
    """Folders of a new group, the one with the quota first, at the first place that takes it."""
    refusals = []
    for hierarchy in where:
        name = f"{GROUP_PREFIX}{os.getpid()}-{_born(os.getpid())}-{next(_counter)}"
        folders: list[Path] = []
        try:
            for place in filter(None, (hierarchy.cpu, hierarchy.cpuset)):
                remove_stale(place)
                (place / name).mkdir(exist_ok=place == hierarchy.cpuset)
                folders.append(place / name)
            wanted = "cpu.max" if hierarchy.version == "v2" else "cpu.cfs_quota_us"
            if hierarchy.version == "v2" and not (folders[0] / wanted).exists():
                (hierarchy.cpu / "cgroup.subtree_control").write_text("+cpu", encoding="ascii")
            if not (folders[0] / wanted).exists():
                raise FileNotFoundError(f"{folders[0] / wanted} is missing")
        except OSError as exc:
            if len(folders) == 1 and hierarchy.cpuset is not None and (folders[0] / "cpu.cfs_quota_us").exists():
                return folders, hierarchy  # a quota without being tied to processors is still one
            _clear(folders, [])
            refusals.append(f"{hierarchy.version}: {exc}")
        else:
            return folders, hierarchy
    reason = "; ".join(refusals) or "this system has no control groups with a processor quota"
    raise EmulationUnavailable(f"no processor quota can be set here ({reason}); pacing needs no rights")


def _tied(folder: Path, cpus: Sequence[int]) -> bool:
    """Ties a group to processors, where its folder can; whether it could."""
    if not (folder / "cpuset.cpus").exists():
        return False
    mems = _text(folder.parent / "cpuset.mems").strip()
    if mems:
        (folder / "cpuset.mems").write_text(mems, encoding="ascii")
    (folder / "cpuset.cpus").write_text(",".join(map(str, cpus)), encoding="ascii")
    return True


def remove_stale(place: Path) -> None:
    """Removes groups in this folder whose owners are dead; programs left in them go on in the folder's own group."""
    for folder in place.glob(GROUP_PREFIX + "*"):
        owner = _NAME.fullmatch(folder.name)
        if owner and _born(int(owner["pid"])) != int(owner["born"]):
            _clear([folder], [])


def _clear(folders: Sequence[Path], drains: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the drains, lets everything else out, and removes the group."""
    for drain in drains:
        drain.kill()
        drain.wait()
    end_s = time.monotonic() + _REMOVE_S
    for folder in folders:
        while True:
            for pid in _text(folder / "cgroup.procs").split():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    (folder.parent / "cgroup.procs").write_text(pid, encoding="ascii")
            if _gone(folder.rmdir) or time.monotonic() > end_s:
                break
            time.sleep(_REMOVE_WAIT_S)


def _gone(remove: Callable[[], None]) -> bool:
    try:
        remove()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _born(pid: int) -> int:
    """When a process began, in the kernel's ticks since its start; 0 for one that is not there or has ended."""
    words = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(words[19]) if words and words[0] not in "ZX" else 0


def _own_groups(root: Path) -> dict[str, str]:
    """This process's group in each hierarchy, by controller; v2's by the empty name."""
    groups = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _mounts(root: Path) -> list[tuple[str, Path, set[str]]]:
    """(type, folder, options) of what is mounted of control groups."""
    lines = (line.split() for line in _text(root / "proc/self/mounts").splitlines())
    return [
        (words[2], root / words[1].lstrip("/"), set(words[3].split(",")))
        for words in lines
        if len(words) > 3 and words[2] in {"cgroup", "cgroup2"}
    ]


def _inside(place: Path, group: str) -> Path:
    """A group's folder; the mount itself where a container shows only a part of the tree."""
    folder = place / group.lstrip("/")
    return folder if folder.is_dir() else place


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
