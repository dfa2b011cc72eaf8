"""Rows R1 to R5: the gateway killed or frozen, the link cut one way or both, lossy or collapsing, under a program.

    python -m benchmarks.reliability.session_rows [--seed 11] [-n 4]

A program on an emulated device sends requests in a row to a real gateway over the lab's link (real packets where this
process may make network namespaces). Each fault strikes at a random moment. Every answer is compared with the device's
own; the slowest one is held against what the device alone takes, around the same fault.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.faults import AWAY_S, BACK_LIMIT_S, SHAPE, Scene, scene_over
from benchmarks.reliability.table import Finding, keep

Row = dict[str, Any]
BACK_S = 3.0
LATE_RATIO = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """One way to disturb the gateway or the link, and to end that."""

    row: str
    fault: str
    begin: Callable[[Scene], None]
    end: Callable[[Scene], None]
    away_s: tuple[float, float] = AWAY_S


def _link(scene: Scene) -> Any:
    return scene._lab.link  # noqa: SLF001 (its rooms are this benchmark's own)


def _shaped(**changes: float) -> Callable[[Scene], None]:
    from devices.shape import Shape

    return lambda scene: _link(scene).set(Shape.even(**(SHAPE | changes)))


def harms() -> tuple[Harm, ...]:
    """All of these rows."""
    return (
        Harm(
            row="R1",
            fault="gateway killed (SIGKILL) in mid-request",
            begin=lambda scene: scene.harm("killed"),
            end=lambda scene: scene.mend("killed"),
        ),
        Harm(
            row="R2",
            fault="gateway frozen (SIGSTOP)",
            begin=lambda scene: scene.harm("frozen"),
            end=lambda scene: scene.mend("frozen"),
        ),
        Harm(
            row="R3",
            fault="link cut both ways",
            begin=lambda scene: _link(scene).blackhole(),
            end=lambda scene: _link(scene).restore(),
        ),
        Harm(
            row="R3",
            fault="link cut up only",
            begin=lambda scene: _link(scene).blackhole(down=False),
            end=lambda scene: _link(scene).restore(),
        ),
        Harm(
            row="R3",
            fault="link cut down only",
            begin=lambda scene: _link(scene).blackhole(up=False),
            end=lambda scene: _link(scene).restore(),
        ),
        Harm(
            row="R4",
            fault="5 % of packets lost each way, 40 ms ± 10",
            begin=_shaped(rate_bps=20e6, rtt_s=0.04, jitter_s=0.01, loss_ratio=0.05),
            end=_shaped(),
            away_s=(2.0, 3.0),
        ),
        Harm(
            row="R5",
            fault="link collapses from 100 to 2 and to 0.2 Mbit/s",
            begin=_collapse,
            end=_shaped(),
            away_s=(1.0, 2.0),
        ),
    )


def _collapse(scene: Scene) -> None:
    _shaped(rate_bps=2e6)(scene)
    time.sleep(0.7)
    _shaped(rate_bps=0.2e6)(scene)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of one fault: how many answers were wrong, the slowest over the device's own, seconds to come back."""

    n_requests: int
    n_wrong: int
    worst_ratio: float
    alone_ratio: float
    back_s: float


def strike(scene: Scene, harm: Harm, rng: random.Random) -> Seen | None:
    """One fault, from well to well; None where the gateway was not used to begin with (a machine that is too busy)."""
    alone = scene.alone()
    try:
        one_s = scene.settled()
    except SystemExit as exc:
        print(f"{harm.fault}: {exc}"[:200], file=sys.stderr, flush=True)
        scene.off()
        return None
    time.sleep(rng.uniform(0, 2 * one_s))
    struck_s = time.perf_counter()
    harm.begin(scene)
    time.sleep(rng.uniform(*harm.away_s))
    harm.end(scene)
    mended_s, rows, is_back = time.perf_counter(), list[Row](), False
    while not is_back and time.perf_counter() - mended_s < BACK_LIMIT_S:
        rows.append(row := scene.row())
        is_back = row["placement"] != "local" and row["start_s"] + row["took_s"] > mended_s
    back_s = rows[-1]["start_s"] + rows[-1]["took_s"] - mended_s if is_back else BACK_LIMIT_S
    scene.off()
    alone += scene.alone()
    local_s = statistics.median(row["took_s"] for row in alone)
    rows = [row for row in rows if row["start_s"] + row["took_s"] > struck_s]
    return Seen(
        n_requests=len(rows),
        n_wrong=sum(not row["is_right"] for row in rows),
        worst_ratio=max(row["took_s"] for row in rows) / local_s,
        alone_ratio=max(row["took_s"] for row in alone) / local_s,
        back_s=back_s,
    )


def finding(harm: Harm, seen: list[Seen], seed: int, command: str) -> Finding:
    """The row of the table."""
    worst = [one.worst_ratio for one in seen]
    n_wrong, n_requests = sum(one.n_wrong for one in seen), sum(one.n_requests for one in seen)
    back_s = max(one.back_s for one in seen)
    # What the device alone varies by, around the same faults, is no lateness of ours.
    bound = max(LATE_RATIO, *(one.alone_ratio for one in seen))
    return Finding(
        row=harm.row,
        fault=harm.fault,
        promise=f"P1 right answers, none later than 1.2 x the device alone; P5 remote again within {BACK_S:.0f} s",
        result=(
            f"{n_wrong} of {n_requests} answers wrong; slowest {max(worst):.2f} x the device alone (median of faults "
            f"{statistics.median(worst):.2f}; its own slowest run {max(one.alone_ratio for one in seen):.2f}); "
            f"remote again after at most {back_s:.2f} s"
        ),
        held=n_wrong == 0 and max(worst) <= bound and back_s <= BACK_S,
        times=len(seen),
        seed=seed,
        command=command,
    )


def main() -> int:
    """Strike, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("-n", type=int, default=4, help="times that each fault strikes")
    parser.add_argument("--link", choices=("tun", "proxy"), default="tun")
    parser.add_argument("--only", help="faults with these words in their name")
    chosen = parser.parse_args()
    wanted = [harm for harm in harms() if chosen.only is None or chosen.only in harm.fault]
    command = f"python -m benchmarks.reliability.session_rows --seed {chosen.seed} -n {chosen.n}"
    found: dict[str, list[Seen]] = {}
    with scene_over(chosen.link, chosen.seed, "latency") as scene:
        for number in range(chosen.n):
            for harm in wanted:
                rng = random.Random(f"{chosen.seed} {harm.fault} {number}")
                seen = strike(scene, harm, rng)
                if seen is not None:
                    found.setdefault(harm.fault, []).append(seen)
                print(f"{harm.row} {harm.fault}: {seen}", file=sys.stderr, flush=True)
    struck = [harm for harm in wanted if harm.fault in found]
    keep("session_rows", [finding(harm, found[harm.fault], chosen.seed, command) for harm in struck])
    return 0


if __name__ == "__main__":
    sys.exit(main())
