"""How long it takes to find all cuts of a graph: the topological orders and the table, on real and on built graphs.

The graph is read once; each round orders and scans it anew. Seconds are the thread's own, the lowest of the rounds,
since the work is the same each time and everything else is other work on the machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Bar, Record, publish
from hybrid.graph.normalise import normalise
from hybrid.graph.read import read_view
from hybrid.graph.shape_key import ShapeKey
from hybrid.graph.shapes import infer
from hybrid.graph.view import GraphView
from hybrid.partition.order import cut_orders
from hybrid.partition.scan import scan
from tests import zoo
from tests.partition.test_scan import ladder

N_ROUNDS = 15
REAL = ("densenet121", "ppocr_det", "minilm", "ppocr_cls", "resnet50")
BUILT = ((1, False), (2, False), (2, True), (4, False))


def real_view(name: str, seed: int) -> GraphView:
    """The graph of a zoo model, as the preparation sees it."""
    with tempfile.TemporaryDirectory() as folder:
        key = ShapeKey.of(zoo.feeds(name, seed))
        model = normalise(zoo.path(name), key, Path(folder))
        return read_view(model, infer(model, key, Path(folder)))


def row(name: str, view: GraphView) -> tuple[str, int, int, float, float]:
    """Name, nodes, interior cuts, lowest and median milliseconds."""
    spent_ms = []
    for _ in range(N_ROUNDS):
        started_s = time.thread_time()
        table = scan(view, cut_orders(view))
        spent_ms.append(1e3 * (time.thread_time() - started_s))
    return name, len(view.nodes), len(table.interior), min(spent_ms), statistics.median(spent_ms)


def main() -> int:
    """Measures all graphs and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    seed = parser.parse_args().seed
    rows = [row(name, real_view(name, seed)) for name in REAL]
    for width, masked in BUILT:
        shape = f"built: blocks of {width} branch{'es' if width > 1 else ''}{', masked' if masked else ''}"
        rows.append(row(shape, ladder(700, width, masked=masked)))
    by_name = {name: lowest_ms for name, _, _, lowest_ms, _ in rows}
    return publish(
        Record(
            name="scan",
            claim="All cuts of a graph are found in milliseconds",
            method=f"Orders and table, {N_ROUNDS} rounds a graph, the thread's own time.",
            seed=seed,
            columns=("graph", "nodes", "interior cuts", "lowest (ms)", "median (ms)"),
            rows=rows,
            bars=(
                Bar(name="DenseNet-121, 491 nodes", measured=by_name["densenet121"], limit=50.0, unit=" ms"),
                Bar(name="worst real graph", measured=max(by_name[name] for name in REAL), limit=50.0, unit=" ms"),
                Bar(name="worst graph of 700 nodes", measured=max(by_name.values()), limit=50.0, unit=" ms"),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
