"""Versions of one model, as a publisher made them."""

from random import Random

import pytest

from tests.install.box_lab import Fleet, Made, make


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture(scope="session")
def versions(fleet: Fleet) -> list[Made]:
    """Three versions: the weights are shared by the first two, the labels by all."""
    random = Random(5)
    weights, others = random.randbytes(5000), random.randbytes(5000)
    return [
        make(
            {"model.onnx": random.randbytes(3000), "weights/w.bin": blob, "labels.txt": b"cat\ndog\n", "empty": b""},
            key=fleet.publisher,
            version=str(number),
            sequence=number,
        )
        for number, blob in ((1, weights), (2, weights), (3, others))
    ]
