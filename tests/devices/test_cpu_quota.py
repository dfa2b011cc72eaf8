"""The quota of processor time: jobs of 5, 50 and 500 ms are slowed by the factor; groups come and go cleanly."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.cpu_quota import CpuQuota, Hierarchy, hierarchies, remove_stale, why_unavailable
from devices.errors import EmulationError, EmulationUnavailable
from devices.slowdown import Pacing, slow_down

UNAVAILABLE = why_unavailable() if sys.platform == "linux" else "only Linux has control groups"
quota_only = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

WORKER = """
import sys, time
def stopped_s():  # how long the kernel has stopped this process's group for its quota
    found = dict(line.split() for stat in sys.argv[1:] for line in open(stat))
    return int(found.get("throttled_time", 0)) / 1e9 + int(found.get("throttled_usec", 0)) / 1e6
def job(cpu_s, rest_s):
    time.sleep(rest_s)
    stopped, began_s, cpu_began_s = stopped_s(), time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu_began_s < cpu_s:
        pass
    took_s, computed_s = time.perf_counter() - began_s, time.thread_time() - cpu_began_s
    return took_s / computed_s, (computed_s + stopped_s() - stopped) / computed_s
for line in sys.stdin:
    print(*job(*map(float, line.split())), flush=True)
"""


class Worker:
    """A process that computes jobs and tells how much longer each took than its own processor time.

    By the clock, and by what the kernel says of the quota's part in it: other load on this machine adds to the first
    and not to the second.
    """

    def __init__(self, quota: CpuQuota | None = None) -> None:
        told = [] if quota is None else [str(quota.folders[0] / "cpu.stat")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if quota is not None:
            quota.attach(self.process.pid)

    def slowdowns(self, cpu_s: float, *, rest_s: float, n: int) -> tuple[float, float]:
        """Medians: by the clock, and by the quota alone."""
        ratios = []
        for at in range(n):
            print(cpu_s, rest_s * (0.9 + 0.2 * at / n), file=self.process.stdin, flush=True)
            ratios.append(tuple(map(float, self.process.stdout.readline().split())))
        by_clock, by_quota = zip(*ratios, strict=True)
        return statistics.median(by_clock), statistics.median(by_quota)

    def is_slowed_by(self, factor: float, cpu_s: float, *, rest_s: float, n: int) -> bool:
        """Whether jobs take the factor longer within 15 %: in one try of several, since others may load the machine.

        Where they load it all the time, no try does it by the clock; then jobs must on the whole be slowed at least so
        far, and the quota must not have taken more than that. The figures of a failure are printed.
        """
        tries = []
        end_s = time.monotonic() + 3
        while len(tries) < 3 or (len(tries) < 12 and time.monotonic() < end_s):
            tries.append(self.slowdowns(cpu_s, rest_s=rest_s, n=n))
            if abs(tries[-1][0] / factor - 1) <= 0.15:
                return True
        by_clock, by_quota = (statistics.median(figures) for figures in zip(*tries, strict=True))
        print(f"jobs of {cpu_s} s at {factor}: {tries}")
        return by_clock >= 0.85 * factor and by_quota <= 1.15 * factor

    def is_free(self) -> bool:
        """Whether the process is in no group of ours."""
        return "hybrid-cpu" not in Path(f"/proc/{self.process.pid}/cgroup").read_text()


def n_stops(quota: CpuQuota) -> int:
    """How often the kernel has stopped a group for its quota: what other load on the machine does not change."""
    words = (quota.folders[0] / "cpu.stat").read_text().split()
    return int(words[words.index("nr_throttled") + 1])


@pytest.fixture
def worker_in() -> Iterator[Callable[..., Worker]]:
    """Makes workers, in a quota's group or in none, and ends them."""
    made: list[Worker] = []

    def make(quota: CpuQuota | None = None) -> Worker:
        made.append(Worker(quota))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_groups() -> list[Path]:
    mine = f"hybrid-cpu-{os.getpid()}-*"
    return [
        path
        for place in hierarchies()
        for folder in (place.cpu, place.cpuset)
        if folder is not None
        for path in folder.glob(mine)
    ]


