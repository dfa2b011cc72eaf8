"""One request in flight: its future, its limits, and how it ends exactly once."""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field

from hybrid.errors import HybridError
from hybrid.wire.message import InferRequest, InferResponse


@dataclass(slots=True, kw_only=True, eq=False)
class Pending:
    """A request between its caller's thread and the I/O thread.

    Attributes:
        request: what is asked.
        stall_s: longest time without progress.
        timeout_s: longest time in all.
        future: what the caller holds.
        timer: ends it after `timeout_s`; I/O thread only.
    """

    request: InferRequest
    stall_s: float
    timeout_s: float
    future: "Future[InferResponse]" = field(default_factory=Future)
    timer: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has a result, an error, or was cancelled."""
        return self.future.done()

    def succeed(self, response: InferResponse) -> None:
        """Ends with the answer, unless the caller cancelled."""
        self._stop_timer()
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(response)

    def fail(self, error: HybridError) -> None:
        """Ends with an error, unless the caller cancelled."""
        self._stop_timer()
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
