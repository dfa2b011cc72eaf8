"""What an agent that nobody asks costs: memory beside bare onnxruntime, a share of a core, the time until it serves.

The agent serves models that its fleet assigned to it, from its slots: enrolled once with a real gateway, and then
started again with and without that gateway.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.report import Bar, Record, publish
from tests import zoo

HYBRID = str(Path(sys.executable).parent / "hybrid")
MODELS = ("ppocr_cls", "efficientnet")
MEMORY_MB = 90.0
CORE_RATIO = 0.01
READY_S = 2.0

BARE = """
import sys, onnxruntime
sessions = [onnxruntime.InferenceSession(path) for path in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.read()
"""


def pss_mb(pid: int) -> float:
    """Proportional set size: pages that are shared count for their share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("the kernel tells no PSS")


@contextmanager
def served(*words: str) -> Iterator[tuple["subprocess.Popen[str]", str, float]]:
    """A service until the block ends: its process, its URL, and the seconds until its ready line."""
    began_s = time.perf_counter()
    process = subprocess.Popen(
        [HYBRID, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[1]
        yield process, url, time.perf_counter() - began_s
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def said(*words: str, **variables: str) -> str:
    """What a command writes to stdout."""
    import os

    done = subprocess.run([HYBRID, *words], capture_output=True, text=True, check=True, env=os.environ | variables)
    return done.stdout


def installed(agent: Path, url: str, token: str) -> None:
    """Enrol a box and wait until its models have been committed."""
    as_admin = {"HYBRID_GATEWAY": url, "HYBRID_TOKEN": token}
    for name in MODELS:
        said("models", "push", str(zoo.path(name)), "--name", name, **as_admin)
        said("fleet", "assign", f"{name}:1", "--tags", "all", "--trial-s", "1", **as_admin)
    made = json.loads(said("fleet", "token", "create", "--no-root", "--json", **as_admin))["data"]
    said("agent", "enroll", made["token"], "--data", str(agent))
    with served("agent", "serve", "--port", "0", "--data", str(agent)):
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s:
            told = json.loads(said("agent", "status", "--data", str(agent), "--json"))["data"]
            phases = [model["phase"] for model in told["parts"]["install"]["models"]]
            if len(phases) == len(MODELS) and set(phases) == {"committed"}:
                return
            time.sleep(0.5)
    raise RuntimeError(f"the models were not committed: {phases}")


def bare_mb() -> float:
    """PSS of a process with onnxruntime and the same models open, and nothing else."""
    paths = [str(zoo.path(name)) for name in MODELS]
    with subprocess.Popen(
        [sys.executable, "-c", BARE, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        found = pss_mb(process.pid)
        process.stdin.close()
    return found


def idle(agent: Path, settle_s: float, watch_s: float) -> tuple[float, float, float, float]:
    """PSS in MB, the share of a core, seconds until ready, and CPU seconds until then, of an agent that nobody asks."""
    with served("agent", "serve", "--port", "0", "--data", str(agent)) as (process, _, ready_s):
        watched = psutil.Process(process.pid)
        start = watched.cpu_times()
        time.sleep(settle_s)
        before, began_s = watched.cpu_times(), time.perf_counter()
        time.sleep(watch_s)
        after, taken_s = watched.cpu_times(), time.perf_counter() - began_s
        used_s = after.user + after.system - before.user - before.system
        return pss_mb(process.pid), max(0.0, used_s) / taken_s, ready_s, start.user + start.system


def main() -> int:
    """Measure, publish, and exit 1 where a bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=3, help="starts of each kind")
    arguments.add_argument("--watch-s", type=float, default=10.0, help="seconds of idleness that are watched")
    given = arguments.parse_args()
    found: dict[str, list[tuple[float, float, float, float]]] = {"alone": [], "with its gateway": []}
    with tempfile.TemporaryDirectory() as folder:
        agent, gateway = Path(folder) / "agent", Path(folder) / "gateway"
        with served("gateway", "serve", "--port", "0", "--data", str(gateway)) as (_, url, _):
            installed(agent, url, (gateway / "admin.token").read_text().strip())
            for _ in range(given.n):
                found["with its gateway"].append(idle(agent, 4.0, given.watch_s))
        for _ in range(given.n):
            found["alone"].append(idle(agent, 4.0, given.watch_s))
        bare = statistics.median(bare_mb() for _ in range(given.n))
    rows: list[list[str | float]] = []
    bars = []
    for name, samples in found.items():
        memory, core, ready, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        rows.append([f"agent, {name}", memory, memory - bare, core * 100, ready, cpu])
        bars += [
            Bar(name=f"PSS above bare onnxruntime, {name}", measured=memory - bare, limit=MEMORY_MB, unit="MB"),
            Bar(name=f"share of a core, {name}", measured=core, limit=CORE_RATIO),
            Bar(name=f"seconds until ready, {name}", measured=ready, limit=READY_S, unit="s"),
        ]
    rows.append(["onnxruntime alone", bare, 0.0, "", "", ""])
    record = Record(
        name="agent_idle",
        claim="An agent that nobody asks costs little, and serves soon after its start",
        method=f"Median of {given.n} starts. Models: {', '.join(MODELS)}, open in the agent's slots. PSS after 4 s, "
        f"CPU over the {given.watch_s:g} s that follow; the bare process holds the same models in onnxruntime. "
        "Ready: from exec to the ready line, digests of the models checked and all of them open.",
        seed=0,
        columns=["process", "PSS MB", "above bare MB", "% of a core", "ready s", "CPU s until ready"],
        rows=rows,
        bars=bars,
    )
    return publish(record)


if __name__ == "__main__":
    sys.exit(main())