@quota_only
@pytest.mark.parametrize("factor", [2, 6])
def test_jobs_of_every_length_are_slowed_by_the_factor(worker_in, factor: float):
    """Back to back and after a rest; a machine that is busy besides only makes single tries fail, not the best one."""
    with CpuQuota(factor) as quota:
        assert quota.kind in {"cgroup v1", "cgroup v2"}
        worker = worker_in(quota)
        assert worker.is_slowed_by(factor, 0.005, rest_s=0, n=9)
        assert worker.is_slowed_by(factor, 0.05, rest_s=0, n=3)
        if quota.is_steady:
            assert worker.is_slowed_by(factor, 0.005, rest_s=0.03, n=9)
            assert worker.is_slowed_by(factor, 0.05, rest_s=0.03, n=3)
        assert worker.is_slowed_by(factor, 0.25 if factor == 6 else 0.5, rest_s=0, n=1)
    assert not left_groups()


@quota_only
def test_with_a_period_of_100_ms_a_short_job_is_not_slowed_at_all(worker_in):
    with CpuQuota(4, period_s=0.1, steady=False) as quota:
        worker = worker_in(quota)
        before = n_stops(quota)
        worker.slowdowns(0.005, rest_s=0.12, n=5)
        assert n_stops(quota) <= before + 1, "a job in five may meet a slow moment of the machine and use its quota up"
        before = n_stops(quota)
        assert worker.is_slowed_by(4, 0.25, rest_s=0.1, n=1)
        assert n_stops(quota) > before + 1


@quota_only
def test_the_factor_changes_while_a_program_runs(worker_in):
    with CpuQuota(6) as quota:
        worker = worker_in(quota)
        assert worker.is_slowed_by(6, 0.05, rest_s=0, n=3)
        quota.set(2)
        assert quota.factor == 2
        assert worker.is_slowed_by(2, 0.05, rest_s=0, n=3)
        quota.set(1)
        worker.slowdowns(0.05, rest_s=0, n=1)
        before = n_stops(quota)
        worker.slowdowns(0.05, rest_s=0, n=3)
        assert n_stops(quota) == before
        quota.set(3)
        assert worker.is_slowed_by(3, 0.05, rest_s=0, n=3)
    with pytest.raises(EmulationError, match="closed"):
        quota.set(2)
    assert worker.is_free()


