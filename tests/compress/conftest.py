"""A small classifier, its samples on the disk, a job about it, and a timer that needs no clock."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from compression.measuring import Feeds, Timing
from hybrid.compress import Job, Result, compress
from hybrid.compress.timing.timer import DeviceTold
from hybrid.cost.energy import GENERIC_POWER, Power
from tests.compress import nets

N, MAX_DROP = 160, 0.05


@dataclass
class BySize:
    """A timer by whose word a model takes as long as its file is large; what was timed is remembered."""

    told: DeviceTold = field(default_factory=lambda: DeviceTold(name="made up", kind="by size", factor=1, threads=1))
    power: Power = GENERIC_POWER
    asked: list[int] = field(default_factory=list)
    is_closed: bool = False

    def __call__(self, models: Sequence[Path], feeds: Feeds) -> list[Timing]:
        self.asked.append(len(models))
        seconds = [1e-8 * path.stat().st_size for path in models]
        return [Timing(p50_s=each, p95_s=each, low_s=each, n=9) for each in seconds]

    def memory_bytes(self, model: Path, feeds: Feeds) -> int:
        return 2 * model.stat().st_size

    def close(self) -> None:
        self.is_closed = True


def cut_short(patch: pytest.MonkeyPatch) -> None:
    """Takes from the search what is not looked at here: the staircase and ratios of pruning.

    That int8 loses nothing on these samples spares it no step either: there shall be some to interrupt.
    """
    patch.setattr("hybrid.compress.search.space.prunings", lambda _bench: ())
    patch.setattr("hybrid.compress.search.next_step.is_lossless", lambda _grade: False)


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def operators_once() -> Iterator[None]:
    """torch reads the sources of all operators that it exports at each export, half of its time: here at the first."""
    from torch.onnx._internal import _lazy_import

    apis = _lazy_import.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apis, "get_torchlib_ops", cache(apis.get_torchlib_ops))
        yield


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nets.graph(tmp_path_factory.mktemp("net") / "net.onnx", channels=(16, 32))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net on which int8 pays by the clock."""
    return nets.graph(tmp_path_factory.mktemp("wide") / "wide.onnx")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples `x.npz` and labels `y.npy`, enough of them for the floor."""
    folder = tmp_path_factory.mktemp("data")
    x, labels = nets.samples(N, 1)
    np.savez(folder / "x.npz", x=x)
    np.save(folder / "y.npy", labels)
    return folder


@pytest.fixture
def job(net: Path, data: Path, tmp_path: Path) -> Job:
    return Job(model=net, data=data / "x.npz", labels=data / "y.npy", out=tmp_path / "small", max_drop=MAX_DROP)


@pytest.fixture
def by_size(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], BySize]:
    """Makes timers by size, of a search that is cut short."""
    cut_short(monkeypatch)
    return lambda _job: BySize()


@pytest.fixture(scope="session")
def whole(net: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What the job gives, done elsewhere."""
    out = tmp_path_factory.mktemp("whole") / "small"
    job = Job(model=net, data=data / "x.npz", labels=data / "y.npy", out=out, max_drop=MAX_DROP)
    with pytest.MonkeyPatch.context() as patch:
        cut_short(patch)
        return compress(job, timer=lambda _job: BySize())
