"""A thousand seeds of the simulated fleet keep every promise, and a seed gives the same history wherever it runs."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.reliability.run import command

N_SEEDS = 1000
N_PROCESSES = 2


def played(root: Path, seeds: str, hash_seed: str = "0") -> list[dict]:
    """What a process of its own gives for these seeds."""
    words = [sys.executable, "-m", "tests.reliability.run", seeds, "--json"]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        check=False,
        timeout=600,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_seeds_keep_every_promise(root: Path) -> None:
    share = N_SEEDS // N_PROCESSES
    portions = [f"{start}-{start + share - 1}" for start in range(0, N_SEEDS, share)]
    with ThreadPoolExecutor(N_PROCESSES) as pool:
        found = [row for rows in pool.map(lambda portion: played(root, portion), portions) for row in rows]
    assert sorted(row["seed"] for row in found) == list(range(N_SEEDS))
    broken = [f"{row['broken'][0][:300]}\n  replay: {command(row['seed'])}" for row in found if row["broken"]]
    assert not broken, "\n".join(broken[:20])
    assert sum(row["n_events"] for row in found) > 50 * N_SEEDS, "so little happened that nothing was shown"
    drawn = {fault for row in found for fault in row["faults"]}
    from tests.reliability.swarm import FAULTS

    assert drawn == set(FAULTS)


def test_a_seed_gives_the_same_history_in_every_process(root: Path) -> None:
    first, second = played(root, "20-29", "0"), played(root, "20-29", "4711")
    assert [row["digest"] for row in first] == [row["digest"] for row in second]
    assert len({row["digest"] for row in first}) == len(first)
