"""What one decision costs: 15 cuts with 4 codecs each, and hedge times; and the common case of a few prospects.

Every decision has other inputs (link, device, queue, plan in use), so that nothing can be remembered from the one
before; they are drawn beforehand and not timed. Also measured: the whole `Scheduler.decide`, which makes the inputs
first.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from msgspec.structs import replace

from benchmarks.report import Bar, Record, publish, spread
from hybrid.cost.link import LinkEstimate
from hybrid.cost.residuals import lognormal
from hybrid.schedule.beliefs import RULE, GatewayBelief, Inputs
from hybrid.schedule.deciding import decide
from hybrid.schedule.options import Objective
from hybrid.schedule.prices import PRICES
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.scheduler import Scheduler
from hybrid.schedule.standing import Standing
from hybrid.schedule.table import Table

URL = "https://gateway"
LIMIT_US = 50.0
N_CUTS = 15
CODECS = (("none", 1.0, 0.0), ("fp16", 0.5, 0.0005), ("q8", 0.2, 0.001), ("q4", 0.08, 0.0015))
"""Name, share of the raw bytes, seconds to encode: fewer bytes cost more seconds, so that none beats another."""

OBJECTIVES: tuple[Objective, ...] = ("latency", "energy", "bytes", "throughput")


def prospects(n_cuts: int, rng: random.Random) -> list[Prospect]:
    """Cuts of a convnet: deeper ones compute more here and send less."""
    found = []
    for cut in range(n_cuts):
        depth = (cut + 1) / (n_cuts + 1)
        head_s = 0.2 * depth * rng.uniform(0.9, 1.1)
        for codec, ratio, encode_s in CODECS:
            found.append(
                Prospect(
                    placement="split",
                    cut=f"{cut:016x}",
                    codec=codec,
                    gateway=URL,
                    head_s=head_s,
                    encode_s=encode_s,
                    bytes_up=int(600_000 * (1 - 0.8 * depth) * ratio),
                    bytes_down=4_000,
                    tail_s=0.02 * (1 - depth),
                )
            )
    return found


def drawn(table: Table, objective: Objective, n: int, rng: random.Random) -> list[Inputs]:
    """Inputs as they come in a changing world; every third time the connection is cold."""
    belief = GatewayBelief(url=URL)
    inputs = Inputs(table=table.id, now_s=1000.0, prices=PRICES[objective])
    return [
        replace(
            inputs,
            now_s=1000.0 + step,
            device_speed_ratio=rng.uniform(0.8, 2.0),
            device_spread_ratio=0.05,
            deadline_left_s=rng.choice([None, 0.5]),
            current=rng.randrange(len(table.prospects)),
            n_cores=rng.choice([1, 4]),
            rule=RULE,
            regret_s=rng.uniform(0.0, 0.01),
            gateways=(
                replace(
                    belief,
                    rtt_s=rng.uniform(0.002, 0.1),
                    uplink_bps=10 ** rng.uniform(6, 8),
                    downlink_bps=10 ** rng.uniform(6.5, 8.5),
                    up_window_bytes=rng.choice([1e9, 1e9, 14_480.0]),
                    speed_ratio=rng.uniform(0.9, 2.0),
                    queue_s=rng.uniform(0.0, 0.02),
                    points=lognormal(rng.uniform(0.05, 0.5)),
                ),
            ),
        )
        for step in range(n)
    ]


def timed_us(run: Callable[[Inputs], object], inputs: Sequence[Inputs]) -> list[float]:
    """CPU microseconds of each call (a decision waits for nothing; what else the machine runs is not its cost)."""
    taken = []
    for one in inputs:
        before_ns = time.thread_time_ns()
        run(one)
        taken.append((time.thread_time_ns() - before_ns) / 1e3)
    return taken


def best_round(run: Callable[[Inputs], object], inputs: Sequence[Inputs], n_rounds: int) -> dict[str, float]:
    """The percentiles of the quietest of some rounds: what else the machine does is not the decision's."""
    timed_us(run, inputs[: len(inputs) // 4])
    return min((spread(timed_us(run, inputs)) for _ in range(n_rounds)), key=lambda figures: figures["p95"])


def whole_us(n: int, n_rounds: int, rng: random.Random) -> dict[str, float]:
    """`Scheduler.decide` with a handful of prospects, as each request of a session pays it."""
    link = LinkEstimate()
    scheduler = Scheduler(PRICES["latency"])
    scheduler.profile_local(0.2)
    scheduler.put_gateways({URL: Standing(link, seed=1)})
    scheduler.put_prospects(prospects(1, rng))
    for step in range(20):
        link.observe_rtt(0.02, 1000.0 + step)
        link.observe_transfer(60_000, 4_000, 0.05, 1000.0 + step)
    free = Constraints()
    stand_in = [Inputs(table="", now_s=1021.0 + 0.1 * step) for step in range(n)]
    return best_round(lambda one: scheduler.decide(one.now_s, constraints=free), stand_in, n_rounds)


def yardstick_us(n: int) -> float:
    """Median microseconds of a product of a 60 x 6 matrix and a vector: how fast this machine is at this moment."""
    matrix, vector = np.random.default_rng(1).random((60, 6)), np.arange(6.0)
    return statistics.median(timed_us(lambda _: matrix.dot(vector), [Inputs(table="", now_s=0.0)] * n))


def main() -> int:
    """Measures and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few hundred decisions, one round")
    arguments = parser.parse_args()
    n, n_rounds = (300, 1) if arguments.quick else (4000, 5)
    rng = random.Random(arguments.seed)
    local = Prospect(placement="local", head_s=0.2)
    rows: list[tuple[str | float, ...]] = []
    worst = 0.0
    for n_cuts in (N_CUTS, 1):
        table = Table((local, *prospects(n_cuts, rng)))
        for objective in OBJECTIVES:
            figures = best_round(partial(decide, table=table), drawn(table, objective, n, rng), n_rounds)
            unit_us = yardstick_us(n)
            name = f"{n_cuts} x {len(CODECS)}, {objective}"
            rows.append((name, figures["p50"], figures["p95"], figures["p99"], figures["p50"] / unit_us))
            worst = max(worst, figures["p95"]) if n_cuts == N_CUTS else worst
    unit_us = yardstick_us(n)
    whole = whole_us(n, n_rounds, rng)
    rows.append(
        (
            f"1 x {len(CODECS)}, latency, with the making of its inputs",
            whole["p50"],
            whole["p95"],
            whole["p99"],
            whole["p50"] / unit_us,
        )
    )
    return publish(
        Record(
            name="decision",
            claim="What one decision costs",
            method=(
                f"CPU time of {n} decisions with drawn inputs, each timed; {n_rounds} rounds, the quietest counts."
                " The hedge time is part of every plan that is compared. None of the prospects is better than another"
                " in every part. The yardstick is the median of numpy's product of a 60 x 6 matrix and a vector, timed"
                f" right after each row ({unit_us:.2f} us for the last one): where the machine is busy, both grow."
            ),
            seed=arguments.seed,
            columns=("cuts x codecs, objective", "p50 (us)", "p95 (us)", "p99 (us)", "p50 / yardstick"),
            rows=rows,
            bars=(
                Bar(
                    name="15 cuts x 4 codecs, p95 of the slowest objective", measured=worst, limit=LIMIT_US, unit=" us"
                ),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
