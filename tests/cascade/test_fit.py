"""Temperature and threshold: what they promise holds on samples that they have not seen."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hybrid.artifact.manifest import parse
from hybrid.cascade.build import graded, score_kind, scores_output, write_artifact
from hybrid.cascade.confidence import calibration_error, confidences, probabilities
from hybrid.cascade.fit import NEVER, Graded, fit, fitted_temperature, measured
from hybrid.errors import BadMessage, Conflict, TensorMismatch
from tests.cascade.made import classifier, points


def grades(tmp_path: Path, n: int, seed: int, *, sharpness: float = 4.0) -> Graded:
    small = onnxruntime.InferenceSession(classifier(tmp_path / "s.onnx", used=4, sharpness=sharpness))
    large = onnxruntime.InferenceSession(classifier(tmp_path / "l.onnx", used=12))
    x, labels = points(n, seed)
    right = large.run(None, {"x": x})[0].argmax(axis=1) == labels
    return Graded(scores=small.run(None, {"x": x})[0].astype(float), labels=labels, large_right=right)


def test_the_temperature_mends_a_model_that_is_too_sure() -> None:
    """Answers drawn from the very probabilities whose logarithms, three times as large, are the scores."""
    random = np.random.default_rng(4)
    truth = random.dirichlet(np.full(6, 0.5), 6000)
    labels = np.array([random.choice(6, p=row) for row in truth])
    scores, right = 3.0 * np.log(truth + 1e-12), truth.argmax(axis=1) == labels
    first, rest = slice(0, 3000), slice(3000, None)
    temperature = fitted_temperature(scores[first], labels[first], "logits")
    assert temperature == pytest.approx(3.0, rel=0.05)
    before = calibration_error(confidences(scores[rest], "logits", 1.0), right[rest])
    after = calibration_error(confidences(scores[rest], "logits", temperature), right[rest])
    assert before > 0.15
    assert after < 0.03
    shares = probabilities(scores, 1.0)
    assert fitted_temperature(shares[first], labels[first], "probabilities") == pytest.approx(temperature, rel=0.02)


def test_the_threshold_keeps_its_promise_on_other_samples(tmp_path: Path) -> None:
    broken = 0
    for seed in range(25):
        rule = fit(grades(tmp_path, 1500, seed), small="small", output="scores", kind="logits", max_accuracy_drop=0.02)
        fresh = grades(tmp_path, 10_000, 1000 + seed)
        found = measured(fresh, confidences(fresh.scores, "logits", rule.temperature), rule.threshold)
        broken += found.drop > 0.02
        assert rule.measured is not None
        assert rule.measured.drop_high <= 0.02 or rule.threshold == NEVER
    assert broken <= 3  # 2.5 % are allowed to be


def test_it_sends_less_where_more_may_be_lost(tmp_path: Path) -> None:
    told = grades(tmp_path, 6000, 3)
    rules = [fit(told, small="s", output="y", kind="logits", max_accuracy_drop=most) for most in (0.005, 0.02, 0.1)]
    ratios = [rule.measured.escalated_ratio for rule in rules if rule.measured is not None]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[2] + 0.05
    everything = fit(told, small="s", output="y", kind="logits", max_accuracy_drop=1.0)
    assert everything.measured is not None
    assert everything.measured.escalated_ratio == 0.0


def test_a_small_model_that_knows_nothing_never_answers() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 900)
    told = Graded(scores=random.standard_normal((900, 4)), labels=labels, large_right=np.ones(900, bool))
    rule = fit(told, small="s", output="y", kind="logits", max_accuracy_drop=0.001)
    assert rule.threshold == NEVER


def test_few_samples_are_refused() -> None:
    told = Graded(scores=np.zeros((50, 3)), labels=np.zeros(50, int), large_right=np.ones(50, bool))
    with pytest.raises(BadMessage, match="too few"):
        fit(told, small="s", output="y", kind="logits")


def test_scores_that_are_no_numbers_are_never_sure() -> None:
    scores = np.array([[9.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
    sure = confidences(scores, "logits", 1.0)
    assert sure[0] > 0.99
    assert list(sure[1:]) == [0.0, 0.0]


def test_models_are_graded_and_their_scores_told_apart(tmp_path: Path) -> None:
    small = onnxruntime.InferenceSession(classifier(tmp_path / "s.onnx", used=4))
    large = onnxruntime.InferenceSession(classifier(tmp_path / "l.onnx", used=12))
    x, labels = points(300, 5)
    output = scores_output(small, large)
    told = graded(small, large, [{"x": row[None]} for row in x], list(labels), output)
    assert output == "scores"
    assert told.small_right.mean() < told.large_right.mean()
    assert score_kind(told.scores) == "logits"
    assert score_kind(probabilities(told.scores, 1.0)) == "probabilities"
    with pytest.raises(TensorMismatch, match="holds scores"):
        scores_output(small, large, "nothing")


def test_an_artifact_holds_both_and_the_rule(tmp_path: Path) -> None:
    small, large = classifier(tmp_path / "s.onnx", used=4), classifier(tmp_path / "l.onnx", used=12)
    rule = fit(grades(tmp_path, 600, 0), small="small", output="scores", kind="logits", max_accuracy_drop=0.05)
    artifact = write_artifact(small, large, rule, name="points", version="1", folder=tmp_path / "out")
    again = parse((tmp_path / "out" / "manifest.json").read_bytes())
    assert again.cascade == rule
    assert again == artifact.manifest
    assert [variant.files[0] for variant in again.variants] == ["l.onnx", "small/s.onnx"]
    with pytest.raises(Conflict):
        write_artifact(small, large, rule, name="points", version="1", folder=tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    for wrong in (text.replace('"small":"small"', '"small":"nobody"'), text.replace('"threshold":', '"threshold":7')):
        with pytest.raises(BadMessage, match="cascade"):
            parse(wrong.encode())
