"""`hybrid plan` as a shell sees it."""

import json

import onnx
import pytest

from hybrid.cli.plan import shape_key_of
from hybrid.errors import ExitCode, TensorMismatch
from tests import zoo
from tests.odd_models import ODD


def test_a_table_for_people(run_hybrid, tmp_path):
    done = run_hybrid("plan", str(zoo.path("ppocr_cls")), "--shape", "1x3x48x192", "--cache", str(tmp_path / "cache"))
    assert done.returncode == ExitCode.OK, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["cut", "kind", "head", "work", "bytes", "of", "input", "pareto", "tensors"]
    assert " input " in lines[1]
    assert "110592" in lines[1]
    assert any(" interior " in line and " * " in line for line in lines)
    assert "interior cuts in 179 nodes" in done.stdout


def test_a_model_that_should_not_be_split_is_told_so_in_a_sentence(run_hybrid, tmp_path):
    shapes = ["--shape", "input_ids=1x32", "--shape", "attention_mask=1x32", "--cache", str(tmp_path / "cache")]
    done = run_hybrid("plan", str(zoo.path("minilm")), *shapes)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "No interior cut is worth anything: the smallest carries" in done.stdout.splitlines()[-1]


def test_json_holds_every_cut(run_hybrid, tmp_path):
    odd = ODD["output_used_later"]()
    onnx.save(odd.model, tmp_path / "model.onnx")
    done = run_hybrid("plan", str(tmp_path / "model.onnx"), "--json", "--cache", str(tmp_path / "cache"))
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    data = answer["data"]
    assert data["shape_key"] == {"x": [1, 8]}
    assert [cut["kind"] for cut in data["cuts"]] == ["input", "interior", "interior", "output"]
    assert data["cuts"][1]["tensors"] == [{"name": "a", "dtype": "FP32", "shape": [1, 8]}]
    assert data["pareto"] == [data["cuts"][0]["id"], data["cuts"][-1]["id"]]
    assert data["note"].startswith("No interior cut is worth anything")


def test_a_missing_model_is_named(run_hybrid):
    done = run_hybrid("plan", "nowhere.onnx", "--json")
    assert done.returncode == ExitCode.NOT_FOUND
    answer = json.loads(done.stdout or done.stderr)
    assert answer["error"]["code"] == "model_missing"
    assert "nowhere.onnx" in answer["error"]["what"]


DECLARED = {"x": (None, 3, None, None), "k": (2,)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"input 'x' has open sizes \(\?x3x\?x\?\); fix them, for example with --shape x=1x3x224x224"),
        (["1x3x8x8"], "no input ''; the model's inputs are x, k"),
        (["z=1"], "no input 'z'"),
        (["x=1xcat"], "'1xcat' is no shape"),
    ],
)
def test_shapes_that_say_too_little_are_refused(words, said):
    with pytest.raises(TensorMismatch, match=said):
        shape_key_of(DECLARED, words)


def test_shapes_are_read_and_fixed_ones_taken_from_the_model():
    assert shape_key_of(DECLARED, ["x=1x3x8x9"]).text == '{"k":[2],"x":[1,3,8,9]}'
    assert shape_key_of({"sr": None}, ["sr="]).text == '{"sr":[]}'
    assert shape_key_of({"x": (None, 4)}, ["7x4"]).text == '{"x":[7,4]}'
