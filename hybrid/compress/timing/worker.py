"""Times models side by side in a process of its own: run as a program, it reads one JSON task and writes one answer.

Design: what disturbs a machine disturbs it for seconds, so models are run in turns, in an order drawn anew each round,
and their medians are compared within one process. Runs that are shorter than a slowdown's period are timed in
blocks of so many processor seconds.
"""

import json
import random
import sys
import time
from typing import Any

N_WARM_UP = 3


def main() -> None:
    """Reads the task from stdin, writes the answer to stdout."""
    task = json.load(sys.stdin)
    sys.stdout.write(f"{json.dumps(memory(task) if task.get('memory') else times(task))}\n")


def times(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds a run of each model, a list a model.

    Args:
        task: models, feeds, threads, block_s, budget_s, least and most rounds.
    """
    import numpy as np

    with np.load(task["feeds"], allow_pickle=False) as loaded:
        feeds = {name: loaded[name] for name in loaded.files}
    runs = [_runner(path, task["threads"], feeds) for path in task["models"]]
    sizes = []
    for run in runs:
        for _ in range(N_WARM_UP):
            run()
        quick_s = min(_processor_seconds(run) for _ in range(3))
        sizes.append(max(1, min(1000, round(task["block_s"] / max(quick_s, 1e-6)))))
    seconds: list[list[float]] = [[] for _ in runs]
    order, draw = list(range(len(runs))), random.Random(0)  # noqa: S311 (the order of runs is no secret)
    until_s = time.perf_counter() + task["budget_s"]
    while len(seconds[0]) < task["most"]:
        if len(seconds[0]) >= task["least"] and time.perf_counter() > until_s:
            break
        draw.shuffle(order)
        for at in order:
            seconds[at].append(_seconds(runs[at], sizes[at]))
    return {"seconds": seconds}


def memory(task: dict[str, Any]) -> dict[str, Any]:
    """Peak bytes of this process while one model is opened and run, above what it held before."""
    import numpy as np
    import onnxruntime  # noqa: F401 (its own bytes are not the model's)

    with np.load(task["feeds"], allow_pickle=False) as loaded:
        feeds = {name: loaded[name] for name in loaded.files}
    before = _peak_bytes()
    run = _runner(task["models"][0], task["threads"], feeds)
    for _ in range(N_WARM_UP):
        run()
    return {"memory_bytes": max(0, _peak_bytes() - before)}


def _peak_bytes() -> int:
    """Of this program alone; the kernel's other count goes on from the program that started this one."""
    import resource

    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 (no more imports than needed)
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _runner(path: str, threads: int, feeds: dict[str, Any]) -> Any:
    from devices.tflite_magic import is_headed

    if path.endswith(".tflite"):
        from pathlib import Path

        from devices.tflite_engine import TfliteSession

        session: Any = TfliteSession(Path(path), n_threads=threads)
    elif is_headed(path):
        from hybrid.federated.learning.lite_session import open_lite

        session = open_lite(path, threads)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def _processor_seconds(run: Any) -> float:
    """Of one run, rests under a quota left out."""
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


def _seconds(run: Any, n: int) -> float:
    started_s = time.perf_counter()
    for _ in range(n):
        run()
    return (time.perf_counter() - started_s) / n


if __name__ == "__main__":
    main()
