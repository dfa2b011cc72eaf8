"""How true an emulated machine is: jobs of 5, 50 and 500 ms under a quota of the kernel, against the factor set.

A process computes for a fixed processor time and tells how much longer it took by the clock. Jobs come back to back,
and after a rest; with the drain (as programs of the lab run), without it, and with the usual period of 100 ms.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.report import Bar, Record, publish
from devices.cpu_quota import CpuQuota

FACTORS = (2.0, 4.0, 8.0)
JOBS = ((0.005, 21), (0.05, 5), (0.5, 1))
"""Processor seconds of a job, and how often it is done."""

REST_S = 0.05

WORKER = """
import sys, time
for line in sys.stdin:
    cpu_s, rest_s = map(float, line.split())
    time.sleep(rest_s)
    began_s, cpu_began_s = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu_began_s < cpu_s:
        pass
    print((time.perf_counter() - began_s) / (time.thread_time() - cpu_began_s), flush=True)
"""

Row = tuple[str | float, ...]


def slowdowns(worker: "subprocess.Popen[str]", cpu_s: float, n: int, rest_s: float) -> float:
    """Median over n jobs: seconds by the clock over processor seconds."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    ratios = []
    for at in range(n):
        print(cpu_s, rest_s * (0.9 + 0.2 * at / n), file=worker.stdin, flush=True)  # not in step with the periods
        ratios.append(float(worker.stdout.readline()))
    return statistics.median(ratios)


def rows_of(
    worker: "subprocess.Popen[str]", quota: CpuQuota, how: str, jobs: Sequence[tuple[float, int]]
) -> tuple[list[Row], float]:
    """Rows of one way to set a quota, and its worst error."""
    rows: list[Row] = []
    worst = 0.0
    for cpu_s, n in jobs:
        ratios = [slowdowns(worker, cpu_s, n, rest_s) for rest_s in (0.0, REST_S)]
        rows.append((how, quota.factor, 1e3 * cpu_s, *ratios))
        worst = max(worst, *(abs(ratio / quota.factor - 1) for ratio in ratios))
    return rows, worst


def main() -> int:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one factor and short jobs; publishes nothing")
    words = parser.parse_args()
    rows: list[Row] = []
    worst = 0.0
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        for factor in FACTORS[:1] if words.quick else FACTORS:
            with CpuQuota(factor) as quota:
                quota.attach(worker.pid)
                more, error = rows_of(worker, quota, "with the drain", JOBS[:2] if words.quick else JOBS)
            rows, worst = rows + more, max(worst, error)
        for how, period_s in (("without the drain", None), ("period of 100 ms", 0.1)):
            with CpuQuota(FACTORS[1], steady=False, period_s=period_s) as quota:
                quota.attach(worker.pid)
                rows += rows_of(worker, quota, how, JOBS[:1] if words.quick else JOBS[:2])[0]
        worker.communicate()
    if words.quick:
        print(f"{rows}\nworst error {worst:.1%}")
        return 0
    return publish(
        Record(
            name="slow_machine",
            claim="An emulated machine slows jobs of 5, 50 and 500 ms by its factor",
            method=(
                "A process computes for a fixed processor time inside the group; the clock's seconds over processor "
                f"seconds, medians of {', '.join(str(n) for _, n in JOBS)} jobs, back to back and after a rest of "
                f"{1e3 * REST_S:.0f} ms. Quota of 1 ms, period of 1 ms times the factor, one processor."
            ),
            seed=0,
            columns=("quota", "factor", "job ms", "back to back", "after a rest"),
            rows=rows,
            bars=(Bar(name="worst error with the drain", measured=100 * worst, limit=15.0, unit=" %"),),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
