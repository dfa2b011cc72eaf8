"""SCAFFOLD over coded updates: the gateway's variate stays the mean of the boxes' own, whatever comes too late."""

from pathlib import Path

import numpy as np
import pytest

from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.aggregation.scaffold import Scaffold, halves
from hybrid.federated.box.work import Learnable, Learned, Left, Work, given_back, wire_layout
from hybrid.federated.campaign import Coding, Training
from hybrid.federated.coding.catalog import form
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import open_head
from hybrid.federated.messages import Task, Terms, Weights
from tests.rounds.lab import artifact_in

N_BOXES = 3


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Learnable:
    folder: Path = tmp_path_factory.mktemp("digits")
    artifact = artifact_in(folder / "made", learns=("w2", "b2"))
    return Learnable.of(open_head(artifact.folder, artifact.manifest, "original"))


def terms_of(learnable: Learnable, up: str) -> Terms:
    return Terms(
        model="digits",
        artifact_digest="",
        variant="original",
        layout=learnable.layout,
        training=Training(epochs=1),
        coding=Coding(up=up, share=0.05),
        is_uniform=True,
        scaffold=True,
    )


class Box:
    """Samples of two classes, and what the campaign left here."""

    def __init__(self, learnable: Learnable, terms: Terms, number: int) -> None:
        rng = np.random.default_rng(number)
        features = rng.random((40, 64), np.float32)
        self.examples = Examples(features, rng.integers(2 * number, 2 * number + 2, size=40))
        self.learnable, self.terms, self.number = learnable, terms, number
        self.left = Left()

    def learned(self, step: int, weights: np.ndarray, control: np.ndarray) -> Learned:
        task = Task(
            id=f"{step}-{self.number}",
            campaign="c",
            kind="train",
            weights=Weights(step=step, sha256="", control=control.astype("<f4").tobytes()),
        )
        work = Work(task=task, terms=self.terms, learnable=self.learnable, left=self.left)
        return work.learned(work.trained(weights, self.examples, lambda: None))

    def settle(self, learned: Learned, *, counts: bool) -> None:
        """As box and simulation do."""
        residual = learned.left.residual
        if counts:
            self.left = Left(residual=residual, control=learned.left.control)
        else:
            back = given_back(self.terms, learned.form, learned.content, residual)
            self.left = Left(residual=back, control=self.left.control)


@pytest.mark.parametrize("up", ["float32", "int8", "top-k"])
def test_what_came_too_late_is_in_no_variate(learnable: Learnable, up: str) -> None:
    """Every second update is late. Whatever of it waited in the residual would come beside the next one's whole."""
    terms = terms_of(learnable, up)
    layout, coder = wire_layout(terms), form(up, 0.05)
    boxes = [Box(learnable, terms, number) for number in range(N_BOXES)]
    server, weights = Scaffold(terms.layout), learnable.shared(terms)
    for step in range(8):
        mean, n_counted = RunningMean(layout), 0
        for box in boxes:
            learned = box.learned(step, weights, server.control)
            counts = (step + box.number) % 2 == 0
            box.settle(learned, counts=counts)
            if counts:
                mean.add(coder.decode(learned.content, layout))
                n_counted += 1
        weights = server.step(weights, mean.mean(), n_counted, N_BOXES)
    own = np.mean([box.left.control for box in boxes], axis=0)
    assert np.abs(own).max() > 0.01
    np.testing.assert_allclose(server.control, own, atol=1e-5 * np.abs(own).max())


@pytest.mark.parametrize("up", ["int8", "top-k"])
def test_the_weights_half_still_owes_what_was_not_said(learnable: Learnable, up: str) -> None:
    terms = terms_of(learnable, up)
    box = Box(learnable, terms, 0)
    control = np.zeros(terms.layout.n_elements, np.float32)
    learned = box.learned(0, learnable.shared(terms), control)
    assert learned.left.residual is not None
    owed, of_control = halves(learned.left.residual)
    assert np.abs(owed).max() > 0
    assert not of_control.any()
    box.settle(learned, counts=False)
    back, of_control = halves(box.left.residual)
    assert not of_control.any()
    said = halves(form(up, 0.05).decode(learned.content, wire_layout(terms)))[0]
    np.testing.assert_array_equal(back, owed + said if up == "top-k" else owed)
