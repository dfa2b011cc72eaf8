"""What sharing runs does to throughput and delay: many clients of one model, with batches where they pay and without.

Both arms run in one process one after another, several times in turn, so that whatever else the machine does falls on
both. `auto` first measures by itself whether batches pay, as a gateway does; where they do not, both arms are the same.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Bar, Record, publish, spread
from devices.engine_provider import choose_provider
from hybrid.artifact.digest import model_digest
from hybrid.serving.engines.batch_shelf import BatchSettings, BatchShelf, Verdict
from hybrid.serving.engines.executor import Executor, ExecutorSettings
from hybrid.serving.engines.opening import EngineSettings
from hybrid.serving.engines.row_batch import RowBatch
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession
from tests import zoo

MODELS = ("minilm", "ppocr_cls", "squeezenet", "efficientnet", "magika")
QUICK = ("minilm",)
MAX_LOSS = 1.1
"""Where a trial finds that batches pay, requests take at most this share of the time that they take without."""


async def measure(
    executor: Executor, session: EngineSession, feeds: dict[str, np.ndarray], n_clients: int, for_s: float
) -> tuple[float, list[float]]:
    """Requests a second of closed-loop clients, and the milliseconds of each."""
    taken_ms: list[float] = []
    until_s = time.perf_counter() + for_s

    async def client() -> None:
        while (began_s := time.perf_counter()) < until_s:
            await executor.compute(session, feeds, None)
            taken_ms.append(1e3 * (time.perf_counter() - began_s))

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(n_clients)))
    return len(taken_ms) / (time.perf_counter() - began_s), taken_ms


async def tried(
    executor: Executor, session: EngineSession, feeds: dict[str, np.ndarray], cache: Path, n_clients: int
) -> Verdict | None:
    """Load the model until the gateway's own trial has ended; None where no requests ever waited for one another."""
    shelf = BatchShelf(executor, lambda _: None, cache, BatchSettings(mode="auto"))
    until_s = time.perf_counter() + 30.0
    while time.perf_counter() < until_s:
        await measure(executor, session, feeds, n_clients, 0.3)
        verdict = next(iter(shelf.verdicts.values()), None)
        if verdict is not None and verdict.state != "trying":
            executor.pool.on_crowd = None
            return verdict
    return None


async def compare(name: str, provider: str, folder: Path, given: argparse.Namespace) -> list[str | float]:
    """One model's row: throughput and delays without and with batches."""
    path, feeds = zoo.path(name), zoo.feeds(name)
    model = ServedModel(name=name, version="1", model_digest=model_digest(path), path=path)
    engine = EngineSettings(provider=choose_provider("cuda" if provider == "cuda" else "cpu"), inline_s=0.0)
    async with Executor(ExecutorSettings(engine=engine)) as executor:
        session = await executor.open_whole(model)
        verdict = await tried(executor, session, feeds, folder / provider, given.clients)
        found: RowBatch | None = session.batch
        rates: dict[bool, list[float]] = {False: [], True: []}
        delays: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(given.n):
            for shares in (False, True):
                session.batch = found if shares else None
                rate, taken_ms = await measure(executor, session, feeds, given.clients, given.seconds)
                rates[shares].append(rate)
                delays[shares] += taken_ms
    alone, shared = (statistics.median(rates[shares]) for shares in (False, True))
    return [
        f"{name} ({provider})",
        "never waited" if verdict is None else verdict.state,
        1 if verdict is None else verdict.max_rows,
        alone,
        shared,
        shared / alone,
        spread(delays[False])["p95"],
        spread(delays[True])["p95"],
    ]


def main() -> int:
    """Measure, publish, and exit 1 where a bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=3, help="rounds of both arms")
    arguments.add_argument("--seconds", type=float, default=1.0, help="of one arm in one round")
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--quick", action="store_true", help="one model, one short round")
    given = arguments.parse_args()
    models = QUICK if given.quick else MODELS
    if given.quick:
        given.n, given.seconds = 1, 0.3
    providers = ["cpu", "cuda"] if choose_provider("auto").name == "cuda" else ["cpu"]
    with tempfile.TemporaryDirectory() as folder:
        rows = [asyncio.run(compare(name, provider, Path(folder), given)) for provider in providers for name in models]
    ratios = [float(row[5]) for row in rows if row[1] == "pays"]
    worst = max((1.0 / ratio for ratio in ratios), default=1.0)
    columns = ["model", "trial", "rows", "alone req/s", "shared req/s", "x", "alone p95 ms", "shared p95 ms"]
    return publish(
        Record(
            name="batching",
            claim="Requests share runs where a trial found that it pays, and nowhere else",
            method=f"{given.clients} closed-loop clients in the gateway's process, no network; {given.n} rounds of "
            f"{given.seconds:g} s, both arms in turn, medians. `trial` is what the gateway found by "
            "itself under this load: `costs` means that it leaves requests alone, and both arms are then the same.",
            seed=0,
            columns=columns,
            rows=rows,
            bars=[Bar(name="time a request where batches pay, against alone", measured=worst, limit=MAX_LOSS)],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
