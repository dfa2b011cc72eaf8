"""The checker finds planted bugs, each within a thousand seeds; without them the same seeds are clean."""

import logging
from collections.abc import Iterator

import pytest

from tests.reliability.planted import BUGS, planted
from tests.reliability.world import play

FOUND_BY = {
    "a failure blocks the next": (0, "P5"),
    "contents are not checked": (15, "P2"),
    "files are not synced": (0, "P2"),
    "gaps are not told": (2, "P5"),
    "gateway acknowledges first": (14, "P3"),
    "gateway forgets numbers": (2, "P4"),
    "golden outputs are not compared": (22, "P2"),
    "never again after a failure": (2, "P5"),
    "no folder sync of files": (15, "P3"),
    "put returns first": (6, "P3"),
    "results are dropped for room": (69, "P3"),
    "rows leave when sent": (2, "P3"),
    "synchronous normal": (2, "P3"),
}
"""The seed that found it first, and the promise that was broken.

A change of the real parts shifts what a seed draws, so the search goes on from there.
"""

N_SEARCHED = 200


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_there_are_at_least_ten() -> None:
    assert len(BUGS) >= 10
    assert set(FOUND_BY) == set(BUGS)
    assert all(seed + N_SEARCHED <= 1000 for seed, _ in FOUND_BY.values())


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_found(name: str) -> None:
    first, promise = FOUND_BY[name]
    with planted(name):
        for seed in range(first, first + N_SEARCHED):
            outcome = play(seed)
            if any(line.startswith(promise) for line in outcome.broken):
                break
        else:
            pytest.fail(f"{name} was not found by seeds {first} to {first + N_SEARCHED - 1}")
    assert not play(seed).broken, "the seed must be clean without the bug, or something else was found"
