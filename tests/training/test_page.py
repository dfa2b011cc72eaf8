"""The script of docs/training.md runs as it stands."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
from compression.training.fit_recipe import FitRecipe
from compression.training.fitting import fit
from compression.training.script import load_script
from compression.training.students import student

pytestmark = pytest.mark.torch


def test_the_pages_script_gives_a_training_set_that_trains(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "training.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    found = load_script(f"{tmp_path / 'train.py'}:training")
    assert found.n_samples == 1000
    small = student(found, seed=0)
    taught = fit(small, found, teacher=found.module, recipe=FitRecipe(epochs=3, learning_rate=1e-2), seed=0)
    assert taught.after.right > max(taught.before.right, 0.4)
