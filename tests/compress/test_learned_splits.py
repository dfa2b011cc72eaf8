"""Bottlenecks learned for a job: at which cuts, what is kept of them, and why the others are not."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from compression.training.training_set import TrainingSet  # noqa: E402
from hybrid.artifact.manifest import FileEntry  # noqa: E402
from hybrid.compress.job import Job  # noqa: E402
from hybrid.compress.learned_splits import SplitWork, laid_out  # noqa: E402
from hybrid.compress.material import gathered  # noqa: E402
from hybrid.compress.uncompressed import base_of  # noqa: E402
from tests.compress import nets  # noqa: E402


class Net(torch.nn.Module):
    """Two stages with a name each, so that both ends are submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Conv2d(1, 12, 3, 1, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        self.second = torch.nn.Sequential(torch.nn.Conv2d(12, 16, 3, 1, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        self.scores = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 9, nets.N_CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.second(self.first(x)))
        return scores


class Opaque(torch.nn.Module):
    """The same function without a submodule at any cut."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList([one.detach().clone() for one in net.parameters()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f, w = torch.nn.functional, list(self.weights)
        x = f.max_pool2d(f.relu(f.conv2d(x, w[0], w[1], padding=1)), 2)
        x = f.max_pool2d(f.relu(f.conv2d(x, w[2], w[3], padding=1)), 2)
        return f.linear(x.flatten(1), w[4], w[5])


@pytest.fixture(scope="module")
def training_set() -> TrainingSet:
    x, labels = nets.samples(600, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 4e-3)
        for start in [*range(0, 600, 50)] * 4:
            scores = net(torch.from_numpy(x[start : start + 50]))
            loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[start : start + 50]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return TrainingSet(module=net.eval(), inputs={"x": x}, labels=labels, output_names=("y",))


def work_for(job: Job, training_set: TrainingSet, folder: Path) -> SplitWork:
    job = replace(job, model=None)
    base = base_of(job, folder, training_set)
    return SplitWork(
        base=base,
        material=gathered(job, base.path),
        training_set=training_set,
        max_drop=job.max_drop,
        folder=folder,
        seed=0,
        left_s=lambda: 3.0,
    )


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.compress.learned_splits.LEAST_S", 0.3)


@pytest.mark.slow
def test_what_is_learned_holds_the_floor(job: Job, training_set: TrainingSet, tmp_path: Path) -> None:
    work = work_for(replace(job, max_drop=0.2), training_set, tmp_path / "work")
    learned = work.learned()
    assert learned.splits, learned.refused
    for split in learned.splits:
        assert split.cell.drop_high <= 0.2
        assert split.cell.n_bytes < 4 * 12 * 12
        assert split.cell.codec == split.files.codec == f"split:{split.entry.id}"
        assert split.cell.split == split.files.digest
        assert split.cell.n == len(work.material.parts.judge)
        assert split.files.prior_bytes().startswith(b'{"format":"hybrid-prior"')
    entries: dict[str, FileEntry] = {}
    declared = laid_out(learned.splits, tmp_path / "artifact", entries)
    assert [split.id for split in declared] == [split.entry.id for split in learned.splits]
    assert set(entries) == {name for split in declared for name in split.files}
    for name, entry in entries.items():
        assert hashlib.sha256((tmp_path / "artifact" / name).read_bytes()).hexdigest() == entry.sha256
    strict = replace(work, max_drop=-0.5, left_s=lambda: 0.0).learned()
    assert not strict.splits
    assert {"beyond the floor" in one.why for one in strict.refused} == {True}


def test_a_module_without_submodules_is_told_why(job: Job, training_set: TrainingSet, tmp_path: Path) -> None:
    module = training_set.module
    assert isinstance(module, Net)
    learned = work_for(job, replace(training_set, module=Opaque(module)), tmp_path / "work").learned()
    assert not learned.splits
    assert "nn.Identity" in learned.refused[0].why
