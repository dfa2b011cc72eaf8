"""Several slowed cores: threads that compute beside one another do not share one core's time."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from devices.cpu_quota import CpuQuota, why_unavailable
from devices.errors import EmulationError, EmulationUnavailable
from devices.slow_cores import SlowCores, spread

WORKER = """
import sys, time
for line in sys.stdin:
    began_s, cpu_began_s = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu_began_s < float(line):
        pass
    print((time.perf_counter() - began_s) / (time.thread_time() - cpu_began_s), flush=True)
"""


def why_no_cores() -> str | None:
    if sys.platform != "linux":
        return "only Linux has control groups"
    reason = why_unavailable()
    if reason is None:
        try:
            SlowCores(4, n_cores=2).close()
        except EmulationUnavailable as unavailable:
            return str(unavailable)
    return reason


UNAVAILABLE = why_no_cores()
cores_only = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


@pytest.fixture
def workers():
    """Three programs that compute when they are told to."""
    found = [
        subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    yield found
    for one in found:
        one.kill()
        one.communicate()


def slowdown(workers, cpu_s: float) -> float:
    """Mean over programs that compute beside one another: seconds by the clock over their processor seconds."""
    for one in workers:
        print(cpu_s, file=one.stdin, flush=True)
    return statistics.mean(float(one.stdout.readline()) for one in workers)


def is_slowed_by(factor: float, workers, cpu_s: float, rel: float) -> bool:
    """Whether one of several tries is within `rel` of the factor; where others load the machine all the time, at least
    none is faster.
    """
    tries = []
    for _ in range(6):
        tries.append(slowdown(workers, cpu_s))
        if tries[-1] == pytest.approx(factor, rel=rel):
            return True
    print(f"{len(workers)} jobs of {cpu_s} s at {factor}: {tries}")
    return os.getloadavg()[0] > len(os.sched_getaffinity(0)) and min(tries) > (1 - rel) * factor


@cores_only
@pytest.mark.parametrize("steady", [True, False])
def test_programs_beside_one_another_have_cores_of_their_own(workers, steady):
    """Each is slowed as if it were alone."""
    with SlowCores(4, n_cores=3, steady=steady) as cores:
        assert cores.is_steady == steady
        for one in workers:
            cores.attach(one.pid)
        assert is_slowed_by(4, workers[:1], 0.1, 0.15)
        assert is_slowed_by(4, workers, 0.2, 0.25)
        cores.set(8)
        assert cores.factor == 8
        assert is_slowed_by(8, workers, 0.05, 0.25)
    for one in workers:
        assert "hybrid-cpu" not in Path(f"/proc/{one.pid}/cgroup").read_text(), "free again"


@cores_only
def test_on_one_core_they_share_it(workers):
    with CpuQuota(4) as core:
        for one in workers:
            core.attach(one.pid)
        assert slowdown(workers, 0.1) > 9


@cores_only
def test_groups_are_removed():
    with SlowCores(6, n_cores=4) as cores:
        folders = [folder for core in cores._cores for folder in core.folders]
        assert all(folder.is_dir() for folder in folders)
        code = "from devices.machine import usable_cores\nprint(usable_cores())"
        told = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | dict(cores.environment),
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(told.stdout) == 4, "programs of ours know how many cores they have"
    assert not any(folder.exists() for folder in folders)
    cores.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs processors that a process can be tied to")
def test_a_machine_that_does_not_fit_is_refused():
    n_here = len(os.sched_getaffinity(0))
    with pytest.raises(EmulationError, match="give fewer cores"):
        SlowCores(2, n_cores=2 * n_here)
    with pytest.raises(EmulationError):
        SlowCores(2, n_cores=0)


def test_the_busiest_get_cores_of_their_own():
    placed = spread({1: 0.2, 2: 0.2, 3: 0.01, 4: 0.0}, {1: 0, 2: 0, 3: 0, 4: 0}, 3)
    assert placed[1] != placed[2]
    assert placed[3] not in {placed[1], placed[2]}
    assert placed[4] == placed[3]


def test_nobody_is_moved_without_need():
    at = {1: 2, 2: 0, 3: 1, 4: 1}
    assert spread({1: 0.2, 2: 0.19, 3: 0.01, 4: 0.0}, at, 3) == at
    assert spread({}, {}, 3) == {}
    assert set(spread({1: 0.0, 2: 0.0, 3: 0.0}, {1: 0, 2: 0, 3: 0}, 1).values()) == {0}


def test_threads_of_which_nothing_is_known_are_spread_by_number():
    placed = spread(dict.fromkeys(range(8), 0.0), dict.fromkeys(range(8), 0), 4)
    counts = [list(placed.values()).count(core) for core in range(4)]
    assert max(counts) <= 3
    assert min(counts) >= 1
