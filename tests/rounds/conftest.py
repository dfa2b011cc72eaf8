"""What most tests of rounds begin with; a test of another gateway makes its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rounds.lab import Lab, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A gateway's rounds and six boxes, of whose model the last layer learns."""
    made = Lab(tmp_path, n_boxes=6, learns=("w2", "b2"))
    async with running(made):
        yield made
    made.close()
