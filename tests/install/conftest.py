"""Versions of one model, as a publisher made them."""

from random import Random

import pytest

from tests.install.box_lab import TRIAL, Fleet, Made, Shelf, committed, live, make
from tests.install.settled import good
from tests.reliability.page_cache import Image


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


@pytest.fixture(scope="module")
def with_one(fleet: Fleet, versions: list[Made]) -> Image:
    image = Image()
    live(image, Shelf(*versions), fleet.trust(), versions[0].assigned(trial=TRIAL), until=committed("1"), prepare=good)
    return image
