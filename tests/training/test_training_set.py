"""What a training set says of fields that do not fit, before anything is trained."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from compression.errors import InvalidTrainingSet, TrainingNeeded

torch = pytest.importorskip("torch")
from compression.training.script import load_script  # noqa: E402
from compression.training.training_set import TrainingSet  # noqa: E402
from compression.training.trial import checked  # noqa: E402
from tests.training.making import a_set, patterns, untrained  # noqa: E402

pytestmark = pytest.mark.torch

IMAGES, LABELS = patterns(16)
WITH_NAN = IMAGES + np.where(np.arange(16) == 3, np.nan, 0).reshape(-1, 1, 1, 1).astype(np.float32)
LINEAR = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 1))


def test_a_good_one_passes_and_stays_as_it_is() -> None:
    net = untrained().train()
    given = TrainingSet(
        module=net,
        inputs={"image": IMAGES},
        labels=LABELS,
        augment=lambda batch, chance: (batch[0] + torch.randn(batch[0].shape, generator=chance),),
        student=lambda: untrained(1, 4),
    )
    assert checked(given) is given
    assert net.training
    assert given.n_samples == 16
    assert [tuple(one.shape) for one in given.example(3)] == [(3, 1, 12, 12)]
    part = given.part(np.array([2, 5, 7, 8, 9, 10, 11, 12]))
    assert np.array_equal(part.inputs["image"][1], IMAGES[5])
    assert part.labels is not None
    assert part.labels[1] == LABELS[5]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"module": untrained}, "module is of type function"),
        ({"inputs": {}}, "inputs is not a dictionary"),
        ({"inputs": IMAGES}, "inputs is not a dictionary"),
        ({"inputs": {3: IMAGES}}, "the key 3"),
        ({"inputs": {"image": IMAGES.tolist()}}, "is of type list"),
        ({"inputs": {"image": IMAGES.astype(np.float64)}}, "has dtype float64"),
        ({"inputs": {"image": IMAGES[:0]}}, r"shape \(0, 1, 12, 12\)"),
        ({"inputs": {"image": WITH_NAN}}, "holds NaN"),
        ({"inputs": {"image": IMAGES, "more": IMAGES[:9]}}, "differ in their number"),
        ({"inputs": {"image": IMAGES[:3]}, "labels": LABELS[:3]}, "3 samples; give at least 8"),
        ({"labels": LABELS.tolist()}, "labels is of type list"),
        ({"labels": LABELS[:5]}, "5 labels for 16 samples"),
        ({"labels": LABELS.astype(str)}, "labels have dtype <U"),
        ({"labels": LABELS.astype(np.float32)}, "classes are whole numbers"),
        ({"labels": LABELS * np.nan}, "labels hold NaN"),
        ({"labels": LABELS - 2}, "smallest label is -2"),
        ({"augment": 3}, "augment is of type int"),
        ({"student": untrained()}, None),
        ({"student": "net"}, "student is of type str"),
        ({"labels": None, "loss": lambda answer, labels: 0}, "loss was given and no labels"),
    ],
)
def test_a_field_that_does_not_fit_is_named(fields: dict, said: str | None) -> None:
    given = {"module": untrained(), "inputs": {"image": IMAGES}, "labels": LABELS, **fields}
    if said is None:
        assert TrainingSet(**given).n_samples == 16  # a module can be called as well
        return
    with pytest.raises(InvalidTrainingSet, match=said):
        TrainingSet(**given)


class Odd(torch.nn.Module):
    """Returns what it is told to."""

    def __init__(self, answer) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, image):
        return self._answer(image)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"inputs": {"image": IMAGES[:, :, :5, :5].repeat(2, 1)}},
            "the module failed on the first samples: RuntimeError",
        ),
        ({"module": Odd(lambda image: "four")}, "returned str"),
        ({"module": Odd(lambda image: image.sum())}, r"output 0 has shape \(\) for 4 samples"),
        ({"module": Odd(lambda image: image.flatten(1) * torch.inf)}, "NaN or infinity"),
        ({"module": Odd(lambda image: image.flatten(1).argmax(1))}, "needs scores, not chosen classes"),
        ({"module": LINEAR}, "labels without a loss need scores"),
        ({"module": Odd(lambda image: image.repeat(1, 4, 1, 1))}, "wanted one label a row"),
        ({"labels": LABELS + 1}, "the largest label is 4, the module has 4 classes"),
        ({"output_names": ("a", "b")}, "2 output names for 1 outputs"),
        ({"augment": lambda batch, chance: batch[0]}, "augment returned Tensor"),
        ({"augment": lambda batch, chance: (batch[0][:, :, 1:],)}, "shapes and types must stay"),
        ({"augment": lambda batch, chance: 1 / 0}, "augment failed on the first samples: ZeroDivisionError"),
        ({"loss": lambda answer, labels: answer}, "must return one finite number"),
        ({"loss": lambda answer, labels: answer.sum() * torch.nan}, "must return one finite number"),
        ({"student": lambda: "net"}, "must make a torch.nn.Module"),
        ({"student": lambda: LINEAR}, r"answers with the shapes \[\(4, 1\)\]"),
        ({"student": lambda: torch.nn.Linear(3, 3)}, "the student failed on the first samples"),
    ],
)
def test_what_does_not_fit_together_is_said(fields: dict, said: str) -> None:
    given = TrainingSet(**{"module": untrained(), "inputs": {"image": IMAGES}, "labels": LABELS, **fields})
    with pytest.raises(InvalidTrainingSet, match=said):
        checked(given)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.training.training_set.find_spec", lambda name: None)
    with pytest.raises(TrainingNeeded, match=r"hybrid-split\[compression\]"):
        TrainingSet(module=untrained(), inputs={"image": IMAGES})
    with pytest.raises(TrainingNeeded):
        load_script("train.py:training")


SCRIPT = """
import sys
from beside import WIDTH
import torch, numpy as np
from compression.training.training_set import TrainingSet

