"""A part that breaks is run again, whatever it was that broke it; only the agent ends it."""

import asyncio
from random import Random

import pytest

from edge_agent.part import Problem
from edge_agent.tending import Tending
from hybrid.errors import StorageError


class Breaking:
    """A part that is broken once."""

    name = "breaking"

    def __init__(self, failure: BaseException) -> None:
        self._failure: BaseException | None = failure
        self.runs_on = asyncio.Event()

    async def run(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        self.runs_on.set()
        await asyncio.Event().wait()

    def problems(self) -> tuple[Problem, ...]:
        return ()

    def status(self) -> object:
        raise KeyError("nobody knows")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RuntimeError("broken"), "internal"),
        (asyncio.CancelledError(), "internal"),
        (ExceptionGroup("two", [StorageError("the disk refused"), RuntimeError("broken")]), "storage"),
    ],
)
async def test_a_part_that_broke_is_run_again(failure: BaseException, code: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edge_agent.tending._FIRST_PAUSE_S", 0.05)
    part = Breaking(failure)
    tending = Tending([part], Random(1))
    running = asyncio.create_task(tending.run())
    await asyncio.sleep(0.01)
    assert [problem.code for problem in tending.problems()] == [code]
    async with asyncio.timeout(5):
        await part.runs_on.wait()
    assert tending.problems() == ()
    assert tending.status() == {"breaking": {}}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
