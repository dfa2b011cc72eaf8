"""Real processes on a real disk, killed with SIGKILL in the middle of an installation."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

from edge_agent.disk import RealDisk
from tests.install.box_lab import Box, Shelf
from tests.install.installing_process import fleet_of, versions

ROOT = Path(__file__).parents[2]
N_KILLS = 4


def install(data: Path, version: int, cut: int, keys: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.install.installing_process", str(data), str(version), str(cut), str(keys)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def answering(data: Path, keys: Path) -> str:
    """What a start without a network answers with; its host compares every byte."""

    async def start() -> str:
        fleet = fleet_of(keys)
        shelf = Shelf(*versions(fleet))
        shelf.is_down = True
        box = Box(RealDisk(), shelf, fleet.trust(), data=data, look_s=0.02)
        await box.serve(until=box.install.begun.is_set, within_s=20.0)
        return box.host.version()

    return asyncio.run(start())


def test_a_kill_at_any_disk_operation_leaves_a_whole_version(tmp_path: Path) -> None:
    keys, before = tmp_path / "keys", tmp_path / "one"
    fleet_of(keys)
    assert install(before, 1, -1, keys).returncode == 0
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    counted = install(whole, 2, -1, keys)
    assert counted.returncode == 0, counted.stderr
    n_operations = int(counted.stdout)
    assert n_operations > 40
    seen = set()
    for number in range(N_KILLS):
        data = tmp_path / f"killed {number}"
        shutil.copytree(before, data)
        cut = (number * n_operations + number) // N_KILLS
        assert install(data, 2, cut, keys).returncode == -9
        seen.add(answering(data, keys))
    assert seen == {"1", "2"}
    assert install(data, 2, -1, keys).returncode == 0
    assert answering(data, keys) == "2"
