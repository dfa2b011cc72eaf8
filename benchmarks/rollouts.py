"""How surely a rollout halts for a worse version, and how rarely for a sound one: fleets of 500 boxes in virtual time.

The real ledger and engine with the default plan (5, 25, 100 %, an hour a stage); boxes as unlike one another as real ones
(`tests/rollouts/simulated_fleet.py` says how). Pure computation: other work on the machine changes nothing.
"""

import argparse
import statistics
import sys

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
SOUND: dict[str, Regression] = {"none": Regression(), "none, reports 10 minutes late": Regression(late_s=600.0)}


def main() -> int:
    """Simulate; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="of each worse version")
    parser.add_argument("--sound-seeds", type=int, default=500, help="of each sound version")
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args()
    rows: list[list[str | float]] = []
    bars = []
    for name, worse in (WORSE | SOUND).items():
        is_sound = name in SOUND
        n = given.sound_seeds if is_sound else given.seeds
        ended = [simulate(given.seed + at, worse) for at in range(n)]
        first, second = (_ratio(ended, stage) for stage in (1, 2))
        halted = sum(one.state == "halted" for one in ended) / n
        exposed = statistics.median(one.n_exposed for one in ended)
        hours = statistics.median(one.hours for one in ended)
        rows.append([name, str(n), 100 * first, 100 * second, 100 * halted, exposed, hours])
        print(rows[-1], file=sys.stderr, flush=True)
        if is_sound:
            bars.append(Bar(name=f"{name}: halted", measured=100 * halted, limit=1.0, unit=" %"))
        else:
            bars.append(Bar(name=f"{name}: not halted by stage 2", measured=100 * (1 - second), limit=5.0, unit=" %"))
    return publish(
        Record(
            name="rollouts",
            claim="A worse version halts in its first stages, a sound one goes through",
            method="Fleets of 500 simulated boxes, one seed each: boxes that differ in speed, traffic and errors by factors, "
            "2 % with broken cameras, 2 % off, others off for a while, 0.1 % where any installation fails, 0.002 crashes an "
            "hour of the old version too. Default plan.",
            seed=given.seed,
            columns=(
                "what is worse",
                "fleets",
                "halted in stage 1, %",
                "by stage 2, %",
                "at all, %",
                "boxes that took it",
                "hours",
            ),  # fmt: skip
            rows=rows,
            bars=bars,
        )
    )


def _ratio(ended: list[Ended], stage: int) -> float:
    return sum(one.state == "halted" and one.stage <= stage for one in ended) / len(ended)


if __name__ == "__main__":
    sys.exit(main())
