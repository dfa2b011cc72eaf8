"""How soon training on a box stands still for a request, what a request costs beside it, and what a task costs.

python -m benchmarks.learning_yields [--requests 40] [--json]

A real agent part with a digits head (650 numbers) and one with a large head (1.3 million) train without end; requests
come at random moments through the same hook as the agent's. Told: milliseconds from a request's coming until the
training thread stands still (p50, p99, worst), how many small steps were made beside a request after 100 ms (0 is
wanted), processor seconds of one task, and memory over the process before its first task.
"""

import argparse
import json
import random
import resource
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edge_agent.learning.yielding import Yielding
from hybrid.errors import Cancelled
from hybrid.federated.campaign import Training
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import open_head
from hybrid.federated.learning.training import Start, train
from tests.learning.nets import N_CLASSES, artifact_in

HEADS = {"digits head": 64, "large head": 400_000}
IDLE_S = 0.3


def measured(folder: Path, n_features: int, n_requests: int) -> dict[str, float]:
    """One head: it trains in a thread, requests come."""
    artifact = artifact_in(folder, n_features=n_features)
    head = open_head(artifact.folder, artifact.manifest, "original")
    rng = np.random.default_rng(0)
    n_samples = 145 if n_features < 1000 else 48
    features = rng.normal(size=(n_samples, n_features)).astype(np.float32)
    examples = Examples(features, rng.integers(0, N_CLASSES, n_samples))
    yielding = Yielding(idle_s=IDLE_S)
    yielding.begin()
    steps: list[float] = []

    def between() -> None:
        yielding.between()
        steps.append(time.monotonic())

    def work() -> None:
        start = Start(shared=head.vector)
        try:
            while True:
                train(head.program, head.layout, examples, Training(learning_rate=1e-3), start=start, between=between)
        except Cancelled:
            return

    began_s = time.thread_time()
    train(head.program, head.layout, examples, Training(), start=Start(shared=head.vector))
    task_cpu_s = time.thread_time() - began_s
    thread = threading.Thread(target=work)
    thread.start()
    waits: list[float] = []
    n_late = 0
    chance = random.Random(1)
    for _ in range(n_requests):
        time.sleep(chance.uniform(0.02, 0.1))
        came_s = time.monotonic()
        yielding.asked(comes=True)
        time.sleep(0.15)
        beside = [step for step in steps[-200:] if step > came_s]
        waits.append(max([step - came_s for step in beside], default=0.0))
        n_late += sum(step > came_s + 0.1 for step in beside)
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
        "n_steps_after_100_ms": n_late,
        "task_cpu_s": round(task_cpu_s, 4),
    }


def main() -> None:
    """Measure and tell."""
    wanted = argparse.ArgumentParser(description=__doc__)
    wanted.add_argument("--requests", type=int, default=40)
    wanted.add_argument("--json", action="store_true")
    asked = wanted.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {}
    with TemporaryDirectory() as folder:
        for number, (name, n_features) in enumerate(HEADS.items()):
            found[name] = measured(Path(folder) / str(number), n_features, asked.requests)
            if number == 0:
                grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
                found[name]["grown_mb"] = round(grown_bytes / 1e6, 1)
    if asked.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(name + ": " + ", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
