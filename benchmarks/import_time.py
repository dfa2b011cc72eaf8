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

LIMIT = 1.7
"""How much more than `import onnxruntime` it may cost."""


def seconds(statement: str) -> float:
    """Wall time of a fresh process that runs one statement."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began_s


def measure(n_rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each statement, one process of each kind a round, in random order."""
    order = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for statement in STATEMENTS.values():
        seconds(statement)  # byte code and file caches
    for _ in range(n_rounds):
        for name in order.sample(list(STATEMENTS), len(STATEMENTS)):
            samples[name].append(seconds(STATEMENTS[name]))
    return samples


def ratio(samples: dict[str, list[float]], name: str) -> float:
    """Median over the rounds of what a statement costs above bare Python, as a multiple of onnxruntime's."""
    rounds = zip(samples[name], samples["onnxruntime"], samples["bare"], strict=True)
    return statistics.median((ours - bare) / (theirs - bare) for ours, theirs, bare in rounds)


def main() -> int:
    """Measure, publish, and exit 1 where the bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=25, help="processes of each kind")
    arguments.add_argument("--seed", type=int, default=0, help="of the order within each round")
    given = arguments.parse_args()
    samples = measure(given.n, given.seed)
    rows: list[list[str | float]] = []
    for name, statement in STATEMENTS.items():
        times = spread(samples[name])
        relative: str | float = "" if name == "bare" else ratio(samples, name)
        rows.append([f"`{statement}`", times["p50"] * 1e3, times["p95"] * 1e3, relative])
    record = Record(
        name="import_time",
        claim="Importing costs little more than the engine",
        method=f"{given.n} rounds; in each, one fresh process of each kind in random order. The ratio is the median "
        "over rounds of (ours - bare Python) / (onnxruntime - bare Python).",
        seed=given.seed,
        columns=["statement", "median ms", "95 % ms", "x import onnxruntime"],
        rows=rows,
        bars=[
            Bar(name="`import hybrid` / `import onnxruntime`", measured=ratio(samples, "hybrid"), limit=LIMIT),
            Bar(name="with `hybrid.InferenceSession` touched", measured=ratio(samples, "session"), limit=LIMIT),
        ],
    )
    return publish(record)


if __name__ == "__main__":
    sys.exit(main())
