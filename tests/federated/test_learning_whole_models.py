"""A whole model on a box: what it learns is what torch's own training comes to; without torch nothing of it fails."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from cloud_gateway.rounds.evaluation import judge_of
from hybrid.artifact.folder import from_onnx
from hybrid.artifact.lineage_note import LINEAGE_KEY, noted_lineage
from hybrid.artifact.manifest import LineageStep
from hybrid.errors import ModelInvalid
from hybrid.federated.campaign import Training
from hybrid.federated.learning.evaluation import right_of
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import Head, open_head
from hybrid.federated.learning.operators import by_torch
from hybrid.federated.learning.torch_needs import torch_operators
from hybrid.federated.learning.training import Start, train
from hybrid.federated.learning.whole_file import whole_model, write_whole
from tests.federated.learning_making import external, made, node
from tests.federated.test_learning_whole_program import CASES, opened
from tests.federated.whole_making import digit_images, whole_artifact


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    artifact = whole_artifact(tmp_path_factory.mktemp("whole") / "eyes")
    return open_head(artifact.folder, artifact.manifest, "original")


def by_hand(head: Head, x: np.ndarray, y: np.ndarray, plan: Training, seed: int) -> np.ndarray:
    """The same training written with torch alone."""
    import torch
    from torch.nn import functional

    w = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in head.arrays.items()}
    start = {name: one.detach().clone() for name, one in w.items()}
    mean, variance = torch.full((8,), 0.2), torch.ones(8)
    step = torch.optim.SGD(w.values(), plan.learning_rate, plan.momentum, weight_decay=plan.weight_decay)
    random = np.random.default_rng(seed)
    for _ in range(plan.epochs):
        order = random.permutation(len(y))
        for first in range(0, len(order), plan.batch):
            some = order[first : first + plan.batch]
            c1 = functional.conv2d(torch.from_numpy(x[some]), w["conv1.w"], w["conv1.b"], padding=1)
            n1 = functional.batch_norm(c1, mean, variance, w["norm.scale"], w["norm.shift"])
            c2 = functional.conv2d(functional.max_pool2d(n1.relu(), 2), w["conv2.w"], w["conv2.b"], padding=1)
            scores = c2.relu().amax((2, 3)) @ w["last.w"] + w["last.b"]
            step.zero_grad()
            functional.cross_entropy(scores, torch.from_numpy(y[some])).backward()
            for name, one in w.items():
                one.grad += plan.proximal * (one.detach() - start[name])
            step.step()
    return head.layout.vector({name: one.detach().numpy() for name, one in w.items()})


@pytest.mark.torch
@pytest.mark.parametrize("plan", [{}, {"proximal": 0.1, "momentum": 0.5, "weight_decay": 0.01}], ids=["plain", "all"])
def test_it_learns_what_torch_learns(head: Head, plan: dict) -> None:
    x, y = digit_images()
    x, y = x[:120], y[:120]
    training = Training(**{"epochs": 3, "learning_rate": 0.05} | plan)
    found = train(head.program, head.layout, Examples(x, y), training, start=Start(shared=head.vector, seed=3))
    assert found.loss_after < 0.9 * found.loss_before
    wanted = by_hand(head, x, y, training, 3) - head.vector
    assert np.abs(found.delta - wanted).max() <= 1e-4 < np.abs(wanted).max()


@pytest.mark.torch
def test_the_gateway_judges_by_its_engine_and_says_the_same(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digit_images()
    learned = {name: array * 1.3 for name, array in head.arrays.items()}
    wanted = right_of(head.program, learned, Examples(x[:200], y[:200]))
    monkeypatch.setattr(by_torch, "find_spec", lambda _name: None)
    by_torch.loaded.cache_clear()
    judge = judge_of(head, {"image": x[:200], "labels": y[:200]})
    assert np.array_equal(judge.right(learned), wanted)
    assert 0 < wanted.mean() < 1


def test_one_file_has_what_was_learned_and_all_else_as_it_was(head: Head, tmp_path: Path) -> None:
    learned = {name: array + np.float32(0.1) for name, array in head.arrays.items() if name != "last.b"}
    onnx.save(whole_model(head, learned), tmp_path / "one.onnx")
    proto = onnx.load(tmp_path / "one.onnx")
    found = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    assert np.array_equal(found["conv2.w"], learned["conv2.w"])
    assert np.array_equal(found["last.b"], head.arrays["last.b"])
    assert np.array_equal(found["norm.mean"], np.full(8, 0.2, np.float32))
    ort.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.torch
def test_a_model_too_large_for_one_message_has_its_weights_beside_it(head: Head, tmp_path: Path) -> None:
    step = LineageStep(step="rounds:abc", artifact_digest="0" * 64, detail="learned")
    write_whole(whole_model(head, {}), tmp_path / "m.onnx", (step,), most_bytes=1000)
    assert {one.name for one in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    x = digit_images()[0][:5]
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"image": x})[0] - head.program.answer(head.arrays, x)).max() <= 1e-5
    assert noted_lineage(tmp_path / "m.onnx") == (step,)


def test_a_lineage_that_is_none_is_refused(head: Head, tmp_path: Path) -> None:
    model = whole_model(head, {})
    onnx.helper.set_model_props(model, {LINEAGE_KEY: "[1]", "other": "x"})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelInvalid, match=r"metadata entry hybrid\.lineage is no lineage"):
        from_onnx(tmp_path / "m.onnx", "m", "1")
    onnx.helper.set_model_props(model, {"other": "x"})
    onnx.save(model, tmp_path / "m.onnx")
    assert from_onnx(tmp_path / "m.onnx", "m", "1").manifest.lineage == ()


@pytest.mark.parametrize("name", CASES)
def test_what_needs_torch_is_seen_without_loading_a_weight(tmp_path: Path, name: str) -> None:
    path, opened_head = opened(tmp_path, CASES[name])
    assert torch_operators(path, "x") == opened_head.program.by_torch


def test_what_stands_before_the_feature_needs_nothing(tmp_path: Path) -> None:
    nodes = [node("MaxPool", "x", "p", kernel_shape=[2, 2]), node("Flatten", "p", "f"), node("Gemm", "f m", "y")]
    weights = {"m": np.ones((9, 2), np.float32)}
    path = external(made(nodes, weights, ["n", 1, 4, 4], {"y": None}), ["m"], tmp_path)
    assert torch_operators(path, "f") == ()
    assert torch_operators(path, "x") == ("MaxPool",)
    (tmp_path / "no.onnx").write_bytes(b"\x08\xff")
    with pytest.raises(ModelInvalid, match="not an ONNX model"):
        torch_operators(tmp_path / "no.onnx", "x")
