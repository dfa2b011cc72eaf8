"""Blocking work in daemon threads, so that a service can end while a model is still being opened.

Design: the threads of `ThreadPoolExecutor` are joined when the interpreter exits; a preparation of two minutes would
keep a stopped service alive for that long. A daemon thread that comes back from an engine's native code while the
interpreter is being taken down aborts the process instead, so that `end_process` ends it before. A turn belongs to
the thread, not to its caller: one that is cancelled does not end it, and a next one beside it would be one too many.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar
from weakref import WeakSet

T = TypeVar("T")
_threads: "WeakSet[Thread]" = WeakSet()


def end_process(exit_code: int = 0) -> None:
    """The last words of a service that has closed everything: end at once where background work still runs."""
    if any(thread.is_alive() for thread in list(_threads)):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


class Background:
    """Runs blocking calls, at most `n_threads` at a time; later ones wait their turn."""

    def __init__(self, name: str, *, n_threads: int) -> None:
        self._name = name
        self._turns = asyncio.Semaphore(n_threads)

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result; a caller that is cancelled leaves the thread to end by itself."""
        await self._turns.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        work = Thread(target=_work, args=(loop, future, call, self._turns), name=self._name, daemon=True)
        _threads.add(work)
        try:
            work.start()
        except RuntimeError:  # no thread to be had
            self._turns.release()
            raise
        return await future


def _work(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[T]", call: Callable[[], T], turns: asyncio.Semaphore
) -> None:
    def settle(result: T | None, error: BaseException | None) -> None:
        turns.release()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    result, error = None, None
    try:
        result = call()
    except BaseException as exc:  # noqa: BLE001 (handed to whoever awaits)
        error = exc
    with suppress(RuntimeError):  # the loop closed meanwhile: nobody waits
        loop.call_soon_threadsafe(settle, result, error)
