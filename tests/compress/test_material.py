"""Samples that do not allow a judgement are refused before any work, with what to do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hybrid.calibration.intervals import mcnemar, samples_for
from hybrid.compress.grading import Grade
from hybrid.compress.job import Job
from hybrid.compress.material import divided, gathered, refuse_overlap, samples_wanted
from hybrid.errors import DataUnfit, NotFound, TensorMismatch
from tests.compress import nets
from tests.compress.conftest import MAX_DROP, N


def given(job: Job, tmp_path: Path, x: np.ndarray | None = None, y: np.ndarray | None = None) -> Job:
    """The job with other samples or labels."""
    first, second = nets.samples(N, 1)
    np.savez(tmp_path / "given.npz", x=first if x is None else x)
    np.save(tmp_path / "given.npy", second if y is None else y)
    return replace(job, data=tmp_path / "given.npz", labels=tmp_path / "given.npy")


def test_each_sample_is_in_one_part_and_the_seed_decides_which():
    parts = divided(1000, 3)
    together = [*parts.calibrate, *parts.choose, *parts.judge]
    assert sorted(together) == list(range(1000))
    assert parts == divided(1000, 3)
    assert parts != divided(1000, 4)
    assert len(parts.judge) > len(parts.choose) >= len(parts.calibrate)


def test_samples_wanted_are_enough_and_one_fewer_is_not():
    for drop in (0.005, 0.01, 0.02, 0.2):
        n = samples_wanted(drop)
        assert len(divided(n, 0).judge) >= samples_for(drop)
        assert len(divided(n - 2, 0).judge) < samples_for(drop)


def test_good_samples_are_read_and_judged(job, net):
    material = gathered(job, net)
    assert material.metric == "accuracy"
    assert material.share_right(material.parts.judge) > 0.9
    assert len(material.feeds) == N


def test_too_few_samples_say_how_many_are_wanted(job, net, tmp_path):
    x, y = nets.samples(N, 1)
    with pytest.raises(DataUnfit, match=f"100 samples .* give {samples_wanted(MAX_DROP)} at least"):
        gathered(given(job, tmp_path, x[:100], y[:100]), net)


def test_one_sample_only(job, net, tmp_path):
    x, y = nets.samples(N, 1)
    with pytest.raises(DataUnfit, match="1 sample cannot show"):
        gathered(given(job, tmp_path, x[:1], y[:1]), net)


def test_a_wish_for_fewer_samples_than_the_floor_takes(job, net):
    with pytest.raises(DataUnfit, match="--samples 50 are too few"):
        gathered(replace(job, n_samples=50), net)


def test_no_number_among_the_samples(job, net, tmp_path):
    x = nets.samples(N, 1)[0].copy()
    x[17, 0, 3, 3] = np.nan
    with pytest.raises(DataUnfit, match="sample 17: 'x' holds NaN"):
        gathered(given(job, tmp_path, x), net)


def test_samples_of_another_shape(job, net, tmp_path):
    with pytest.raises(TensorMismatch, match="shape"):
        gathered(given(job, tmp_path, np.zeros((N, 12), np.float32)), net)


def test_samples_of_other_sizes_name_both(job, net, tmp_path):
    with pytest.raises(TensorMismatch, match="'x' is 1x1x11x12, the model wants 1x1x12x12"):
        gathered(given(job, tmp_path, np.zeros((N, 1, 11, 12), np.float32)), net)


def test_what_was_trained_on_cannot_judge(job, net):
    material = gathered(job, net)
    refuse_overlap(material, {"x": nets.samples(N, 2)[0]})
    refuse_overlap(material, {"x": np.concatenate([feeds["x"] for feeds in material.calibrate])})
    judged = material.feeds[material.parts.judge[0]]["x"]
    with pytest.raises(DataUnfit, match="1 of the"):
        refuse_overlap(material, {"x": np.concatenate([nets.samples(N, 2)[0], judged])})


def test_a_wished_metric_is_used(job, net):
    material = gathered(replace(job, metric="fidelity", tolerance=0.1), net)
    assert (material.metric, material.judge.tolerance) == ("fidelity", 0.1)


def test_labels_that_are_too_few(job, net, tmp_path):
    with pytest.raises(DataUnfit, match=f"{N - 1} labels for {N} samples"):
        gathered(given(job, tmp_path, y=nets.samples(N, 1)[1][: N - 1]), net)


def test_labels_that_are_no_classes_of_the_model(job, net, tmp_path):
    y = nets.samples(N, 1)[1].copy()
    y[5] = 6
    with pytest.raises(DataUnfit, match=r"label 6 is none of the model's 6 classes \(0 to 5\)$"):
        gathered(given(job, tmp_path, y=y), net)


def test_labels_that_are_counted_from_one_are_told_as_such(job, net, tmp_path):
    with pytest.raises(DataUnfit, match="counted from 1: take 1 off each"):
        gathered(given(job, tmp_path, y=nets.samples(N, 1)[1] + 1), net)


def test_labels_of_other_samples(job, net, tmp_path):
    with pytest.raises(DataUnfit, match="the labels do not fit"):
        gathered(given(job, tmp_path, y=(nets.samples(N, 1)[1] + 1) % 6), net)


def test_labels_with_which_the_model_is_no_better_than_its_largest_class_are_told(job, net, tmp_path):
    """Drawn at random: neither refused, because a weak model may be compressed too, nor passed over."""
    drawn = np.random.default_rng(0).integers(0, 6, N)
    (remark,) = gathered(given(job, tmp_path, y=drawn), net).remarks
    assert "no better than always saying that class" in remark
    assert gathered(job, net).remarks == ()


def test_a_model_whose_answer_never_changes(job, tmp_path):
    value = helper.make_tensor("c", TensorProto.FLOAT, [1, 6], np.arange(6.0))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Mul", ["s", "z"], ["n"]),
        helper.make_node("Add", ["n", "c"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 12, 12]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6]),
    ]
    zero = helper.make_tensor("z", TensorProto.FLOAT, [], [0.0])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "c.onnx")
    with pytest.raises(DataUnfit, match=f"the same for all {N} samples"):
        gathered(replace(job, labels=None), tmp_path / "c.onnx")


def test_a_model_that_takes_four_at_once_says_how_the_samples_must_lie(job, net, tmp_path):
    model = onnx.load(net)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    fixed = tmp_path / "four.onnx"
    onnx.save(model, fixed)
    with pytest.raises(TensorMismatch, match=rf"{N} rows, and the model takes 4 at once.*\[{N // 4}, 4, 1, 12, 12\]"):
        gathered(job, fixed)
    x = nets.samples(N, 1)[0]
    np.savez(tmp_path / "fours.npz", x=x.reshape(-1, 4, *x.shape[1:]))
    with pytest.raises(DataUnfit, match=f"{N // 4} samples cannot show"):
        gathered(replace(job, data=tmp_path / "fours.npz", labels=None), fixed)


def test_a_side_output_that_never_changes_is_named_with_what_to_judge_by(job, net, tmp_path):
    model = onnx.load(net)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "ones"))
    model.graph.node.append(helper.make_node("Identity", ["ones"], ["side"], "side"))
    model.graph.output.append(helper.make_tensor_value_info("side", TensorProto.FLOAT, [3]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(DataUnfit, match=r"'side' is the same .* another output with --output \(y\)"):
        gathered(replace(job, labels=None, metric="fidelity"), tmp_path / "two.onnx")
    found = gathered(replace(job, labels=None, metric="fidelity", output="y"), tmp_path / "two.onnx")
    assert found.judge.outputs == ("y",)


def test_labels_that_are_about_another_output_than_the_first_are_told_of_it(job, net, tmp_path):
    model = onnx.load(net)
    model.graph.node.append(helper.make_node("Flatten", ["x"], ["pixels"], "side"))
    model.graph.output.insert(0, helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 144]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(DataUnfit, match=r"or are about another output than 'pixels': name it with --output \(y\)"):
        gathered(job, tmp_path / "two.onnx")
    assert gathered(replace(job, output="y"), tmp_path / "two.onnx").judge.outputs == ("y",)


def test_no_samples_there(job, net, tmp_path):
    with pytest.raises(NotFound, match="no such file or folder"):
        gathered(replace(job, data=tmp_path / "nothing.npz"), net)


def test_batches_of_any_size_give_what_single_samples_give(job, net, tmp_path):
    free = nets.graph(tmp_path / "free.onnx", batch="n", channels=(16, 32))
    alone, together = gathered(job, net), gathered(job, free)
    assert alone.before == together.before
    assert alone.digest == together.digest


@pytest.mark.parametrize(
    ("n_lost", "n_won", "p_value"), [(0, 0, 1.0), (5, 5, 1.0), (8, 0, 2 / 2**8), (1, 9, 22 / 2**10)]
)
def test_mcnemars_exact_test(n_lost, n_won, p_value):
    assert mcnemar(n_lost, n_won) == pytest.approx(p_value)


def test_mcnemar_of_many_is_a_probability():
    assert 0 < mcnemar(5200, 4800) < 1e-3


def test_a_grade_promises_less_on_fewer_samples():
    grade = Grade(metric="accuracy", n=1000, n_lost=5, n_won=2)
    assert grade.promised(10000) < grade.promised(1000) == pytest.approx(grade.interval[1])
    assert grade.promised(300) > grade.interval[1]
