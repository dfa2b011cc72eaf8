"""Boxes that lost their gateway together do not come back together; without jitter they would."""

import asyncio
import logging
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from edge_agent.follow.follow import Follow
from tests.reliability.herd import herd

N_BOXES = 120


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_a_herd_comes_back_spread_over_a_minute() -> None:
    found = herd(N_BOXES, 30.0, seed=1)
    assert found.back_p95_s < 60.0
    # The bar of 10 % is for a thousand (docs/reliability.md); of so few one second holds more by chance.
    assert found.peak_ratio < 0.2


def test_without_jitter_the_herd_would_be_seen() -> None:
    async def rest(self: Follow, bound_s: float) -> None:
        await asyncio.sleep(bound_s)

    with patch.object(Follow, "_rest", rest):
        assert herd(N_BOXES, 30.0, seed=1).peak_ratio > 0.4
