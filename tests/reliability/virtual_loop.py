"""An event loop on virtual time: one thread, one order, no waiting; programs in it are killed or frozen.

Design: a `Node` stands for one process of a machine. Every task that it starts carries it in a context variable; the
loop drops every callback of a dead node, so that a kill runs no `finally` and no handler, as SIGKILL does. Sets of
tasks and futures iterate in the order of their making, so that a run depends on nothing but its seed.
"""

import asyncio
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

NODE: ContextVar["Node | None"] = ContextVar("node", default=None)
"""The process that the running code belongs to; None for the harness itself."""


class PowerCut(BaseException):
    """The process ended here: nothing below this line of it happens."""


class Stuck(AssertionError):
    """Nothing is left that could ever happen, and the run is not over."""


class Node:
    """One life of one process.

    Attributes:
        clock_start_s: what its monotonic clock says at the loop's zero: no two lives agree.
        job_s: mean seconds that a job in a thread takes.
    """

    def __init__(self, name: str, clock_start_s: float, job_s: float = 0.001) -> None:
        self.name = name
        self.clock_start_s = clock_start_s
        self.job_s = job_s
        self.is_dead = False
        self.is_frozen = False
        self.tasks: list[asyncio.Task] = []
        self.backlog: list[events.Handle] = []


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. Attributes: now_s, seconds since the run began; n_steps, callbacks that ran."""

    def __init__(self, seed: object) -> None:
        super().__init__()
        self._selector = _Nothing(self)
        self._clock_resolution = 1e-6
        self._rng = Random(f"loop {seed}")
        self._n_made = 0
        self._nodes: list[Node] = []
        self.now_s = 0.0
        self.n_steps = 0
        self.failures: list[dict[str, Any]] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _loop, told: self.failures.append(told))

    # -- time

    def time(self) -> float:
        node = NODE.get()
        return self.now_s if node is None else self.now_s + node.clock_start_s

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_at(
        self, when: float, callback: Callable, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        node = NODE.get()
        timer = _Timer(when - (node.clock_start_s if node else 0.0), callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def call_later(
        self, delay: float, callback: Callable, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _call_soon(self, callback: Callable, args: Any, context: Context | None) -> asyncio.Handle:
        handle = _Soon(callback, args, self, context)
        self._ready.append(handle)
        return handle

    # -- order

    def number(self) -> int:
        self._n_made += 1
        return self._n_made

    def create_future(self) -> asyncio.Future:
        return _Future(loop=self, number=self.number())

    def _make_task(
        self, _loop: object, coroutine: Coroutine, context: Context | None = None, **other: Any
    ) -> asyncio.Task:
        node = (context or copy_context()).get(NODE)
        if context is not None:
            other["context"] = context
        task = _Task(coroutine, loop=self, number=self.number(), **other)
        if node is not None:
            node.tasks.append(task)
            if node.is_dead:
                task._log_destroy_pending = False
        return task

    # -- threads

    def run_in_executor(self, _executor: object, func: Callable, *args: Any) -> asyncio.Future:
        """The job runs here, a moment later; one that is cancelled before it began may run all the same."""
        node, future = NODE.get(), self.create_future()
        delay_s = self._rng.expovariate(1 / node.job_s) if node else 0.0
        runs_cancelled = self._rng.random() < 0.5
        self.call_later(delay_s, self._run_job, future, runs_cancelled, func, args)
        return future

    def _run_job(self, future: asyncio.Future, runs_cancelled: bool, func: Callable, args: tuple) -> None:
        if future.cancelled() and not runs_cancelled:
            return
        try:
            result = func(*args)
        except PowerCut:
            return
        except BaseException as exc:  # noqa: BLE001 (as a thread hands on whatever its job raised)
            if not future.cancelled():
                future.set_exception(exc)
        else:
            if not future.cancelled():
                future.set_result(result)

    # -- processes

    def start(self, node: Node, program: Coroutine) -> asyncio.Task:
        """Run a program as this process's main task."""
        if node not in self._nodes:
            self._nodes.append(node)
        context = copy_context()
        context.run(NODE.set, node)
        return self.create_task(program, context=context)

    def kill(self, node: Node) -> None:
        """End a process now: none of its callbacks runs again."""
        node.is_dead = True
        node.backlog.clear()
        for task in node.tasks:
            task._log_destroy_pending = False

    def freeze(self, node: Node) -> None:
        """Stop a process as SIGSTOP does."""
        node.is_frozen = True

    def thaw(self, node: Node) -> None:
        """Let it go on; what fell due meanwhile runs at once."""
        node.is_frozen = False
        self._ready.extend(node.backlog)
        node.backlog.clear()

    def run(self, program: Coroutine) -> Any:
        """Run a program (the harness) to its end, and bury all processes."""
        try:
            return self.run_until_complete(program)
        finally:
            for node in self._nodes:
                self.kill(node)
            for node in self._nodes:
                for task in node.tasks:
                    _bury(task)
            self._ready.clear()
            self._scheduled.clear()
            self.close()


def _bury(task: asyncio.Task) -> None:
    """Close what a dead process left, and look at errors that nobody will."""
    if task.done():
        if not task.cancelled():
            task.exception()
        return
    try:
        task.get_coro().close()
    except BaseException:  # noqa: BLE001 (whatever its handlers say in its grave)
        return


class _Nothing:
    """A selector on nothing: to wait is to move the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list:
        if timeout is None:
            raise Stuck(f"at {self._loop.now_s:.3f} s nothing is left that could happen")
        self._loop.now_s += timeout
        return []

    def close(self) -> None:
        pass


def _may_run(handle: asyncio.Handle) -> bool:
    node = handle._context.get(NODE)
    if node is None:
        return True
    if node.is_frozen and not node.is_dead:
        node.backlog.append(handle)
        return False
    return not node.is_dead


class _Soon(asyncio.Handle):
    def _run(self) -> None:
        if _may_run(self):
            self._loop.n_steps += 1
            super()._run()


class _Timer(asyncio.TimerHandle):
    def _run(self) -> None:
        if _may_run(self):
            self._loop.n_steps += 1
            super()._run()


class _Future(asyncio.Future):
    def __init__(self, *, loop: VirtualLoop, number: int) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Task(asyncio.Task):
    def __init__(self, coroutine: Coroutine, *, loop: VirtualLoop, number: int, **other: Any) -> None:
        self.number = number
        super().__init__(coroutine, loop=loop, **other)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other
