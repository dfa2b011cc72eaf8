"""A process that installs one version on the real disk and kills itself with SIGKILL at its n-th disk operation.

python -m tests.install.installing_process DATA VERSION CUT KEYS      (CUT: -1 for none; KEYS: a file of private keys)
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from random import Random

from edge_agent.disk import RealDisk
from edge_agent.install.means import InstallSettings
from tests.install.box_lab import TRIAL, Box, Fleet, Shelf, committed, make


class KilledDisk(RealDisk):
    """This machine's disk, until the n-th operation."""

    def __init__(self, cut_after: int) -> None:
        self.left = cut_after
        self.n_done = 0

    def _step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        self.n_done += 1

    def append(self, path: Path, content: bytes) -> None:
        self._step()
        super().append(path, content[: len(content) // 2])
        self._step()  # torn in the middle
        super().append(path, content[len(content) // 2 :])

    def sync(self, path: Path) -> None:
        self._step()
        super().sync(path)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)


def versions(fleet: Fleet) -> list:
    """The same two for the same keys."""
    random = Random(8)
    weights = random.randbytes(50_000)
    return [
        make(
            {"model.onnx": random.randbytes(30_000), "w.bin": weights}, key=fleet.publisher, version=str(n), sequence=n
        )
        for n in (1, 2)
    ]


def fleet_of(keys: Path) -> Fleet:
    """A fleet whose keys lie in a file."""
    fleet = Fleet()
    if keys.exists():
        raw = keys.read_bytes()
        fleet.root, fleet.publisher = raw[:32], raw[32:]
    else:
        keys.write_bytes(fleet.root + fleet.publisher)
    return fleet


async def main(data: Path, version: int, cut: int, keys: Path) -> int:
    fleet = fleet_of(keys)
    made = versions(fleet)
    disk = KilledDisk(cut)
    box = Box(
        disk,
        Shelf(*made),
        fleet.trust(),
        data=data,
        look_s=0.02,
        settings=InstallSettings(reserve_bytes=0, watch_s=0.02),
    )
    box.host.n_good_a_look = 5
    done = await box.serve(
        made[version - 1].assigned(trial=TRIAL), until=lambda: committed(str(version))(box), within_s=20.0
    )
    print(disk.n_done)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
