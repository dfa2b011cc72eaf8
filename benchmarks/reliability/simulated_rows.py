"""Rows of faults that take thousands of tries: the fleet's real code on simulated disks, links and clocks.

python -m benchmarks.reliability.simulated_rows [--seeds 0-999]
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.reliability.table import Finding, keep
from benchmarks.report import ROOT

N_PROCESSES = 2
ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("R1", "gateway killed, or its power cut, at any moment and within any disk operation",
     ("gateway killed", "gateway power", "gateway cut within")),
    ("R2", "gateway frozen for up to a minute", ("gateway frozen",)),
    ("R3", "link cut up, down or both ways for up to 90 s", ("link cut",)),
    ("R4", "messages and replies lost (5 to 80 %), links of seconds and 2 kB/s", ("link lossy", "link slow")),
    ("R6", "calendars of boxes and gateway jump (1970, an hour, a month)", ("clock jumps",)),
    ("R7", "disk full, and a disk that refuses reads, writes and syncs (EIO)", ("disk full", "disk failing")),
    ("R8", "box's power cut, or its process killed, at any moment and within any disk operation",
     ("box power", "box killed", "box cut within")),
    ("R10", "bits of installed models flip while the box is off", ("models rot",)),
    ("R11", "bits of the outbox's database and of state files flip while the box is off",
     ("outbox rots", "records rot")),
    ("R12", "messages doubled, up to 30 s late, and boxes set back to an old image", ("link doubling", "set back")),
)  # fmt: skip
PROMISE = "P2 to P6 over the whole history; all as it should be within 900 s of virtual time after the last fault"


def played(seeds: str) -> list[dict[str, Any]]:
    """What a process of its own gives for these seeds."""
    words = [sys.executable, "-m", "tests.reliability.run", seeds, "--json"]
    env = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> int:
    """Play the seeds, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-999")
    chosen = parser.parse_args()
    first, last = (int(part) for part in chosen.seeds.split("-"))
    share = (last - first + N_PROCESSES) // N_PROCESSES
    portions = [f"{start}-{min(start + share - 1, last)}" for start in range(first, last + 1, share)]
    with ThreadPoolExecutor(N_PROCESSES) as pool:
        found = [row for rows in pool.map(played, portions) for row in rows]
    times = Counter[str]()
    for row in found:
        times.update(row["n_faults"])
    command = f"python -m benchmarks.reliability.simulated_rows --seeds {chosen.seeds}"
    findings = []
    for name, fault, kinds in ROWS:
        those = [row for row in found if set(kinds) & set(row["n_faults"])]
        broken = [row["seed"] for row in those if row["broken"]]
        result = f"{len(those)} seeds, {len(broken)} with a broken promise"
        findings.append(
            Finding(
                row=name,
                fault=f"simulated: {fault}",
                promise=PROMISE,
                result=result + (f": {broken[:8]}" if broken else ""),
                held=not broken,
                times=sum(times[kind] for kind in kinds),
                seed=chosen.seeds,
                command=command,
            )
        )
    keep("simulated_rows", findings)
    n_broken = sum(bool(row["broken"]) for row in found)
    hours = sum(row["virtual_s"] for row in found) / 3600
    print(f"{len(found)} seeds, {hours:.0f} virtual hours, {n_broken} with a broken promise", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
