"""Two sides, one answer: the gateway's, and the device's beside it from the hedge time on; the first one wins.

Design: the calling thread computes, so a device that wins pays no hand-over between threads. In a race it begins at
once while the request is encoded and sent elsewhere (`courier.py`); with a hedge time it waits for the reply until
then. The reply's arrival is checked on the I/O thread, and only an answer that can be used stops the device
(onnxruntime looks at `terminate` between two operators). What goes wrong on one side leaves the other alone.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

import numpy as np
import onnxruntime

from hybrid.route.departure import Outgoing, assembled
from hybrid.transport.pending import Reply
from hybrid.wire.message import InferResponse

GRACE_S = 1.0
"""The reply's own timer ends it; this much later it is given up without it."""

Compute = Callable[[onnxruntime.RunOptions], list[np.ndarray]]
"""Computes here what the request asks for; ends early when the options' `terminate` is set."""


@dataclass(slots=True)
class Outcome:
    """How a race ended.

    Attributes:
        outputs: the answer.
        sent: what was sent; None where the device was faster than the encoding, or that failed.
        response: the gateway's, where its answer was the first.
        arrived_s: `perf_counter` at its arrival.
        hedged_s: when the device began, in seconds from departure; None if it did not.
        local_s: seconds that the device computed beside the gateway.
        error: what went wrong on the gateway's side, where the device won because of that.
        waited_s: seconds from departure until the reply was withdrawn, where it was.
        sent_bytes: what had gone of the request by then.
        acked_bytes: what the gateway had acknowledged of it by then.
    """

    outputs: list[np.ndarray]
    sent: Outgoing | None = None
    response: InferResponse | None = None
    arrived_s: float = 0.0
    hedged_s: float | None = None
    local_s: float = 0.0
    error: Exception | None = None
    waited_s: float = 0.0
    sent_bytes: int = 0
    acked_bytes: int = 0


class Attempt:
    """One request's way to a gateway and back, as the device sees it that may compute beside it.

    Departs on one thread, arrives on the I/O thread, is waited for and withdrawn on the caller's. Once it is withdrawn
    it is settled whether it was sent: what was not sent by then never will be, and costs nobody anything.

    Attributes:
        options: of the device's run beside it; its `terminate` is set when an answer is there that can be used.
        sent: what was sent; None before that.
        reply: the gateway's answer to come; None before that.
        outputs: the answer, once it is there and can be used.
        error: why there is none.
        over: ends when there is nothing more to wait for (once it is watched).
    """

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        self.sent: Outgoing | None = None
        self.reply: Reply | None = None
        self.outputs: list[np.ndarray] | None = None
        self.error: Exception | None = None
        self.over: Future[None] = Future()
        self._response: InferResponse | None = None
        self._arrived_s = 0.0
        self._lock = Lock()
        self._is_watched = False
        self._is_withdrawn = False

    def depart(self, encode: Callable[[], Outgoing], send: Callable[[Outgoing], Reply]) -> None:
        """Encodes and sends, on whichever thread; what goes wrong is the attempt's error."""
        if not self._is_wanted():
            return  # the device was faster than those who departed before
        try:
            sent = encode()
            with self._lock:
                if not self._is_wanted():
                    return
                self.sent, reply = sent, send(sent)
                self.reply, is_watched = reply, self._is_watched
        except Exception as exc:  # noqa: BLE001  (whatever it is: the device answers)
            self.error = exc
            self._end()
            return
        if is_watched:
            reply.add_done_callback(self._arrive)

    def watch(self) -> None:
        """From now on the reply is taken when it comes, on the I/O thread, and stops the device."""
        with self._lock:
            self._is_watched, reply = True, self.reply
        if reply is not None:
            reply.add_done_callback(self._arrive)

    def withdraw(self) -> None:
        """Nothing is sent any more, and what was sent is cancelled."""
        with self._lock:
            self._is_withdrawn = True
        if self.reply is not None:
            self.reply.cancel()

    def is_over_after(self, hedge_s: float | None, timeout_s: float) -> bool:
        """Whether a reply that nobody watches is there (or failed) when the device should begin, or time is over."""
        if self.reply is None or self.sent is None:
            return True  # it could not depart
        wait_s = timeout_s + GRACE_S if hedge_s is None else max(0.0, self.sent.sent_s + hedge_s - perf_counter())
        try:
            self.reply.exception(wait_s)
        except TimeoutError:
            if not self.reply.done():
                return hedge_s is None
        self._arrive(self.reply)
        return True

    def wait(self, until_s: float) -> None:
        """Waits for the end of one that is watched, until then (`perf_counter`) and a little longer for its timer."""
        grace_s = GRACE_S if self.reply is not None else 0.0
        try:
            self.over.exception(max(0.0, until_s + grace_s - perf_counter()))
        except (TimeoutError, CancelledError):
            return

    def outcome(self, began_s: float | None = None) -> Outcome:
        """The gateway's answer, the device having computed since then; raises what kept it from coming."""
        if self.outputs is None or self.sent is None:
            raise self.error or TimeoutError("no reply came")
        outcome = Outcome(self.outputs, self.sent, self._response, self._arrived_s)
        if began_s is not None:
            outcome.hedged_s, outcome.local_s = max(0.0, began_s - self.sent.sent_s), perf_counter() - began_s
        return outcome

    def overtaken(self, outputs: list[np.ndarray], began_s: float) -> Outcome:
        """The device's answer, or the gateway's that came just before its end; either way the other is withdrawn."""
        now_s = perf_counter()
        self.withdraw()
        if self.outputs is not None:
            return self.outcome(began_s)
        outcome = Outcome(outputs, self.sent, hedged_s=0.0, local_s=now_s - began_s, error=self.error)
        if self.sent is not None and self.reply is not None:
            outcome.hedged_s, outcome.waited_s = max(0.0, began_s - self.sent.sent_s), now_s - self.sent.sent_s
            outcome.sent_bytes, outcome.acked_bytes = self.reply.sent_bytes, self.reply.acked_bytes
        return outcome

    def _is_wanted(self) -> bool:
        return not self._is_withdrawn

    def _arrive(self, reply: "Future[InferResponse]") -> None:
        """Takes what became of the reply, once."""
        sent = self.sent
        if not reply.cancelled() and sent is not None:
            try:
                self._response, self._arrived_s = reply.result(), perf_counter()
                self.outputs = assembled(sent, self._response)  # last: who sees them may ask for all the others
            except Exception as exc:  # noqa: BLE001  (of either side; the device goes on)
                self.error = exc
            else:
                self.options.terminate = True
        self._end()

    def _end(self) -> None:
        if self.over.set_running_or_notify_cancel():
            self.over.set_result(None)


