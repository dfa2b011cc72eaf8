"""How surely a rollout halts for a worse version, and how rarely for a sound one, in simulated fleets of 500 boxes.

The real ledger and engine with the default plan (5, 30, 100 %, an hour a stage), in virtual time; boxes as unlike one
another as real ones (`tests/rollouts/simulated_fleet.py` says how). Other work on the machine changes nothing.
"""

import argparse
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks.report import Bar, Record, publish
from tests.rollouts.simulated_fleet import Ended, Regression, simulate

WORSE: dict[str, Regression] = {
    "crashes in its trial on 5 % of the boxes": Regression(crash_boxes_ratio=0.05),
    "crashes the service 0.05 times an hour on each box": Regression(crashes_per_hour=0.05),
    "errors x 2": Regression(errors_factor=2.0),
    "latency + 30 %": Regression(latency_factor=1.3),
    "5 % of the boxes die with it": Regression(dead_ratio=0.05),
    "5 % of the boxes never tell": Regression(stuck_ratio=0.05),
}
NO_BAR = "crashes the service 0.05 times an hour on each box"
METHOD = (
    "Fleets of 500 simulated boxes, a seed each; boxes differ in speed, traffic and errors by factors, 2 % have broken "
    "cameras, 2 % are off, others for a while; any installation fails on 0.1 %, and the old version crashes too, 0.002 "
    "times an hour. Default plan. The bar: halted by stage 2 in 95 % of the fleets, sound versions in 1 % at most."
)
COLUMNS = (
    "what is worse",
    "fleets",
    "halted in stage 1, %",
    "by stage 2, %",
    "at all, %",
    "boxes that took it (median)",
    "hours (median)",
)
SOUND: dict[str, Regression] = {"none": Regression(), "none, reports 10 minutes late": Regression(late_s=600.0)}


def main() -> int:
    """Simulate; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="of each worse version")
    parser.add_argument("--sound-seeds", type=int, default=500, help="of each sound version")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    rows: list[list[str | float]] = []
    bars = []
    for name, worse in (SOUND | WORSE).items():
        is_sound = name in SOUND
        n = given.sound_seeds if is_sound else given.seeds
        seeds = range(given.seed, given.seed + n)
        with ProcessPoolExecutor(given.processes) as pool:
            ended = list(pool.map(partial(simulate, worse=worse), seeds, chunksize=5))
        first, second = (_ratio(ended, stage) for stage in (1, 2))
        halted = sum(one.state == "halted" for one in ended) / n
        exposed = statistics.median(one.n_exposed for one in ended)
        hours = statistics.median(one.hours for one in ended)
        rows.append([name, str(n), 100 * first, 100 * second, 100 * halted, exposed, hours])
        print(rows[-1], file=sys.stderr, flush=True)
        for at, one in enumerate(ended):
            if is_sound == (one.state == "halted") or (not is_sound and one.stage > 2):
                print(f"  seed {given.seed + at}: {one.state} in stage {one.stage}: {one.reason}", file=sys.stderr)
        if is_sound:
            bars.append(Bar(name=f"{name}: halted", measured=100 * halted, limit=1.0, unit=" %"))
        elif name != NO_BAR:  # rarer than the bar speaks of; how it fares is shown all the same
            missed = round(100 * (1 - second), 6)
            bars.append(Bar(name=f"{name}: not halted by stage 2", measured=missed, limit=5.0, unit=" %"))
    return publish(
        Record(
            name="rollouts",
            claim="A worse version halts in its first stages, a sound one goes through",
            method=METHOD,
            seed=given.seed,
            columns=COLUMNS,
            rows=rows,
            bars=bars,
        )
    )


def _ratio(ended: list[Ended], stage: int) -> float:
    return sum(one.state == "halted" and one.stage <= stage for one in ended) / len(ended)


if __name__ == "__main__":
    sys.exit(main())
