"""Rounds of averaging beside Flower's own average: the same accuracy in every round; only where Flower is installed.

Flower's package has other pins than ours; into a folder of its own it goes with
`pip install --target FOLDER flwr==1.41.0`, and `PYTHONPATH=FOLDER` lets this test find it.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest

from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.campaign import Training
from hybrid.federated.learning.evaluation import evaluate
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import read_head
from hybrid.federated.learning.training import Start, train
from tests.federated.learning_making import digits, reference_model


def test_each_round_has_the_accuracy_that_flowers_average_gives(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flower = pytest.importorskip(
            "flwr.server.strategy.aggregate", reason="Flower is not installed", exc_type=ImportError
        )
    path = reference_model(tmp_path)
    head = read_head(path, "image", {"head.bin": path.with_name("head.bin").stat().st_size})
    parts, (x, y) = digits()
    test, ours, theirs = Examples(x, y), head.vector, head.vector
    accuracies: list[tuple[float, float]] = []
    for step in range(15):
        mean, results = RunningMean(head.layout), []
        for box, (features, labels) in enumerate(parts):
            examples = Examples(features, labels)
            for vector in (ours, theirs):
                start = Start(shared=vector, seed=100 * step + box)
                found = train(head.program, head.layout, examples, Training(), start=start)
                if vector is ours:
                    mean.add(found.delta, len(labels))
                if vector is theirs:
                    arrays = head.layout.arrays(vector + found.delta)
                    results.append(([*arrays.values()], len(labels)))
        averaged = flower.aggregate(results)
        ours = ours + mean.mean()
        theirs = head.layout.vector(dict(zip(head.layout.names, (np.float32(one) for one in averaged), strict=True)))
        accuracies.append(
            (
                evaluate(head.program, head.layout.arrays(ours), test).accuracy,
                evaluate(head.program, head.layout.arrays(theirs), test).accuracy,
            )
        )
    assert all(one == other for one, other in accuracies), accuracies
    assert accuracies[-1][0] >= 0.95
    assert np.abs(ours - theirs).max() < 1e-3
