"""Blocking work in threads: never more at once than there are turns, whoever gives up waiting."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hybrid.serving.engines.background import Background
from tests import small_models

ENDING = """
import asyncio, sys, time
import numpy as np
import onnxruntime as ort
from hybrid.serving.engines.background import Background, end_process

session = ort.InferenceSession(sys.argv[1])
feeds = {"n": np.array(20, np.int64), "x": np.eye(128, dtype=np.float32)}

def measure():
    while True:
        session.run(None, feeds)

async def serve():
    asyncio.ensure_future(Background("trial", n_threads=1).run(measure))
    await asyncio.sleep(0.3)

asyncio.run(serve())
print("served")
end_process()
"""


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


def test_a_service_ends_in_order_while_an_engine_still_runs_in_the_background(tmp_path: Path) -> None:
    """Taking the interpreter down under such a thread aborts the process in most cases."""
    model = small_models.loop(tmp_path / "loop.onnx")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", ENDING, str(model)], capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
