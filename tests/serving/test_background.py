"""Blocking work in threads: never more at once than there are turns, whoever gives up waiting."""

import asyncio
import threading

import pytest

from hybrid.serving.background import Background


async def test_a_cancelled_caller_does_not_give_its_threads_turn_away() -> None:
    work = Background("test", n_threads=1)
    begun, go_on = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go_on.wait(20)

    async with asyncio.timeout(20):
        waiting = asyncio.create_task(work.run(first))
        await asyncio.to_thread(begun.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        later = asyncio.create_task(work.run(go_on.is_set))
        await asyncio.wait([later], timeout=0.2)
        assert not later.done()
        go_on.set()
        assert await later


async def test_a_call_that_raises_gives_its_turn_back() -> None:
    work = Background("test", n_threads=1)
    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await work.run(lambda: 1 // 0)
        assert await work.run(lambda: 7) == 7
