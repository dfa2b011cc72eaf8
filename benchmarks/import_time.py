"""What `import hybrid` costs, beside `import onnxruntime`: fresh processes in pairs, so that noise hits both."""

import argparse
import random
import statistics
import subprocess
import sys
import time

from benchmarks.report import Bar, Record, publish, spread

STATEMENTS = {
    "bare": "pass",
    "onnxruntime": "import onnxruntime",
    "hybrid": "import hybrid",
    "session": "import hybrid; hybrid.InferenceSession",
}


def seconds(statement: str) -> float:
    """Wall time of a fresh process that runs one statement."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began_s


def main() -> int:
    """Measure, publish, and exit 1 where the bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=25, help="processes of each kind")
    arguments.add_argument("--seed", type=int, default=0, help="of the order within each round")
    given = arguments.parse_args()
    order = random.Random(given.seed)
    samples: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for statement in STATEMENTS.values():
        seconds(statement)  # byte code and file caches
    for _ in range(given.n):
        for name in order.sample(list(STATEMENTS), len(STATEMENTS)):
            samples[name].append(seconds(STATEMENTS[name]))

    def ratio(name: str) -> float:
        pairs = zip(samples[name], samples["onnxruntime"], samples["bare"], strict=True)
        return statistics.median((ours - bare) / (theirs - bare) for ours, theirs, bare in pairs)

    rows: list[list[str | float]] = []
    for name, statement in STATEMENTS.items():
        times = spread(samples[name])
        relative: str | float = "" if name == "bare" else ratio(name)
        rows.append([f"`{statement}`", times["p50"] * 1e3, times["p95"] * 1e3, relative])
    record = Record(
        name="import_time",
        claim="Importing costs no more than the engine",
        method=f"{given.n} rounds; in each, one fresh process of each kind in random order. The ratio is the median "
        "over rounds of (ours - bare Python) / (onnxruntime - bare Python).",
        seed=given.seed,
        columns=["statement", "median ms", "95 % ms", "x import onnxruntime"],
        rows=rows,
        bars=[
            Bar(name="`import hybrid` / `import onnxruntime`", measured=ratio("hybrid"), limit=1.7),
            Bar(name="with `hybrid.InferenceSession` touched", measured=ratio("session"), limit=1.7),
        ],
    )
    return publish(record)


if __name__ == "__main__":
    sys.exit(main())
