"""Bottlenecks among the ways of dividing requests: learned once, whatever ends the work in between."""

import copy
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("operators_once")]

from compression.bottleneck import training  # noqa: E402
from compression.errors import NotTrainable  # noqa: E402
from compression.measuring import Timing  # noqa: E402
from compression.training.training_set import TrainingSet  # noqa: E402
from devices.catalog.load import link_class  # noqa: E402
from hybrid.artifact.manifest import FileEntry  # noqa: E402
from hybrid.compress.job import THIS, Job  # noqa: E402
from hybrid.compress.journal import Journal  # noqa: E402
from hybrid.compress.making.maker import Maker  # noqa: E402
from hybrid.compress.material import gathered  # noqa: E402
from hybrid.compress.search.bench import Bench  # noqa: E402
from hybrid.compress.splits import bottlenecks, work  # noqa: E402
from hybrid.compress.splits.filing import laid_out  # noqa: E402
from hybrid.compress.splits.work import Found, SplitWork  # noqa: E402
from hybrid.compress.timing.timer import DeviceTold  # noqa: E402
from hybrid.compress.uncompressed import base_of  # noqa: E402
from tests.compress import split_nets  # noqa: E402

QUICK_S = 0.1
STAGE = "a bottleneck at"


class Net(torch.nn.Module):
    """Stages with a name each, narrow in the middle."""

    def __init__(self) -> None:
        super().__init__()
        layers = torch.nn
        self.first = layers.Sequential(layers.Conv2d(3, 16, 3, 2, 1), layers.ReLU())
        self.waist = layers.Sequential(layers.Conv2d(16, 8, 3, 4, 1), layers.ReLU())
        self.wide = layers.Sequential(layers.Conv2d(8, 64, 3, 1, 1), layers.ReLU())
        self.last = layers.Sequential(layers.Conv2d(64, 64, 3, 1, 1), layers.ReLU(), layers.Flatten())
        self.scores = layers.Linear(64 * 36, split_nets.N_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.last(self.wide(self.waist(self.first(x)))))
        return scores


def taught() -> TrainingSet:
    x, labels = split_nets.samples(240, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 4e-3)
        for start in [*range(0, 240, 40)] * 3:
            scores = net(torch.from_numpy(x[start : start + 40]))
            loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[start : start + 40]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return TrainingSet(module=net.eval(), inputs={"x": x}, labels=labels, output_names=("y",))


def found(
    folder: Path, training_set: TrainingSet, stage: Callable[[str], None] = lambda _text: None, left_s: float = 0.001
) -> Found:
    """What the search for ways gives on the slow device and the thin line, with a journal below the folder."""
    job = Job(
        model=folder / "base" / "model.onnx",
        data=folder / "x.npz",
        labels=folder / "y.npy",
        out=folder / "small",
        max_drop=0.6,
    )
    base = base_of(job, folder)
    material = gathered(job, base.path)
    whole_s = 1e-6 * base.n_bytes
    told = [DeviceTold(name=name, kind="by size", factor=1, threads=1) for name in ("slow", THIS)]
    with Journal(folder / "work", ["facts"]) as journal:
        bench = Bench(
            maker=Maker(path=base.path, material=material, journal=journal),
            material=material,
            journal=journal,
            timer=split_nets.SlowBySize(told=told[0], s_per_byte=1e-6),
            original_bytes=base.n_bytes,
            stage=stage,
        )
        return SplitWork(
            job=job,
            base=base,
            bench=bench,
            link=link_class(str(folder / "thin.toml")),
            gateway=split_nets.SlowBySize(told=told[1], s_per_byte=1e-8),
            original=Timing(p50_s=whole_s, p95_s=whole_s, low_s=whole_s, n=9),
            variants={},
            int8=None,
            left_s=lambda: left_s,
            training_set=training_set,
        ).found()


def _work(folder: Path, training_set: TrainingSet, told: Connection) -> None:
    """Learns until the second training begins."""
    begun: list[str] = []

    def stage(text: str) -> None:
        if text.startswith(STAGE):
            begun.append(text)
            told.send(text)
        if len(begun) == 2:
            time.sleep(60)

    work.LEAST_S, bottlenecks.LEAST_RATIO = QUICK_S, 0.0
    found(folder, training_set, stage)


