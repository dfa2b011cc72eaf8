"""SIGTERM and SIGINT as events: the first asks to drain, the second to hurry."""

import asyncio
import signal
from types import TracebackType
from typing import Self


class StopSignal:
    """A context manager that listens to the signals while it is open.

    Attributes:
        first: set by the first signal.
        second: set by the second one.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _heard(self) -> None:
        if self.first.is_set():
            self.second.set()
        self.first.set()
