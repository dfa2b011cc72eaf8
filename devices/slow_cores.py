"""A slower machine of several cores: a quota for each of them, and threads spread over them as a kernel would do it.

Design: a quota belongs to a group, and a group of four cores lets one thread have what is meant for four. So each
emulated core is a group of its own (`devices.cpu_quota`), and the threads of the programs are its members, which v1 of
the control groups allows. A thread is born in its parent's group; a look every 20 ms gives it a core, and four times a
second those that compute most are put on cores of their own. An emulated core needs `1 / factor` of a real one, so that
four cores of a machine that is seven times slower fit on one processor, and leave the others to the gateway.

A quota stops a thread wherever it is, also while it holds a lock that others wait for. Python's threads hand their
interpreter's lock to one another thousands of times a second, and a drain makes such stops frequent: three threads that
did so were twice as slow as they should be with drains, and 10 to 25 % too slow without. So there are none by default.
"""

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from devices.cpu_quota import CpuQuota
from devices.errors import EmulationError, EmulationUnavailable
from devices.machine import CORES_VARIABLE

LOOK_S: Final = 0.02
"""How often new threads are looked for."""

BALANCE_S: Final = 0.25
"""How often threads are spread anew by what they computed."""

FULLEST_RATIO: Final = 0.9
"""Emulated cores take at most this share of a real one."""

_ALIKE_RATIO: Final = 0.15
"""A thread stays where it is unless another core is emptier by this share of the busiest thread."""


class SlowCores:
    """Cores that are slowed by a factor each; a context manager.

    Attributes:
        kind: `cgroup v1`.
        n_cores: how many there are.
    """

    def __init__(self, factor: float, *, n_cores: int, steady: bool = False) -> None:
        """Makes the cores, empty, and the thread that spreads programs over them.

        Args:
            factor: from 1 on, of each core.
            n_cores: of the emulated machine.
            steady: see `CpuQuota`; costs `n_cores / factor` processors at the lowest priority while nothing computes.

        Raises:
            EmulationUnavailable: no such groups can be made here, or threads cannot be moved between them (v2).
            EmulationError: a factor or cores that are none, or that this machine is too small for.
        """
        if not hasattr(os, "sched_getaffinity"):
            raise EmulationUnavailable("this system has no control groups with a processor quota")
        if n_cores < 1:
            raise EmulationError(f"a machine of {n_cores} cores is none; give 1 or more")
        self.n_cores = n_cores
        self._cores: list[CpuQuota] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="slow-cores", daemon=True)
        self._at: dict[int, int] = {}
        self._used_s: dict[int, float] = {}
        try:
            for cpu in _processors(factor, n_cores):
                self._cores.append(CpuQuota(factor, steady=steady, cpus=[cpu]))
            if any(not _tasks(core) for core in self._cores):
                raise EmulationUnavailable(f"{self.kind} moves no single threads here; ask for one core")
        except EmulationError:
            self.close()
            raise
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def kind(self) -> str:
        """`cgroup v1`."""
        return self._cores[0].kind

    @property
    def factor(self) -> float:
        """How many times slower each core is than this machine's, now."""
        return self._cores[0].factor

    @property
    def is_steady(self) -> bool:
        """Whether a job after a rest is slowed as one amid others."""
        return all(core.is_steady for core in self._cores)

    @property
    def groups(self) -> tuple[str, ...]:
        """Lists of processes that a program joins by writing its id; its threads are spread from there."""
        return self._cores[0].groups

    @property
    def environment(self) -> Mapping[str, str]:
        """The variable that tells programs of ours how many cores they have: the kernel shows them one processor."""
        return {CORES_VARIABLE: str(self.n_cores)}

    def attach(self, pid: int) -> None:
        """Slows down a running process, its threads, and what it starts from now on.

        Raises:
            EmulationError: there is no such process, or it may not be moved.
        """
        self._cores[0].attach(pid)

    def set(self, factor: float) -> None:
        """Another factor from now on, for every core.

        Raises:
            EmulationError: a factor that is none, or that this machine is too small for.
        """
        _processors(factor, self.n_cores)
        for core in self._cores:
            core.set(factor)

    def close(self) -> None:
        """Removes the cores; programs that still run go on unslowed. A second call does nothing."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for core in self._cores:
            core.close()

    def _tend(self) -> None:
        balance_s = time.monotonic() + BALANCE_S
        while not self._ended.wait(LOOK_S):
            threads = self._threads()
            is_due = time.monotonic() >= balance_s
            if not is_due and threads.keys() <= self._at.keys():
                continue
            used_s = {tid: _computed_s(tid) for tid in threads}
            usage = {tid: used_s[tid] - self._used_s.get(tid, used_s[tid]) for tid in threads}
            wanted = spread(usage, threads, self.n_cores)
            self._at = {tid: self._moved(tid, threads[tid], core) for tid, core in wanted.items()}
            if is_due:
                self._used_s, balance_s = used_s, time.monotonic() + BALANCE_S

    def _threads(self) -> dict[int, int]:
        """Every thread of the programs, and the core that it is on."""
        ours = frozenset().union(*(core.own_processes for core in self._cores))
        return {
            int(tid): at
            for at, core in enumerate(self._cores)
            for tid in _text(core.folders[0] / "tasks").split()
            if int(tid) not in ours
        }

    def _moved(self, tid: int, now: int, core: int) -> int:
        """Puts a thread on a core, unless it is there; where it is then."""
        if core == now:
            return now
        try:
            for place in _tasks(self._cores[core]):
                place.write_text(str(tid), encoding="ascii")
        except OSError:
            return now  # it ended meanwhile
        return core


def spread(usage: Mapping[int, float], at: Mapping[int, int], n_cores: int) -> dict[int, int]:
    """A core for every thread: those that computed most on cores of their own, nobody moved without need.

    Args:
        usage: processor seconds of each thread lately.
        at: the core that each is on.
        n_cores: how many there are.
    """
    loads = [(0.0, 0)] * n_cores  # what computed, and how many threads are there
    busiest = max(usage.values(), default=0.0)
    placed: dict[int, int] = {}
    for tid in sorted(usage, key=lambda tid: (-usage[tid], tid)):
        emptiest = min(range(n_cores), key=lambda core: loads[core])
        load, n_threads = loads[at[tid]]
        is_crowded = n_threads > loads[emptiest][1] + 1 if not busiest else load > loads[emptiest][0]
        far = load - loads[emptiest][0] > _ALIKE_RATIO * busiest or (not busiest and is_crowded)
        core = emptiest if far else at[tid]
        loads[core] = (loads[core][0] + usage[tid], loads[core][1] + 1)
        placed[tid] = core
    return placed


def _processors(factor: float, n_cores: int) -> list[int]:
    """The real processor of each emulated core: the last ones, as few as can hold them."""
    here = sorted(os.sched_getaffinity(0))
    n_each = math.floor(FULLEST_RATIO * factor + 1e-9) or 1
    if n_cores > n_each * len(here):
        raise EmulationError(
            f"{n_cores} cores that are {factor:g} times slower need more than the {len(here)} processors here; "
            "give fewer cores or a larger factor"
        )
    return [here[-1 - core // n_each] for core in range(n_cores)]


def _tasks(core: CpuQuota) -> Sequence[Path]:
    """Files that a thread joins a core by; none where threads cannot be moved."""
    places = [folder / "tasks" for folder in core.folders]
    return places if all(place.exists() for place in places) else ()


def _computed_s(tid: int) -> float:
    words = _text(Path(f"/proc/{tid}/schedstat")).split()
    return int(words[0]) / 1e9 if words else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