@pytest.fixture(scope="module")
def known_set() -> TrainingSet:
    return taught()


@pytest.fixture
def training_set(known_set: TrainingSet) -> TrainingSet:
    """One of the test's own."""
    return copy.deepcopy(known_set)


@pytest.fixture(scope="module")
def known_folder(known_set: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, a line, and the module as it is written for the device."""
    folder = tmp_path_factory.mktemp("known")
    x, labels = split_nets.samples(30, 1)
    np.savez(folder / "x.npz", x=x)
    np.save(folder / "y.npy", labels)
    (folder / "thin.toml").write_text(split_nets.LINK.replace("= 100000", "= 20000"))
    base_of(Job(model=None, data=folder, out=folder), folder, copy.deepcopy(known_set))
    return folder


@pytest.fixture
def folder(known_folder: Path, tmp_path: Path) -> Path:
    """The same for one test."""
    return Path(shutil.copytree(known_folder, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The submodules at which something was trained; each quickly."""
    asked: list[str] = []
    real = training.train_bottlenecks

    def counted(training_set: TrainingSet, at: str, **more: object) -> list[training.Bottleneck]:
        asked.append(at)
        return real(training_set, at, **(more | {"budget_s": QUICK_S}))  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_bottlenecks", counted)
    monkeypatch.setattr(bottlenecks, "LEAST_RATIO", 0.0)
    return asked


def test_nothing_is_learned_when_the_budget_is_over(
    folder: Path, training_set: TrainingSet, trained: list[str]
) -> None:
    told = [each for each in found(folder, training_set, left_s=-1.0).told if each.id.startswith("learned")]
    assert not trained
    assert told
    assert {(each.status, each.reason) for each in told} == {("kept off", work.OVER)}


def test_a_training_that_the_budget_ended_at_once_is_told_so_and_begun_anew_with_more(
    folder: Path, training_set: TrainingSet, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bottlenecks, "LEAST_RATIO", 1.1)
    told = [each for each in found(folder, training_set).told if each.id.startswith("learned")]
    assert len(trained) == len(told) > 0
    for each in told:
        assert each.status == "failed"
        assert re.search(r"after \d+ of \d+ steps: give more with --budget", each.reason)
    monkeypatch.setattr(bottlenecks, "LEAST_RATIO", 0.0)
    n_begun = len(trained)
    found(folder, training_set)
    assert len(trained) == 2 * n_begun


@pytest.mark.slow
def test_killed_by_the_kernel_it_learns_only_what_is_left(
    folder: Path, training_set: TrainingSet, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = _killed_at_the_second(folder, training_set)
    first = found(folder, training_set)
    assert [f"{STAGE} {at}" for at in trained] == begun[1:]
    learned = [one for one in first.shipped if one.way.id.startswith("learned")]
    assert learned, first.told
    entries: dict[str, FileEntry] = {}
    declared = laid_out(first.shipped, folder / "artifact", entries)
    assert {one.way.id for one in learned} <= {split.id for split in declared}
    assert set(entries) == {name for split in declared for name in split.files}
    for name, entry in entries.items():
        assert hashlib.sha256((folder / "artifact" / name).read_bytes()).hexdigest() == entry.sha256
    prior = next((folder / "work").glob("*/prior-1.json"))
    prior.write_bytes(prior.read_bytes()[:-1])
    found(folder, training_set)
    assert len(trained) == 2, "the damaged one anew, not the other"
    assert len(list((folder / "work" / "set-aside").iterdir())) == 1

    def opaque(*_: object) -> str:
        raise NotTrainable("put an nn.Identity there")

    monkeypatch.setattr(bottlenecks.Bottlenecks, "submodule", opaque)
    refused = found(folder, training_set).refused[-1]
    assert (refused.what, refused.why) == (bottlenecks.WHAT, "put an nn.Identity there")


def _killed_at_the_second(folder: Path, training_set: TrainingSet) -> list[str]:
    """Does the work in a process that is killed when the second training begins; the trainings that it began."""
    begun: list[str] = []
    spawning = multiprocessing.get_context("spawn")
    mine, theirs = spawning.Pipe()
    child = spawning.Process(target=_work, args=(folder, training_set, theirs))
    child.start()
    theirs.close()
    while len(begun) < 2:
        begun.append(mine.recv())  # EOFError where the child ended before
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return begun
