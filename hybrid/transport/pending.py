"""One request in flight: its future, its limits, and how it ends exactly once."""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from hybrid.errors import HybridError
from hybrid.wire.message import InferRequest, InferResponse


class Upload(Protocol):
    """How far a request's message is: read from any thread, written by the I/O thread."""

    sent_bytes: int
    acked_bytes: int


class Reply(Future[InferResponse]):
    """The answer to come; beside it, how much of the request has gone and has been acknowledged by now."""

    def __init__(self) -> None:
        super().__init__()
        self.upload: Upload | None = None

    @property
    def sent_bytes(self) -> int:
        """Bytes of the request that were handed to the network so far."""
        return self.upload.sent_bytes if self.upload is not None else 0

    @property
    def acked_bytes(self) -> int:
        """Bytes of the request that the gateway has acknowledged so far."""
        return self.upload.acked_bytes if self.upload is not None else 0


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
    future: Reply = field(default_factory=Reply)
    timer: asyncio.TimerHandle | None = None
    _is_claimed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it has a result, an error, or was cancelled."""
        return self.future.done()

    def succeed(self, response: InferResponse) -> None:
        """Ends with the answer, unless it has ended or the caller cancelled."""
        if self._claim():
            self.future.set_result(response)

    def fail(self, error: HybridError) -> None:
        """Ends with an error, unless it has ended or the caller cancelled."""
        if self._claim():
            self.future.set_exception(error)

    def notice_cancelled(self) -> None:
        """Tells those who wait for the future that the caller cancelled it."""
        if self.future.cancelled():
            self._claim()

    def _claim(self) -> bool:
        """Whether its end is still to be given; true at most once."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self._is_claimed:
            return False
        self._is_claimed = True
        return self.future.set_running_or_notify_cancel()
