"""Seconds of candidates on the device that they are for: this machine, an emulated one, or a box through its agent.

Design: three ways behind one protocol. Whatever the way, the original and the candidates run in turns in one process of
their own, so that only their ratio within that process counts. An emulated machine has this machine's kernels and is
told so wherever its figures stand: what is measured is how much this machine's kernels gain.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType
from typing import Any, Final, Protocol, Self

import msgspec
import numpy as np

from compression.errors import NotMeasurable
from compression.measuring import Feeds, Timing
from devices import pace
from devices.lab.launch import launched
from devices.lab.machine import Slowdown as _Slower
from hybrid.compress.job import THIS
from hybrid.cost.energy import Power

BLOCK_S: Final = 0.001
"""Shorter runs are timed several at once."""

SLOWED_BLOCK_S: Final = 0.005
"""The same under a quota, in processor seconds of each thread: a shorter job ends within its first share of the
processor, and takes no longer than unslowed."""

LEAST_ROUNDS: Final = 7
MOST_ROUNDS: Final = 200
WORKER: Final = "hybrid.compress.timing.worker"
_LIMIT_S: Final = 600.0


class DeviceTold(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says of the device that timed.

    Attributes:
        name: of the catalog, `this`, or a URL.
        kind: how it is had: `this machine`, `cgroup v1`, `scaled`, `agent`.
        factor: how many times slower than this machine.
        threads: of the engine.
        remarks: what a reader must know of the figures.
    """

    name: str
    kind: str
    factor: float
    threads: int
    remarks: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.kind if self.name == THIS else self.name


class Timer(Protocol):
    """Times models of one device; a `compression.measuring.Measure` that also says what it is. Closed by its maker."""

    @property
    def told(self) -> DeviceTold:
        """What it is."""
        ...

    @property
    def power(self) -> Power:
        """The device's power model."""
        ...

    def __call__(self, models: Sequence[Path], feeds: Feeds) -> list[Timing]:
        """One timing a model; raises `CompressionError`."""
        ...

    def memory_bytes(self, model: Path, feeds: Feeds) -> int:
        """Peak memory of a model above an empty process; raises `CompressionError`."""
        ...

    def close(self) -> None:
        """Gives back what it holds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Times on this machine, slowed down or scaled where it stands for another one.

    Attributes:
        told: what it is.
        power: the device's.
        slowdown: what its programs join; None for none.
        scale: what seconds are multiplied with.
        budget_s: seconds of each call, at the device's pace.
    """

    told: DeviceTold
    power: Power
    slowdown: _Slower | None = None
    scale: float = 1.0
    budget_s: float = 2.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(self, models: Sequence[Path], feeds: Feeds) -> list[Timing]:
        """One timing a model.

        Raises:
            NotMeasurable: a model that does not run, or the worker ended or took too long.
        """
        task = {
            "models": [str(path.resolve()) for path in models],
            "threads": self.told.threads,
            "block_s": BLOCK_S if self.slowdown is None else SLOWED_BLOCK_S * self.told.threads,
            "budget_s": self.budget_s,
            "least": LEAST_ROUNDS,
            "most": MOST_ROUNDS,
        }
        answer = _worked(task, feeds, self.slowdown)
        return [timing_of([self.scale * value for value in found]) for found in answer["seconds"]]

    def memory_bytes(self, model: Path, feeds: Feeds) -> int:
        """Peak memory of a model; raises `NotMeasurable`."""
        task = {"models": [str(model.resolve())], "threads": self.told.threads, "memory": True}
        return int(_worked(task, feeds, None)["memory_bytes"])

    def close(self) -> None:
        """Takes the slowdown away."""
        if self.slowdown is not None:
            self.slowdown.close()


def _worked(task: dict[str, object], feeds: Feeds, slowdown: _Slower | None) -> dict[str, Any]:
    """What the worker answers to a task."""
    with tempfile.TemporaryDirectory(prefix="hybrid-timing-") as folder:
        plain: dict[str, Any] = {name: _plain(array) for name, array in feeds.items()}
        np.savez(Path(folder) / "feeds.npz", **plain)
        task["feeds"] = str(Path(folder) / "feeds.npz")
        command = launched([], [sys.executable, "-m", WORKER], slowdown.groups if slowdown is not None else [])
        environment = {name: value for name, value in os.environ.items() if name != pace.VARIABLE}
        if slowdown is not None:
            environment |= slowdown.environment
        try:
            done = subprocess.run(
                command, input=json.dumps(task), capture_output=True, text=True, timeout=_LIMIT_S, check=False,
                env=environment, cwd=folder,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise NotMeasurable(
                f"timing took more than {_LIMIT_S:.0f} s; the device is too slow for this model"
            ) from exc
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise NotMeasurable(f"a candidate could not be timed: {said[0][:400]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings as numpy keeps them without pickling."""
    return np.asarray(array, str) if array.dtype == object else array


def timing_of(seconds: Sequence[float]) -> Timing:
    """What so many runs say."""
    p95_s = quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    return Timing(p50_s=median(seconds), p95_s=p95_s, low_s=min(seconds), n=len(seconds))
