"""kill -9 at random moments, in real processes on a real disk: nothing that was told is missing at the next start."""

import subprocess
import sys
from pathlib import Path
from random import Random

from tests.outbox.lab import Gateway, in_virtual_time, outbox_of, running, sequence, until

N_KILLS = 10


def test_killed_again_and_again(tmp_path: Path, root: Path) -> None:
    rng = Random(3)
    told: list[int] = []
    first = 0
    for _ in range(N_KILLS):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.outbox.keeper", str(tmp_path / "box"), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        ) as keeper:
            assert keeper.stdout is not None
            told += [int(keeper.stdout.readline().split()[0]) for _ in range(rng.randrange(1, 30))]
            keeper.kill()
            told += [int(line.split()[0]) for line in keeper.stdout if line.endswith("\n") and line.count(" ") == 3]
        first = told[-1] + 1000  # what was kept and not told may be there too, under a number of its own
    assert len(told) >= N_KILLS

    async def program() -> None:
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", gateway.lane())
        async with running(outbox):
            await until(lambda: outbox.store.ledger.epoch and not outbox.store.ledger.n_items, within_s=600)
            assert outbox.store.n_begun_anew == 0
        arrived = sequence(gateway.bodies())
        assert set(told) <= set(arrived)
        assert len(set(arrived)) == len(arrived)
        assert len(arrived) - len(told) <= N_KILLS, "at most what was on its way when each was killed"
        for k in range(3):
            found = sequence(gateway.bodies(stream=f"result/{k}"))
            assert found == sorted(found)

    in_virtual_time(program())
