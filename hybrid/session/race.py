"""Two sides, one answer: the gateway's, and the device's beside it from the hedge time on; the first one wins.

Design: the calling thread waits for the reply until the hedge time, then computes; so a device that wins pays no
hand-over between threads. The reply's arrival is checked on the I/O thread, and only an answer that can be used stops
the device (onnxruntime looks at `terminate` between two operators). What goes wrong on one side leaves the other alone.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import onnxruntime

from hybrid.route.departure import Outgoing, assembled
from hybrid.transport.pending import Reply
from hybrid.wire.message import InferResponse

GRACE_S = 1.0
"""The reply's own timer ends it; this much later it is given up without it."""

Compute = Callable[[onnxruntime.RunOptions], list[np.ndarray]]
"""Computes the whole request here; ends early when the options' `terminate` is set."""


@dataclass(slots=True)
class Outcome:
    """How a race ended.

    Attributes:
        outputs: the answer.
        response: the gateway's, where its answer was the first.
        arrived_s: `perf_counter` at its arrival.
        hedged_s: when the device began, in seconds from departure; None if it did not.
        local_s: seconds that the device computed beside the gateway.
        error: what went wrong with the reply, where the device won because of that.
        waited_s: seconds from departure until the reply was withdrawn, where it was.
        sent_bytes: what had gone of the request by then.
        acked_bytes: what the gateway had acknowledged of it by then.
    """

    outputs: list[np.ndarray]
    response: InferResponse | None = None
    arrived_s: float = 0.0
    hedged_s: float | None = None
    local_s: float = 0.0
    error: Exception | None = None
    waited_s: float = 0.0
    sent_bytes: int = 0
    acked_bytes: int = 0


class _Arrival:
    """What becomes of the reply; called once, on the I/O thread, when it is there.

    Attributes:
        outputs: the answer, once it is there and can be used.
        error: why there is none.
    """

    def __init__(self, sent: Outgoing, options: onnxruntime.RunOptions | None) -> None:
        self._sent = sent
        self._options = options
        self.outputs: list[np.ndarray] | None = None
        self.response: InferResponse | None = None
        self.error: Exception | None = None
        self.at_s = 0.0

    def __call__(self, reply: "Future[InferResponse]") -> None:
        if reply.cancelled():
            return
        try:
            self.response = reply.result()
            self.outputs = assembled(self._sent, self.response)
        except Exception as exc:  # noqa: BLE001  (of either side; the device goes on)
            self.error = exc
            return
        self.at_s = perf_counter()
        if self._options is not None:
            self._options.terminate = True

    def outcome(self, hedged_s: float | None = None, local_s: float = 0.0) -> Outcome:
        """The gateway's answer; raises what kept it from coming."""
        if self.outputs is None:
            raise self.error or TimeoutError("no reply came")
        return Outcome(self.outputs, self.response, self.at_s, hedged_s, local_s)


def first_answer(sent: Outgoing, reply: Reply, hedge_s: float | None, timeout_s: float, compute: Compute) -> Outcome:
    """Waits for the reply, computes beside it from the hedge time on, and gives the first answer; the other is stopped.

    Args:
        sent: what was sent.
        reply: the gateway's answer to come; it is cancelled when it did not win.
        hedge_s: seconds from departure at which the device begins; None: it does not.
        timeout_s: seconds from now after which the reply is given up.
        compute: the device's own run.

    Raises:
        Exception: no answer came: what went wrong with the reply, or, where both failed, with the device.
    """
    now_s = perf_counter()
    until_s = now_s + timeout_s + GRACE_S
    try:
        if hedge_s is None or _is_over(reply, sent.sent_s + hedge_s - now_s):
            arrival = _Arrival(sent, None)
            reply.exception(until_s - now_s)
            arrival(reply)
            return arrival.outcome()
        options = onnxruntime.RunOptions()
        arrival = _Arrival(sent, options)
        reply.add_done_callback(arrival)
        began_s = perf_counter()
        try:
            outputs = compute(options)
        except Exception as exc:
            local_s = perf_counter() - began_s
            if arrival.outputs is None:
                reply.exception(until_s - perf_counter())  # the device cannot; the gateway perhaps can
                arrival(reply)
            if arrival.outputs is None and arrival.error is not None:
                raise arrival.error from exc  # the device's own comes up again when it computes alone
            return arrival.outcome(began_s - sent.sent_s, local_s)
        return _local(sent, reply, arrival, (outputs, began_s))
    finally:
        reply.cancel()


def _local(sent: Outgoing, reply: Reply, arrival: _Arrival, computed: tuple[list[np.ndarray], float]) -> Outcome:
    """The device's answer, or the gateway's that came just before its end."""
    now_s = perf_counter()
    outputs, began_s = computed
    if arrival.outputs is not None:
        return arrival.outcome(began_s - sent.sent_s, now_s - began_s)
    return Outcome(
        outputs,
        hedged_s=began_s - sent.sent_s,
        local_s=now_s - began_s,
        error=arrival.error,
        waited_s=now_s - sent.sent_s,
        sent_bytes=reply.sent_bytes,
        acked_bytes=reply.acked_bytes,
    )


def _is_over(reply: Reply, wait_s: float) -> bool:
    """Whether the reply is there, well or not, after waiting at most so long."""
    if wait_s <= 0:
        return reply.done()
    try:
        reply.exception(wait_s)
    except TimeoutError:
        return reply.done()
    return True


async def first_answer_awaitable(
    sent: Outgoing, reply: Reply, hedge_s: float | None, timeout_s: float, compute: Compute
) -> Outcome:
    """The same on asyncio: the device computes in a thread; cancelling stops both sides."""
    options = onnxruntime.RunOptions()
    arrival = _Arrival(sent, options)
    reply.add_done_callback(arrival)  # before the next line, so that it is always the first to be called
    remote = asyncio.wrap_future(reply)
    try:
        if hedge_s is not None:
            await asyncio.wait((remote,), timeout=max(0.0, sent.sent_s + hedge_s - perf_counter()))
        if hedge_s is None or remote.done():
            async with asyncio.timeout(timeout_s + GRACE_S):
                await asyncio.wait((remote,))
            return arrival.outcome()
        began_s = perf_counter()
        local = asyncio.ensure_future(asyncio.to_thread(compute, options))
        local.add_done_callback(_heard)
        await asyncio.wait((remote, local), return_when=asyncio.FIRST_COMPLETED)
        if arrival.outputs is None and not local.done():
            await asyncio.wait((local,))  # the reply is no good
        if arrival.outputs is None and local.exception() is not None:
            async with asyncio.timeout(timeout_s + GRACE_S):
                await asyncio.wait((remote,))  # the device cannot; the gateway perhaps can
        if arrival.outputs is not None or local.exception() is not None:
            return arrival.outcome(began_s - sent.sent_s, perf_counter() - began_s)
        return _local(sent, reply, arrival, (local.result(), began_s))
    finally:
        options.terminate = True
        reply.cancel()
        remote.cancel()


def _heard(local: "asyncio.Future[list[np.ndarray]]") -> None:
    """Takes note of how a stopped run ended, which nobody waits for."""
    if not local.cancelled():
        local.exception()
