"""Head plus tail against the whole model, as real fused sessions: what a cut costs where nothing crosses a link.

For each model and each of a few cuts spread over its depth, whole, head and tail run in turn, so that noise falls on
all three; the ratio is that of the medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.report import Record, publish
from hybrid.artifact.digest import model_digest
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
from tests import zoo

MODELS = ("ppocr_cls", "ppocr_det", "resnet50")
N_CUTS = 5
N_ROUNDS = 25


def opened(path: Path) -> onnxruntime.InferenceSession:
    """A session with one thread, so that the other core stays free."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def run_s(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds of one run, and its outputs by name."""
    names = [node.name for node in session.get_outputs()]
    wanted = {node.name for node in session.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in wanted}
    started_s = time.perf_counter()
    outputs = session.run(names, given)
    return time.perf_counter() - started_s, dict(zip(names, outputs, strict=True))


def rows_of(name: str, seed: int, cache: Path) -> list[tuple[str | float, ...]]:
    """One row a cut: depth, bytes, and the seconds of whole, head and tail."""
    path, feeds = zoo.path(name), zoo.feeds(name, seed)
    prepared = prepare(path, model_digest(path), ShapeKey.of(feeds), cache)
    cuts = prepared.table.interior
    chosen = [cuts[round(at * (len(cuts) - 1) / (N_CUTS - 1))] for at in range(N_CUTS)]
    whole = opened(path)
    run_s(whole, feeds)
    rows: list[tuple[str | float, ...]] = []
    for cut in chosen:
        head, tail = opened(prepared.head_path(cut.id)), opened(prepared.tail_path(cut.id))
        samples: dict[str, list[float]] = {"whole": [], "head": [], "tail": []}
        for _ in range(N_ROUNDS):
            whole_s, _ = run_s(whole, feeds)
            head_s, crossing = run_s(head, feeds)
            tail_s, _ = run_s(tail, feeds | crossing)
            for part, seconds in (("whole", whole_s), ("head", head_s), ("tail", tail_s)):
                samples[part].append(1e3 * seconds)
        median = {part: statistics.median(values[2:]) for part, values in samples.items()}
        ratio = (median["head"] + median["tail"]) / median["whole"]
        kilobytes = cut.n_bytes / 1e3
        rows.append((name, cut.head_work_ratio, len(cut.tensors), kilobytes, *median.values(), ratio))
    return rows


def main() -> int:
    """Measures all models and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in MODELS for row in rows_of(name, seed, Path(folder))]
    return publish(
        Record(
            name="head_tail",
            claim="Head plus tail take about the time of the whole",
            method=f"{N_CUTS} cuts a model, spread over its depth; {N_ROUNDS} rounds of whole, head, tail in turn,"
            " one thread each, medians.",
            seed=seed,
            columns=(
                "model",
                "depth (share of work)",
                "tensors",
                "kB",
                "whole (ms)",
                "head (ms)",
                "tail (ms)",
                "ratio",
            ),
            rows=rows,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