def first_answer(attempt: Attempt, hedge_s: float | None, timeout_s: float, compute: Compute) -> Outcome:
    """Computes beside the gateway from the hedge time on, and gives the first answer; the other is stopped.

    Args:
        attempt: it has departed; with `hedge_s=0` it may also be about to, on another thread.
        hedge_s: seconds from departure at which the device begins; 0: at once; None: it does not.
        timeout_s: seconds from now after which the reply is given up.
        compute: the device's own run.

    Raises:
        Exception: no answer came: what went wrong with the reply, or, where both failed, with the device.
    """
    until_s = perf_counter() + timeout_s
    try:
        if hedge_s != 0 and attempt.is_over_after(hedge_s, timeout_s):
            return attempt.outcome()
        attempt.watch()
        began_s = perf_counter()
        try:
            outputs = compute(attempt.options)
        except Exception as exc:
            if attempt.outputs is None:
                attempt.wait(until_s)  # the device cannot; the gateway perhaps can
            if attempt.outputs is None and attempt.error is not None:
                raise attempt.error from exc  # the device's own comes up again when it computes alone
            return attempt.outcome(began_s)
        return attempt.overtaken(outputs, began_s)
    finally:
        attempt.withdraw()


async def first_answer_awaitable(
    attempt: Attempt, hedge_s: float | None, timeout_s: float, compute: Compute
) -> Outcome:
    """The same on asyncio: the device computes in a thread; cancelling stops both sides."""
    attempt.watch()
    remote = asyncio.wrap_future(attempt.over)
    try:
        if hedge_s and attempt.sent is not None:
            await asyncio.wait((remote,), timeout=max(0.0, attempt.sent.sent_s + hedge_s - perf_counter()))
        if hedge_s is None or attempt.over.done():
            async with asyncio.timeout(timeout_s + GRACE_S):
                await asyncio.wait((remote,))
            return attempt.outcome()
        began_s = perf_counter()
        local = asyncio.ensure_future(asyncio.to_thread(compute, attempt.options))
        local.add_done_callback(_heard)
        await asyncio.wait((remote, local), return_when=asyncio.FIRST_COMPLETED)
        if attempt.outputs is None and not local.done():
            await asyncio.wait((local,))  # the reply is no good
        if attempt.outputs is None and local.exception() is not None:
            async with asyncio.timeout(timeout_s + GRACE_S):
                await asyncio.wait((remote,))  # the device cannot; the gateway perhaps can
        if attempt.outputs is not None or local.exception() is not None:
            return attempt.outcome(began_s)
        return attempt.overtaken(local.result(), began_s)
    finally:
        attempt.options.terminate = True
        attempt.withdraw()
        remote.cancel()


def _heard(local: "asyncio.Future[list[np.ndarray]]") -> None:
    """Takes note of how a stopped run ended, which nobody waits for."""
    if not local.cancelled():
        local.exception()
