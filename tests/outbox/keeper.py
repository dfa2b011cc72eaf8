"""A program that keeps things in an outbox and says of each when it was told that it is safe; made to be killed."""

import asyncio
import sys
from pathlib import Path
from random import Random

from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.outbox.policy import OutboxLimits


async def main(folder: Path, first: int) -> None:
    rng = Random(first)
    limits = OutboxLimits(group_s=0.001, telemetry_flush_s=0.05)
    outbox = Outbox(Place(folder=folder), calls=None, rng=Random(), limits=limits)
    async with asyncio.TaskGroup() as group:
        group.create_task(outbox.run())
        n = first
        while True:
            size = rng.choice([10, 500, 5000, 150_000])
            kept = await outbox.put("result", b"%d:" % n + rng.randbytes(size), stream=f"result/{n % 3}")
            print(f"{n} {kept.epoch} {kept.stream} {kept.seq}", flush=True)
            n += 1


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