class Net(torch.nn.Sequential):
    pass

def training():
    from later import CLASSES
    net = Net(torch.nn.Flatten(), torch.nn.Linear(WIDTH, CLASSES))
    return TrainingSet(module=net, inputs={"x": np.zeros((9, WIDTH), np.float32)}, labels=np.zeros(9, int))

def broken():
    return [][3]

def leaving():
    sys.exit(3)

def wrong():
    return training().module

NUMBER = 3
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    (tmp_path / "later.py").write_text("CLASSES = 2\n")
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    for name in ("beside", "later", "train", "training_script_train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "train.py"


@pytest.mark.parametrize("where", ["train.py:training", "train:training"])
def test_a_script_is_loaded_from_a_file_or_a_module(script: Path, where: str) -> None:
    path = list(sys.path)
    found = load_script(where if "." not in where else f"{script}:training")
    assert isinstance(found, TrainingSet)
    assert found.n_samples == 9
    assert sys.path == path


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("train.py", "names no function"),
        (":training", "names no function"),
        ("train.py:not a name", "names no function"),
        ("nowhere.py:training", "there is no file .*nowhere.py"),
        ("nowhere:training", "nowhere cannot be loaded: ModuleNotFoundError"),
        ("train.py:trainng", "no function 'trainng'; it has: broken, leaving, training, wrong"),
        ("train.py:NUMBER", "no function 'NUMBER'"),
        ("train.py:broken", r"train.py:broken failed: IndexError: list index out of range \(line 16 of train.py\)"),
        ("train.py:leaving", "failed: SystemExit: 3"),
        ("train.py:wrong", "returned Net; it must return"),
    ],
)
def test_a_script_that_fails_shows_its_own_last_line(script: Path, where: str, said: str) -> None:
    with pytest.raises(InvalidTrainingSet, match=said):
        load_script(where)


def test_a_script_that_does_not_parse(script: Path) -> None:
    script.write_text("import math\n\ndef training(:\n")
    with pytest.raises(InvalidTrainingSet, match=r"cannot be loaded: SyntaxError.*\(line 3 of train\.py\)"):
        load_script("train.py:training")
    assert "training_script_train" not in sys.modules


def test_a_copy_with_another_field_is_checked_too() -> None:
    with pytest.raises(InvalidTrainingSet, match="classes are whole numbers"):
        dataclasses.replace(a_set(16), labels=LABELS.astype(np.float32))
