"""Learning together: rounds until 95 %, bytes on the wire, seconds a round, and what it costs an agent.

python -m benchmarks.federated [rounds] [live]    # all by default

Digits of ten devices with unlike parts of them, and a network of 4,810 weights. `rounds` is a loop with the library's
forms, rules and training, without sockets, many seeds; `live` is a gateway and ten agents, each a process, on TLS.
"""

import argparse
import sys
from typing import Final

from benchmarks.federated_parts import digits, live
from benchmarks.report import Bar, Record, publish

UP_OVERHEAD: Final = 0.02
INT8_BYTES: Final = 51_000.0
ROUND_S: Final = 0.1
AGENT_MB: Final = 40.0
TASK_CORE_S: Final = 0.1
LIVE_ROUNDS: Final = 30


def rounds() -> Record:
    """Rounds and bytes until 95 %, medians of fifteen seeds."""
    found = digits.measured()
    return Record(
        name="federated_rounds",
        claim="Rounds until the devices' common model has 95 %",
        method=(
            "scikit-learn's digits (1,437 to train, 360 to judge) of ten devices, divided by a Dirichlet distribution"
            " of 0.5 or as two label shards each; five local epochs of 16, SGD 0.1; medians over seeds 0 to 14. Bytes"
            " are those of updates and weights, first download included."
        ),
        seed=0,
        columns=digits.COLUMNS,
        rows=[one.row() for one in found],
        bars=digits.bars(found),
    )


def live_fleet() -> Record:
    """Bytes, seconds and what an agent pays, with real processes."""
    rows: list[list[str | float]] = []
    bytes_of: dict[str, live.Learned] = {}
    with live.fleet(is_counted=True) as (fleet, relay, runner):
        fleet.start()
        fleet.bring()
        for coding in ("float32", "int8"):
            found = bytes_of[coding] = runner.run(fleet.learn(LIVE_ROUNDS, coding, relay))
            rows.append(_row(f"{coding}, counted", found))
    with live.fleet() as (fleet, _, runner):
        fleet.start()
        fleet.bring()
        timed = runner.run(fleet.learn(LIVE_ROUNDS, "int8", None))
        rows.append(_row("int8, timed", timed))
        learning_mb = live.memory_mb(fleet.agents)
        for agent in fleet.agents:
            agent.stop()
        fleet.agents.clear()
        fleet.start("--learn", "off")
        plain_mb = live.memory_mb(fleet.agents)
    payload = live.N_BOXES * live.PAYLOAD_BYTES
    return Record(
        name="federated_live",
        claim="A round of ten agents over TLS",
        method=(
            f"`hybrid gateway serve` and ten `hybrid agent serve` as they come, with no setting but ports and folders,"
            f" eleven processes on these cores, boxes enrolled, TLS and tokens; {LIVE_ROUNDS} rounds of all ten, the"
            f" first {live.FIRST_ROUNDS} not counted. Bytes of one round and all boxes as TCP carried them through a"
            " counting relay (TLS, HTTP, all other calls too);"
            " seconds in a run without it, begin of a round to begin of the next. Memory of an agent is its PSS after"
            f" the rounds ({learning_mb:.0f} MB) against agents that never learn ({plain_mb:.0f} MB)."
        ),
        seed=0,
        columns=(
            "run", "rounds", "KB up a round", "KB down a round", "s a round", "core s a task",
            "gateway's core s a round", "accuracy %",
        ),
        rows=rows,
        bars=[
            Bar(name="float32 up beyond its payload", measured=bytes_of["float32"].up_bytes / payload - 1,
                limit=UP_OVERHEAD),
            Bar(name="float32 down beyond its payload", measured=bytes_of["float32"].down_bytes / payload - 1,
                limit=UP_OVERHEAD),
            Bar(name="int8 up of all ten", measured=bytes_of["int8"].up_bytes / 1e3, limit=INT8_BYTES / 1e3, unit="KB"),
            Bar(name="a round", measured=timed.round_s, limit=ROUND_S, unit="s"),
            Bar(name="an agent's core seconds a task", measured=timed.core_s, limit=TASK_CORE_S, unit="s"),
            Bar(name="memory that learning adds to an agent", measured=learning_mb - plain_mb, limit=AGENT_MB,
                unit="MB"),
        ],
    )  # fmt: skip


def _row(title: str, found: live.Learned) -> list[str | float]:
    up, down = found.up_bytes / 1e3, found.down_bytes / 1e3
    accuracy = f"{100 * found.accuracy:.1f}"
    return [title, float(found.n_rounds), up, down, found.round_s, found.core_s, found.gateway_core_s, accuracy]


PARTS: Final = {"rounds": rounds, "live": live_fleet}


def main() -> int:
    """Measures the parts named; 1 where a bar was missed."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("parts", nargs="*", choices=[[], *PARTS], help="of the benchmark")
    names = asked.parse_args().parts or list(PARTS)
    return max([publish(PARTS[name]()) for name in names])


if __name__ == "__main__":
    sys.exit(main())
