"""How long preparing a plan for a 100 MB model holds up a program's other threads.

A thread runs a tiny model back to back and notes the longest pause between two runs, in turn with nothing else going
on, with our preparation (in a process of its own, weights beside the graph), and with the obvious way: load, infer
shapes and serialise the model in this process.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from benchmarks.report import Bar, Record, publish
from benchmarks.session_overhead import tiny_model
from hybrid.artifact.digest import model_digest
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
from tests import zoo

N_ROUNDS = 7
IDLE_S = 2.0


def longest_pause_ms(session: onnxruntime.InferenceSession, work: Callable[[], None]) -> float:
    """The longest time between two runs of a tiny model in this thread while another thread works."""
    feeds = {"x": np.zeros((1, 16), np.float32)}
    worker = threading.Thread(target=work)
    longest_s, before_s = 0.0, time.perf_counter()
    worker.start()
    while worker.is_alive():
        session.run(None, feeds)
        now_s = time.perf_counter()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    worker.join()
    return 1e3 * longest_s


def in_this_process(path: Path) -> None:
    """What a preparation in the program's own process would do."""
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model).SerializeToString()


def main() -> int:
    """Measures the three in turn and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    path, feeds = zoo.path("resnet50"), zoo.feeds("resnet50", seed)
    digest, key = model_digest(path), ShapeKey.of(feeds)
    pauses: dict[str, list[float]] = {"nothing": [], "our preparation": [], "in this process": []}
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder) / "tiny.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(Path(folder) / "tiny.onnx", options)
        for turn in range(N_ROUNDS):
            cache = Path(folder) / str(turn)

            def ours(cache: Path = cache) -> None:
                prepared = prepare(path, digest, key, cache)
                prepared.head_path(prepared.table.interior[len(prepared.table.interior) // 2].id)

            pauses["nothing"].append(longest_pause_ms(session, lambda: time.sleep(IDLE_S)))
            pauses["our preparation"].append(longest_pause_ms(session, ours))
            pauses["in this process"].append(longest_pause_ms(session, lambda: in_this_process(path)))
    median = {name: statistics.median(values) for name, values in pauses.items()}
    return publish(
        Record(
            name="preparing_stall",
            claim="Preparing a plan does not stall requests",
            method=f"Longest pause between runs of a tiny model in another thread, {N_ROUNDS} rounds in turn;"
            " ResNet-50, 102 MB of weights. The machine's own pauses are in the first row.",
            seed=seed,
            columns=("meanwhile", "longest pause, median of rounds (ms)", "worst round (ms)"),
            rows=[(name, median[name], max(values)) for name, values in pauses.items()],
            bars=(
                Bar(
                    name="longest pause while preparing, above idle",
                    measured=median["our preparation"] - median["nothing"],
                    limit=10.0,
                    unit=" ms",
                ),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
