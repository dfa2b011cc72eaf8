"""A pytest fixture that builds labs: `pytest_plugins = ["devices.lab.pytest_plugin"]` in the topmost `conftest.py`.

A test asks for `lab_of` and calls it as `devices.lab.lab.Lab` is called. What it builds is closed after the test. Where
this machine does not allow what was asked for, the test is skipped and the reason said.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devices.errors import EmulationUnavailable
from devices.lab.lab import Lab


@pytest.fixture
def lab_of() -> Iterator[Callable[..., Lab]]:
    """Builds labs: `lab_of("lte", kind="tun")`; the words and settings of `Lab`."""
    with contextlib.ExitStack() as cleanup:

        def build(*words: Any, **settings: Any) -> Lab:
            try:
                return cleanup.enter_context(Lab(*words, **settings))
            except EmulationUnavailable as unavailable:
                pytest.skip(str(unavailable))

        yield build
