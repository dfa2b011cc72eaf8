"""Training on a box: the same numbers as by hand, personal layers that stay, and requests that come first."""

import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from hybrid.errors import BadMessage, ModelUntrainable, TensorMismatch, TrainingDiverged
from hybrid.federated.campaign import Training
from hybrid.federated.learning.evaluation import compare, evaluate, right_of
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import Head, read_head
from hybrid.federated.learning.training import LocalTraining, Start, divided, train
from tests.federated.learning_making import digits, external, made, node, reference_model, reference_weights


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    path = reference_model(tmp_path_factory.mktemp("mlp"))
    return read_head(path, "image", {"head.bin": path.with_name("head.bin").stat().st_size})


@pytest.fixture(scope="module")
def boxes():
    return digits()


def by_hand(
    start: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    *,
    epochs=5,
    batch=16,
    rate=0.1,
    mu=0.0,
    decay=0.0,
    momentum=0.0,
    smoothing=0.0,
    correction=None,
):
    """SGD on the MLP, written out: the vector w1, b1, w2, b2."""
    shapes, ends = [(64, 64), (64,), (64, 10), (10,)], np.cumsum([4096, 64, 640])
    w, velocity = start.copy(), np.zeros_like(start)
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(y))
        for first in range(0, len(y), batch):
            some = order[first : first + batch]
            w1, b1, w2, b2 = (part.reshape(shape) for part, shape in zip(np.split(w, ends), shapes, strict=True))
            hidden = np.maximum(x[some] @ w1 + b1, 0)
            scores = hidden @ w2 + b2
            shares = np.exp(scores - scores.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            wanted = np.full_like(shares, smoothing / 10)
            wanted[np.arange(len(some)), y[some]] += np.float32(1 - smoothing)
            shares = (shares - wanted) / len(some)
            back = (shares @ w2.T) * (hidden > 0)
            parts = [x[some].T @ back, back.sum(0), hidden.T @ shares, shares.sum(0)]
            g = np.concatenate([part.ravel() for part in parts])
            g = g + np.float32(mu) * (w - start) + (0 if correction is None else correction) + np.float32(decay) * w
            velocity = np.float32(momentum) * velocity + g
            w = w - np.float32(rate) * velocity
    return w


@pytest.mark.parametrize(
    ("plan", "extra"),
    [
        ({}, {}),
        ({"proximal": 0.1}, {"mu": 0.1}),
        ({"momentum": 0.9, "learning_rate": 0.01}, {"momentum": 0.9, "rate": 0.01}),
        ({"weight_decay": 0.01, "epochs": 2, "batch": 10}, {"decay": 0.01, "epochs": 2, "batch": 10}),
        ({"label_smoothing": 0.1, "epochs": 2}, {"smoothing": 0.1, "epochs": 2}),
        ({"epochs": 1}, {"epochs": 1, "correction": "drawn"}),
    ],
    ids=["plain", "proximal", "momentum", "decay", "smoothed", "scaffold"],
)
def test_it_is_sgd_bit_for_bit(head: Head, boxes, plan: dict, extra: dict) -> None:
    x, y = boxes[0][3]
    correction = None
    if extra.get("correction"):
        correction = extra["correction"] = np.random.default_rng(5).normal(0, 0.01, 4810).astype(np.float32)
    start = Start(shared=head.vector, correction=correction, seed=11)
    found = train(head.program, head.layout, Examples(x, y), Training(**plan), start=start)
    wanted = by_hand(head.vector, x, y, 11, **extra) - head.vector
    assert np.array_equal(found.delta, wanted)
    again = train(head.program, head.layout, Examples(list(x), y), Training(**plan), start=start)
    assert np.array_equal(found.delta, again.delta)
    assert found.n_samples == len(y)
    assert found.n_steps == extra.get("epochs", 5) * -(-len(y) // extra.get("batch", 16))
    assert found.loss_after < found.loss_before


def test_the_reference_task_learns(head: Head, boxes) -> None:
    """Plain averaging over ten boxes: 95 % in ten rounds (Dirichlet 0.5; one seed: nine or so)."""
    parts, (x_test, y_test) = boxes
    vector, test, accuracies = head.vector, Examples(x_test, y_test), []
    for step in range(12):
        total, n = np.zeros(4810), 0
        for box, (x, y) in enumerate(parts):
            start = Start(shared=vector, seed=1000 * step + box)
            found = train(head.program, head.layout, Examples(x, y), Training(), start=start)
            total += found.delta.astype(np.float64) * len(y)
            n += len(y)
        vector = vector + (total / n).astype(np.float32)
        accuracies.append(evaluate(head.program, head.layout.arrays(vector), test).accuracy)
        if accuracies[-1] >= 0.95:
            break
    assert accuracies[-1] >= 0.95, accuracies
    assert 5 <= len(accuracies) <= 11
    base = head.layout.arrays(head.vector)
    beside = compare(head.program, base, head.layout.arrays(vector), test)
    right, were = right_of(head.program, head.layout.arrays(vector), test), right_of(head.program, base, test)
    assert (beside.candidate.n_right, beside.base.n_right) == (right.sum(), were.sum())
    assert (beside.n_won, beside.n_lost) == ((right & ~were).sum(), (were & ~right).sum())
    assert beside.candidate.loss < beside.base.loss


def test_a_head_on_features_learns_alone(tmp_path: Path, boxes) -> None:
    path = reference_model(tmp_path, learns=("w2", "b2"))
    head = read_head(path, "hidden", {"head.bin": path.with_name("head.bin").stat().st_size})
    assert head.layout.n_elements == 650
    x, y = boxes[0][0]
    weights = reference_weights()
    features = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    found = train(
        head.program, head.layout, Examples(features, y), Training(epochs=20), start=Start(shared=head.vector)
    )
    learned = head.layout.arrays(head.vector + found.delta)
    assert evaluate(head.program, learned, Examples(features, y)).accuracy > 0.9


def test_values_are_learned_by_squared_error(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    truth = random.normal(size=(6, 2)).astype(np.float32)
    x = random.normal(size=(80, 6)).astype(np.float32)
    model = made([node("MatMul", "x w", "y")], {"w": np.zeros((6, 2), np.float32)}, ["n", 6], {"y": ["n", 2]})
    path = external(model, ["w"], tmp_path)
    head = read_head(path, "x", {"head.bin": 48})
    examples = Examples(x, x @ truth)
    found = train(head.program, head.layout, examples, Training(epochs=30), start=Start(shared=head.vector))
    assert found.loss_after < 1e-4 < found.loss_before
    assert np.allclose(found.delta.reshape(6, 2), truth, atol=0.02)
    learned = head.layout.arrays(found.delta)
    assert evaluate(head.program, learned, examples).accuracy > 0.5
    assert evaluate(head.program, head.arrays, examples).n_right == 0
    for n_values in (1, 3):  # one value would else stand for both, three would be no error of ours
        wrong = Examples(x, np.ones((80, n_values), np.float32))
        with pytest.raises(TensorMismatch, match=f"labels have {n_values} values, the model gives 2"):
            train(head.program, head.layout, wrong, Training(), start=Start(shared=head.vector))
        with pytest.raises(TensorMismatch, match=f"labels have {n_values} values, the model gives 2"):
            evaluate(head.program, head.arrays, wrong)


def test_personal_layers_are_learned_first_and_stay(head: Head, boxes) -> None:
    x, y = boxes[0][0]
    plan = Training(personal=("w2", "b*2"))
    shared, personal = divided(head.layout, plan.personal)
    assert shared.names == ("w1", "b1")
    assert personal is not None
    assert personal.names == ("w2", "b2")
    mine = np.concatenate([head.arrays["w2"].ravel(), head.arrays["b2"]])
    body = np.concatenate([head.arrays["w1"].ravel(), head.arrays["b1"]])
    start = Start(shared=body, personal=mine)
    found = train(head.program, head.layout, Examples(x, y), plan, start=start)
    assert found.delta.shape == (4160,)
    assert found.personal.shape == (650,)
    assert not np.array_equal(found.personal, mine)
    assert found.loss_after < found.loss_before
    again = LocalTraining(head.program, head.layout, Examples(x, y), plan, start=start)
    for at, _ in enumerate(again.pieces()):
        if at == 5:  # the epochs of the personal layers run: what travels is still what it was
            assert np.array_equal(again._shared.vector, body)
            assert not np.array_equal(again._personal.vector, mine)
            break
    with pytest.raises(TensorMismatch, match="no values"):
        train(head.program, head.layout, Examples(x, y), plan, start=Start(shared=body))
    with pytest.raises(TensorMismatch, match="nothing would be learned"):
        divided(head.layout, ("*",))


def test_steps_are_bounded(head: Head, boxes) -> None:
    x, y = boxes[0][0]
    found = train(head.program, head.layout, Examples(x, y), Training(max_steps=7), start=Start(shared=head.vector))
    assert found.n_steps == 7


def test_what_is_not_finite_is_never_an_update(head: Head, boxes) -> None:
    x, y = boxes[0][0]
    training = LocalTraining(
        head.program, head.layout, Examples(x, y), Training(learning_rate=1e30), start=Start(shared=head.vector)
    )
    with pytest.raises(TrainingDiverged, match="nothing of it is sent"):
        list(training.pieces())
    assert training.trained is None
    broken = head.vector
    broken[7] = np.nan
    with pytest.raises(TrainingDiverged):
        train(head.program, head.layout, Examples(x, y), Training(), start=Start(shared=broken))


def test_examples_and_vectors_that_do_not_fit_are_refused(head: Head, boxes) -> None:
    x, y = boxes[0][0]
    with pytest.raises(TensorMismatch, match="no labelled sample"):
        train(head.program, head.layout, Examples(x[:0], y[:0]), Training(), start=Start(shared=head.vector))
    with pytest.raises(TensorMismatch, match="elements"):
        train(head.program, head.layout, Examples(x, y), Training(), start=Start(shared=head.vector[1:]))
    with pytest.raises(TensorMismatch, match="no sample's class"):
        train(head.program, head.layout, Examples(x, y * 0 + 10), Training(), start=Start(shared=head.vector))
    with pytest.raises(TensorMismatch, match="targets"):
        Examples(x, y[1:])
    with pytest.raises(ModelUntrainable, match="does not take arrays"):
        train(head.program, head.layout, Examples(x[:, :9], y), Training(), start=Start(shared=head.vector))


def test_a_label_that_the_model_has_not_costs_its_own_sample_alone(head: Head, boxes) -> None:
    x, y = boxes[0][0]
    wrong = y.copy()
    wrong[[3, 40]] = 10, 99
    fits = np.delete(np.arange(len(y)), [3, 40])
    start = Start(shared=head.vector)
    alone = train(head.program, head.layout, Examples(x[fits], y[fits]), Training(), start=start)
    for features in (x, list(x)):
        found = train(head.program, head.layout, Examples(features, wrong), Training(), start=start)
        assert found.n_samples == len(y) - 2
        assert np.array_equal(found.delta, alone.delta)
    beside = compare(head.program, head.arrays, head.arrays, Examples(x, wrong))
    assert beside.base.n == len(y) - 2
    with pytest.raises(TensorMismatch, match="class of 99"):
        evaluate(head.program, head.arrays, Examples(x, wrong))


@pytest.mark.parametrize(
    "plan",
    [
        {"batch": 0},
        {"epochs": 0},
        {"epochs": 10**9},
        {"max_steps": -1},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
    ],
    ids=str,
)
def test_plans_that_nobody_can_follow_are_refused(head: Head, boxes, plan: dict) -> None:
    x, y = boxes[0][0]
    with pytest.raises(BadMessage, match="wanted"):
        train(head.program, head.layout, Examples(x, y), Training(**plan), start=Start(shared=head.vector))


def test_counting_yields_too(large: Head) -> None:
    """Two heads on a hundred samples: no piece is more than three samples of 1.3 million weights."""
    random = np.random.default_rng(1)
    examples = Examples(random.normal(size=(100, 1280)).astype(np.float32), random.integers(0, 1000, 100))
    pauses: list[int] = []
    compare(large.program, large.arrays, large.arrays, examples, between=lambda: pauses.append(1))
    assert len(pauses) == 2 * 34


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Head:
    """1,280 features and 1,000 classes: 1.3 million weights, as of a photo classifier."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(0, 0.02, (1280, 1000)).astype(np.float32), "b": np.zeros(1000, np.float32)}
    folder = tmp_path_factory.mktemp("large")
    path = external(made([node("Gemm", "x w b", "y")], weights, ["n", 1280], {"y": ["n", 1000]}), ["w", "b"], folder)
    return read_head(path, "x", {"head.bin": path.with_name("head.bin").stat().st_size})


def test_large_batches_are_divided_and_come_to_the_same(large: Head) -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(64, 1280)).astype(np.float32), random.integers(0, 1000, 64)
    plan = Training(epochs=1, batch=64)
    training = LocalTraining(large.program, large.layout, Examples(x, y), plan, start=Start(shared=large.vector))
    assert sum(1 for _ in training.pieces()) == 3 * 22  # three samples a piece: measured, learned, measured
    whole = LocalTraining(large.program, large.layout, Examples(x, y), plan, start=Start(shared=large.vector))
    whole._rows = 64
    assert sum(1 for _ in whole.pieces()) == 2 * 22 + 3  # the batch, with a pause after each product
    assert training.trained is not None
    assert whole.trained is not None
    assert np.allclose(training.trained.delta, whole.trained.delta, atol=1e-6)


def test_a_request_comes_first(large: Head, tmp_path: Path) -> None:
    """Training stands still within 100 ms of a request, while an engine computes beside it, and goes on afterwards."""
    image = made([node("MatMul", "x w", "y")], {"w": np.eye(512, dtype=np.float32)}, ["n", 512], {"y": ["n", 512]})
    session = ort.InferenceSession(image.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    x, y = random.normal(size=(48, 1280)).astype(np.float32), random.integers(0, 1000, 48)
    wanted, stands, goes_on = threading.Event(), threading.Event(), threading.Event()

    def between() -> None:
        if wanted.is_set():
            stands.set()
            assert goes_on.wait(10)

    found: list = []
    plan = Training(epochs=8)
    thread = threading.Thread(
        target=lambda: found.append(
            train(large.program, large.layout, Examples(x, y), plan, start=Start(shared=large.vector), between=between)
        )
    )
    thread.start()
    waits_s = []
    try:
        for _ in range(4):
            time.sleep(0.01)
            goes_on.clear()
            wanted.set()
            asked_s = time.perf_counter()
            while not stands.wait(0.02) and thread.is_alive():
                pass
            if stands.is_set():
                waits_s.append(time.perf_counter() - asked_s)
            session.run(None, {"x": random.normal(size=(8, 512)).astype(np.float32)})
            wanted.clear()
            stands.clear()
            goes_on.set()
    finally:
        wanted.clear()
        goes_on.set()
        thread.join(30)
    assert sorted(waits_s)[1] < 0.1, waits_s  # the second best: a machine that is busy with other tests may stall once
    assert found[0].n_steps == 24
    alone = train(large.program, large.layout, Examples(x, y), plan, start=Start(shared=large.vector))
    assert np.array_equal(found[0].delta, alone.delta)


def test_its_memory_is_a_few_times_what_learns(large: Head) -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(32, 1280)).astype(np.float32), random.integers(0, 1000, 32)
    start = Start(shared=large.vector)
    tracemalloc.start()
    try:
        train(large.program, large.layout, Examples(x, y), Training(max_steps=2), start=start)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * start.shared.nbytes


def test_whoever_drives_it_may_give_up(head: Head, boxes) -> None:
    x, y = boxes[0][0]

    class Enough(Exception):
        pass

    def between() -> None:
        raise Enough

    with pytest.raises(Enough):
        train(head.program, head.layout, Examples(x, y), Training(), start=Start(shared=head.vector), between=between)