@quota_only
def test_a_launcher_joins_by_writing_its_id():
    code = (
        "import os, sys\n"
        "for group in sys.argv[1:]: open(group, 'w').write(str(os.getpid()))\n"
        "os.execv('/bin/cat', ['cat', '/proc/self/cgroup'])\n"
    )
    with CpuQuota(4) as quota:
        done = subprocess.run(
            [sys.executable, "-c", code, *quota.groups], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.count(quota.folders[0].name) == len(quota.groups)


@quota_only
def test_programs_that_still_run_go_on_when_the_group_goes(worker_in):
    quota = CpuQuota(4)
    worker = worker_in(quota)
    drains = [drain.pid for drain in quota._drains]
    quota.close()
    quota.close()
    assert worker.process.poll() is None
    assert worker.is_free()
    assert not left_groups()
    for pid in drains:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@quota_only
def test_a_group_whose_owner_was_killed_is_removed_by_the_next(worker_in):
    worker = worker_in()
    code = (
        "import sys, time\nfrom devices.cpu_quota import CpuQuota\n"
        "quota = CpuQuota(4)\nquota.attach(int(sys.argv[1]))\n"
        "print(quota.groups[0], *quota.own_processes, flush=True)\ntime.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(worker.process.pid)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    group, *drains = owner.stdout.readline().split()
    group = Path(group).parent
    assert group.is_dir()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with CpuQuota(2):
        assert not group.exists()
    assert worker.is_free()
    assert worker.process.poll() is None, "what ran in it goes on"
    deadline_s = time.monotonic() + 20
    while any(is_running(pid) for pid in drains) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not any(is_running(pid) for pid in drains), "the drain ends with its owner, however early that dies"


@quota_only
def test_several_cores_share_one_purse(worker_in):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    with CpuQuota(4, n_cores=2) as quota:
        assert not quota.is_steady
        worker = worker_in(quota)
        by_clock, by_quota = worker.slowdowns(0.3, rest_s=0, n=1)
        assert by_clock > 1.7
        assert by_quota < 3, "one thread has both shares"


@quota_only
def test_a_process_that_is_gone_cannot_join():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with CpuQuota(2) as quota, pytest.raises(EmulationError, match=str(ended.pid)):
        quota.attach(ended.pid)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs processors that a process can be tied to")
@pytest.mark.parametrize(
    "wrong", [{"factor": 0.5}, {"factor": 1001}, {"factor": float("nan")}, {"factor": 2, "n_cores": 0},
              {"factor": 2, "n_cores": 100_000}, {"factor": 4, "period_s": 0.002}, {"factor": 4, "period_s": 2.0}]
)  # fmt: skip
def test_what_no_quota_can_be(wrong: dict[str, float]):
    with pytest.raises(EmulationError):
        CpuQuota(**wrong)


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """The files of a v2 hierarchy: a session whose parent hands the processor on."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nproc /proc proc rw 0 0\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice/session.scope\n")
    session = tmp_path / "sys/fs/cgroup/user.slice/session.scope"
    session.mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory\n")
    (session / "cgroup.subtree_control").write_text("\n")
    (session.parent / "cgroup.subtree_control").write_text("cpu\n")
    return tmp_path


def test_v2_goes_up_to_where_groups_may_have_quotas(unified: Path):
    found = list(hierarchies(unified))
    base = unified / "sys/fs/cgroup"
    assert found == [Hierarchy(version="v2", cpu=base / "user.slice"), Hierarchy(version="v2", cpu=base)]


def test_v1_makes_groups_below_its_own(tmp_path: Path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text(
        "cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /cg/cpuset cgroup rw,cpuset 0 0\n"
        "cgroup2 /cg/unified cgroup2 rw 0 0\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,cpuacct:/box\n3:cpuset:/hidden\n0::/\n")
    for folder in ("cg/cpu,cpuacct/box", "cg/cpuset", "cg/unified"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cg/unified/cgroup.controllers").write_text("hugetlb\n")
    [only] = hierarchies(tmp_path)
    assert only == Hierarchy(version="v1", cpu=tmp_path / "cg/cpu,cpuacct/box", cpuset=tmp_path / "cg/cpuset"), (
        "a group that the container does not show is the mount itself"
    )


def test_without_control_groups_the_reason_is_told(tmp_path: Path):
    assert not list(hierarchies(tmp_path))
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("needs processors that a process can be tied to")
    with pytest.raises(EmulationUnavailable, match="no control groups"):
        CpuQuota(2, where=[])
    read_only = Hierarchy(version="v2", cpu=tmp_path / "nowhere")
    with pytest.raises(EmulationUnavailable, match=r"v2: .*nowhere"):
        CpuQuota(2, where=[read_only])
    (tmp_path / "none").mkdir()
    with pytest.raises(EmulationUnavailable, match=r"cpu\.max"):
        CpuQuota(2, where=[Hierarchy(version="v2", cpu=tmp_path / "none")])


def test_only_groups_of_dead_owners_are_stale(tmp_path: Path):
    born = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    for name in (f"hybrid-cpu-{os.getpid()}-{born}-0", f"hybrid-cpu-{os.getpid()}-1-0", "hybrid-cpu-odd", "other"):
        (tmp_path / name).mkdir()
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"hybrid-cpu-{os.getpid()}-{born}-0",
        "hybrid-cpu-odd",
        "other",
    }


def test_where_no_quota_is_allowed_programs_pace_themselves():
    with slow_down(6, kind="pacing") as pacing:
        assert (pacing.kind, pacing.groups, pacing.environment) == ("pacing", (), {"HYBRID_PACE": "6"})
        pacing.set(2.5)
        assert pacing.environment == {"HYBRID_PACE": "2.5"}
    with pytest.raises(EmulationError):
        Pacing(0.5)
    with pytest.raises(EmulationError, match="magic"):
        slow_down(2, kind="magic")
    with slow_down(2) as chosen:
        assert chosen.kind == ("pacing" if UNAVAILABLE else chosen.kind)
        assert bool(chosen.groups) == (UNAVAILABLE is None)
    assert not left_groups()


def test_a_paced_program_is_told_by_its_environment():
    code = "from devices import pace\nprint(pace.factor())"
    with slow_down(7, kind="pacing") as pacing:
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | dict(pacing.environment), capture_output=True, text=True,
            check=True, timeout=30,
        )  # fmt: skip
    assert float(done.stdout) == 7
