"""The process's one I/O thread: an event loop that owns every connection to gateways."""

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_log = logging.getLogger("hybrid.transport")


class IoThread:
    """A daemon thread with an event loop and one task group; tasks that fail are logged, not contagious."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._stop = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hybrid-io", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Runs a function on the loop, soon; from any thread. False when the loop has ended, as the process does."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine on the loop; from any thread."""
        if not self.call(self._start, work):
            work.close()

    def stop(self, timeout_s: float) -> None:
        """Cancels what runs, ends the thread and closes the loop."""
        self.call(self._stop.set)
        self._thread.join(timeout_s)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None or self._stop.is_set():
            work.close()
        else:
            self._group.create_task(_guarded(work))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._main())
        finally:
            self.loop.close()

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._is_ready.set()
            await self._stop.wait()
            root = asyncio.current_task()
            for task in asyncio.all_tasks():
                if task is not root:
                    task.cancel()


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001  (logged; one failed task must not end the others)
        _log.exception("io.task_failed")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_lock = threading.Lock()
_current: IoThread | None = None
_inherited: list[IoThread] = []
"""In a forked child: the parent's loops. Kept, since collecting one would unregister the parent's sockets."""


def io_thread() -> IoThread:
    """The process's I/O thread; started at first use."""
    global _current
    with _lock:
        if _current is None:
            _current = IoThread()
        return _current


def forget_in_child() -> None:
    """After a fork: the thread is the parent's; the child starts its own when it needs one."""
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _inherited.append(_current)
        _current = None


@atexit.register
def _stop_at_exit() -> None:
    if _current is not None:
        _current.stop(1.0)
