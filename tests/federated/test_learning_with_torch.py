"""A full model trained with torch comes to what numpy comes to."""

from pathlib import Path

import numpy as np
import pytest

from hybrid.errors import TensorMismatch, TrainingDiverged
from hybrid.federated.campaign import Training
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import read_head
from hybrid.federated.learning.training import Start, train
from hybrid.federated.learning.with_torch import TorchTraining, layout_of, vector_of
from tests.federated.learning_making import digits, reference_model

pytestmark = pytest.mark.torch


def module():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10))


@pytest.mark.parametrize("plan", [{}, {"proximal": 0.1, "momentum": 0.5, "weight_decay": 0.01}], ids=["plain", "all"])
def test_it_learns_what_numpy_learns(tmp_path: Path, plan: dict) -> None:
    path = reference_model(tmp_path)
    head = read_head(path, "image", {"head.bin": path.with_name("head.bin").stat().st_size})
    net = module()
    layout = layout_of(net)
    assert layout.names == ("0.weight", "0.bias", "3.weight", "3.bias")
    w1, b1, w2, b2 = layout.arrays(vector_of(net)).values()
    flat = np.concatenate([w1.T.ravel(), b1, w2.T.ravel(), b2])
    x, y = digits()[0][3]
    correction = np.random.default_rng(0).normal(0, 0.01, 4810).astype(np.float32)
    turned = np.concatenate(
        [
            correction[:4096].reshape(64, 64).T.ravel(),
            correction[4096:4160],
            correction[4160:4800].reshape(10, 64).T.ravel(),
            correction[4800:],
        ]
    )
    training = TorchTraining(
        module, Examples(x, y), Training(**plan), start=Start(shared=vector_of(net), correction=correction, seed=4)
    )
    n_pieces = sum(1 for _ in training.pieces())
    found = training.trained
    assert found is not None
    wanted = train(
        head.program, head.layout, Examples(x, y), Training(**plan), start=Start(shared=flat, correction=turned, seed=4)
    )
    f1, c1, f2, c2 = layout.arrays(found.delta).values()
    assert np.allclose(np.concatenate([f1.T.ravel(), c1, f2.T.ravel(), c2]), wanted.delta, atol=1e-4)
    assert (found.n_steps, found.n_samples) == (wanted.n_steps, wanted.n_samples)
    assert n_pieces >= found.n_steps
    assert found.loss_before == pytest.approx(wanted.loss_before, rel=1e-3)
    assert found.loss_after == pytest.approx(wanted.loss_after, rel=1e-2)


def test_personal_layers_stay_and_diverging_is_told() -> None:
    x, y = digits()[0][3]
    vector = vector_of(module())
    plan = Training(personal=("3.*",), epochs=1)
    training = TorchTraining(module, Examples(x, y), plan, start=Start(shared=vector[:4160], personal=vector[4160:]))
    list(training.pieces())
    assert training.trained is not None
    assert training.trained.delta.shape == (4160,)
    assert training.trained.personal.shape == (650,)
    with pytest.raises(TensorMismatch, match="never leave"):
        TorchTraining(module, Examples(x, y), plan, start=Start(shared=vector[:4160]))
    with pytest.raises(TrainingDiverged):
        list(TorchTraining(module, Examples(x, y), Training(learning_rate=1e30), start=Start(shared=vector)).pieces())
