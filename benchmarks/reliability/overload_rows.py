"""Row R16: three times the requests that a gateway can compute; how many it still answers, and how soon it refuses.

python -m benchmarks.reliability.overload_rows [--seed 7] [--seconds 6]
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.reliability.table import Finding, keep
from tests.live_gateway import LiveGateway

MODEL = "efficientnet"
COMMAND = "python -m benchmarks.reliability.overload_rows --seed {seed}"
GOODPUT_RATIO, REFUSED_S = 0.8, 0.010


async def _measured(gateway: LiveGateway, seconds: float, seed: int) -> tuple[float, list[float], list[float], int]:
    """Capacity (requests a second, eight callers), seconds of good and of refused answers at 3 x, others."""
    from hybrid.serving.rest.body import HEADER_LENGTH
    from tests import zoo

    feeds = zoo.feeds(MODEL, seed)
    inputs, blocks = [], []
    for name, array in feeds.items():
        raw = np.ascontiguousarray(array).tobytes()
        blocks.append(raw)
        inputs.append(
            {"name": name, "shape": list(array.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
        )
    import json

    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(blocks)
    headers = {"Authorization": f"Bearer {gateway.token}", HEADER_LENGTH: str(len(head))}
    url = f"{gateway.url}/v2/models/{MODEL}/infer"
    good: list[float] = []
    refused: list[float] = []
    others = 0
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            nonlocal others
            begun_s = time.perf_counter()
            async with session.post(url, data=body) as answer:
                await answer.read()
                took_s = time.perf_counter() - begun_s
                if answer.status == 200:
                    good.append(took_s)
                elif answer.status in (429, 503):
                    refused.append(took_s)
                else:
                    others += 1

        async def caller(until_s: float) -> None:
            while time.perf_counter() < until_s:
                await ask()

        await ask()
        good.clear()
        until_s = time.perf_counter() + seconds / 2
        await asyncio.gather(*(caller(until_s) for _ in range(4)))
        capacity = len(good) / (seconds / 2)
        good.clear()
        rng = random.Random(seed)
        end_s = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            while time.perf_counter() < end_s:
                group.create_task(ask())
                await asyncio.sleep(rng.expovariate(3 * capacity))
    return capacity, good, refused, others


def overload(seed: int, seconds: float) -> Finding:
    """The row."""
    from tests import zoo

    with tempfile.TemporaryDirectory() as place:
        flags = ("--no-announce", "--n-runs", "1", "--n-intra-threads", "1", "--max-waiting", "8")
        with LiveGateway(Path(place) / "gateway", *flags) as gateway:
            gateway.push(zoo.path(MODEL), MODEL)
            found: Any = asyncio.run(_measured(gateway, seconds, seed))
    capacity, good, refused, others = found
    ratio = len(good) / seconds / capacity
    refused_s = statistics.median(refused) if refused else 0.0
    return Finding(
        row="R16",
        fault="three times the requests that the gateway can compute (open loop, real process, one engine run)",
        promise=f"at least {GOODPUT_RATIO:.0%} of capacity answered, typed refusals within {1e3 * REFUSED_S:.0f} ms",
        result=(
            f"capacity {capacity:.0f} a second; under 3 x {ratio:.0%} of it answered, {len(refused)} refused (median "
            f"{1e3 * refused_s:.1f} ms), {others} otherwise"
        ),
        held=ratio >= GOODPUT_RATIO and refused_s <= REFUSED_S and bool(refused) and not others,
        times=1,
        seed=seed,
        command=COMMAND.format(seed=seed),
    )


def main() -> int:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0)
    chosen = parser.parse_args()
    finding = overload(chosen.seed, chosen.seconds)
    keep("overload_rows", [finding])
    print(f"{finding.row} {finding.verdict}: {finding.result}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
