"""How soon training on a box stands still for a request, what a task costs, and what learning adds to an agent.

python -m benchmarks.learning_yields [--requests 40]

A head of 195 numbers and one of 1.2 million train without end in a thread of this process; requests come at random
moments through the same hook as the agent's. Told: milliseconds from a request's coming until the training thread
stands still (p50, p99, worst), how many small steps were made beside a request (0 is wanted), processor seconds of one
task. Then a real gateway and a real agent: ten rounds; what they add to the agent's memory (PSS) and take of its
processor, all threads counted.
"""

import argparse
import asyncio
import os
import random
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.report import Bar, Record, publish
from edge_agent.learning.yielding import Yielding
from hybrid.errors import Cancelled
from hybrid.federated.campaign import Training
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import open_head
from hybrid.federated.learning.training import Start, train
from tests.enrolled_box import ask, enrolled_box, make_token
from tests.learning.nets import N_CLASSES, artifact_in
from tests.learning.test_live import CAMPAIGNS, bring, learning, until
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

HEADS = {"small head": 64, "large head": 400_000}
IDLE_S = 0.3
N_ROUNDS = 10


def yields(folder: Path, n_features: int, n_requests: int) -> dict[str, float]:
    """One head: it trains in a thread, requests come."""
    artifact = artifact_in(folder, n_features=n_features)
    head = open_head(artifact.folder, artifact.manifest, "original")
    rng = np.random.default_rng(0)
    n_samples = 145 if n_features < 1000 else 48
    features = rng.normal(size=(n_samples, n_features)).astype(np.float32)
    examples = Examples(features, rng.integers(0, N_CLASSES, n_samples))
    yielding = Yielding(idle_s=IDLE_S)
    yielding.begin()
    looks: list[float] = []
    goes: list[float] = []

    def between() -> None:
        looks.append(time.monotonic())
        yielding.between()
        goes.append(time.monotonic())

    def work() -> None:
        plan, start = Training(learning_rate=1e-3), Start(shared=head.vector)
        try:
            while True:
                train(head.program, head.layout, examples, plan, start=start, between=between)
        except Cancelled:
            return

    began_s = time.thread_time()
    train(head.program, head.layout, examples, Training(learning_rate=1e-3), start=Start(shared=head.vector))
    task_cpu_s = time.thread_time() - began_s
    thread = threading.Thread(target=work)
    thread.start()
    waits: list[float] = []
    n_beside = 0
    chance = random.Random(1)
    for _ in range(n_requests):
        time.sleep(chance.uniform(0.02, 0.1))
        came_s = time.monotonic()
        yielding.asked(comes=True)
        time.sleep(0.15)
        waits.append(min((look - came_s for look in looks[-50:] if look >= came_s), default=0.15))
        n_beside += sum(go > came_s + 0.1 for go in goes[-200:])
        yielding.asked(comes=False)
        time.sleep(IDLE_S + 0.05)
    yielding.give_up()
    thread.join()
    ordered = sorted(waits)
    return {
        "n_elements": head.layout.n_elements,
        "n_requests": n_requests,
        "still_p50_ms": round(1e3 * ordered[len(ordered) // 2], 2),
        "still_p99_ms": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "still_worst_ms": round(1e3 * ordered[-1], 2),
        "n_steps_after_100_ms": n_beside,
        "task_cpu_s": round(task_cpu_s, 4),
    }


def agent(folder: Path) -> dict[str, float]:
    """A real agent, ten rounds of its own."""
    artifact = artifact_in(folder / "made", n_features=64)
    with LiveGateway(folder / "gateway") as gateway:
        gateway.push(artifact.folder, "net")

        async def enrol() -> None:
            async with enrolled_box(folder / "box", gateway, token=await make_token(gateway)):
                await ask(gateway, "POST", "/v2/hybrid/fleet/assignments", {"model": "net"})

        asyncio.run(enrol())
        with LiveAgent(folder / "box", {}, gateway="auto") as box:
            until(lambda: box.status()["models"])
            bring(box, 145, seed=1)
            time.sleep(2.0)
            before_mb, before_cpu_s = _pss_mb(box), _cpu_s(box)
            order = {
                "model": "net", "version": "", "variant": "", "goal": 1, "least": 1, "rounds": N_ROUNDS,
                "promotion": {"policy": "none"}, "training": {"learning_rate": 0.05},
            }  # fmt: skip
            campaign = asyncio.run(ask(gateway, "POST", CAMPAIGNS, {"order": order}))["id"]
            path = f"{CAMPAIGNS}/{campaign}"
            until(lambda: asyncio.run(ask(gateway, "GET", path))["state"] == "completed")
            cpu_s = _cpu_s(box) - before_cpu_s
            return {
                "n_rounds": N_ROUNDS,
                "added_pss_mb": round(_pss_mb(box) - before_mb, 1),
                "cpu_s_per_task_with_first_imports": round(cpu_s / N_ROUNDS, 3),
                "training_cpu_s_of_last_task": learning(box)["task_cpu_s"],
            }


def _pss_mb(box: LiveAgent) -> float:
    text = Path(f"/proc/{box.pid}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1000


def _cpu_s(box: LiveAgent) -> float:
    fields = Path(f"/proc/{box.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def record(n_requests: int) -> Record:
    """All of it, with the bars."""
    with TemporaryDirectory() as text:
        folder = Path(text)
        heads = {name: yields(folder / name.replace(" ", "-"), n, n_requests) for name, n in HEADS.items()}
        paid = agent(folder)
    worst_ms = max(found["still_worst_ms"] for found in heads.values())
    return Record(
        name="learning_yields",
        claim="A box's learning stands still for requests, and costs little beside them",
        method=(
            f"The gate and the training of `edge_agent/learning`, {n_requests} requests at random moments: from a"
            " request to the moment at which training stands still. A real agent with"
            f" {paid['n_rounds']:.0f} rounds of its own (a small head, 145 samples) took"
            f" {paid['cpu_s_per_task_with_first_imports']:.3f} s of a core for each, first imports included, and"
            f" {paid['added_pss_mb']:.0f} MB (PSS) more than before them."
        ),
        seed=1,
        columns=("head", "numbers that learn", "ms to stand still", "99 %", "worst", "core s a task"),
        rows=[
            [name, found["n_elements"], found["still_p50_ms"], found["still_p99_ms"], found["still_worst_ms"],
             found["task_cpu_s"]]
            for name, found in heads.items()
        ],
        bars=[
            Bar(name="the worst wait of a request", measured=worst_ms, limit=100.0, unit="ms"),
            Bar(name="memory that learning adds", measured=paid["added_pss_mb"], limit=40.0, unit="MB"),
            Bar(name="core seconds a task", measured=paid["cpu_s_per_task_with_first_imports"], limit=0.1, unit="s"),
        ],
    )  # fmt: skip


def main() -> int:
    """Measures and publishes; 1 where a bar was missed."""
    wanted = argparse.ArgumentParser(description=__doc__)
    wanted.add_argument("--requests", type=int, default=40)
    return publish(record(wanted.parse_args().requests))


if __name__ == "__main__":
    sys.exit(main())
