"""A race at its joints: who departs when, what is sent and paid, which side is stopped, and that nobody hangs."""

import asyncio
import gc
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable
from threading import Event

import numpy as np
import onnxruntime
import pytest

from hybrid.errors import ConnectionLost, DeadlinePassed, EngineFailed
from hybrid.route.departure import Outgoing
from hybrid.session.courier import Courier
from hybrid.session.race import Attempt, Outcome, first_answer, first_answer_awaitable
from hybrid.transport.pending import Pending, Reply
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor

THERE, HERE = np.ones(3, np.float32), np.zeros(3, np.float32)


class Road:
    """The far side of one attempt: encodes when it may, and answers when it is told."""

    def __init__(self) -> None:
        self.may_encode = Event()
        self.may_encode.set()
        self.encodes = Event()
        self.pending = Pending(request=InferRequest(inputs=()), stall_s=30, timeout_s=30)
        self.reply = self.pending.future
        self.is_sent = Event()

    def encode(self) -> Outgoing:
        self.encodes.set()
        assert self.may_encode.wait(20)
        request = InferRequest(inputs=(Tensor.of("x", HERE),))
        return Outgoing(
            request=request, wanted=("y",), kept={}, head_s=0.0, encode_s=0.0, bytes_up=12, sent_s=time.perf_counter()
        )

    def send(self, _sent: Outgoing) -> Reply:
        self.is_sent.set()
        return self.reply

    def answer(self, name: str = "y") -> None:
        self.pending.succeed(InferResponse(outputs=(Tensor.of(name, THERE.copy()),)))


def computes(
    seconds: float = 0.0, *, until: Event | None = None, error: Exception | None = None
) -> Callable[[onnxruntime.RunOptions], list[np.ndarray]]:
    """A run that can be stopped, as the engine's."""

    def compute(options: onnxruntime.RunOptions) -> list[np.ndarray]:
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s or (until is not None and not until.is_set()):
            if options.terminate:
                raise RuntimeError("Exiting due to terminate flag being set to true.")
            assert time.perf_counter() < until_s + 20
            time.sleep(0.0005)
        if error is not None:
            raise error
        return [HERE]

    return compute


@pytest.fixture
def courier():
    courier = Courier()
    yield courier
    courier.close(5)


def is_theirs(outcome: Outcome) -> bool:
    assert len(outcome.outputs) == 1
    return bool(np.array_equal(outcome.outputs[0], THERE))


def test_the_device_begins_while_the_request_is_still_encoded(courier: Courier) -> None:
    road, attempt, began = Road(), Attempt(), Event()
    road.may_encode = began  # nothing departs before the device computes: one after the other would never end

    def compute(options: onnxruntime.RunOptions) -> list[np.ndarray]:
        began.set()
        assert road.is_sent.wait(20)
        road.answer()
        return computes(20)(options)

    assert courier.carry(lambda: attempt.depart(road.encode, road.send))
    outcome = first_answer(attempt, 0.0, 30, compute)
    assert is_theirs(outcome)
    assert outcome.hedged_s == 0.0
    assert 0 < outcome.local_s < 10, "the answer stops the device"


def test_what_the_device_overtook_while_it_was_encoded_is_never_sent(courier: Courier) -> None:
    road, attempt = Road(), Attempt()
    road.may_encode.clear()
    courier.carry(lambda: attempt.depart(road.encode, road.send))
    outcome = first_answer(attempt, 0.0, 30, computes(until=road.encodes))
    assert not is_theirs(outcome)
    assert outcome.sent is None
    assert outcome.error is None
    assert (outcome.sent_bytes, outcome.waited_s, outcome.hedged_s) == (0, 0.0, 0.0)
    road.may_encode.set()
    done = Event()
    courier.carry(done.set)
    assert done.wait(20)
    assert not road.is_sent.is_set()


def test_an_errand_that_was_taken_back_in_the_queue_is_not_even_encoded(courier: Courier) -> None:
    first, second = Road(), Road()
    first.may_encode.clear()
    held, attempt = Attempt(), Attempt()
    courier.carry(lambda: held.depart(first.encode, first.send))
    courier.carry(lambda: attempt.depart(second.encode, second.send))
    began_s = time.perf_counter()
    outcome = first_answer(attempt, 0.0, 30, computes(0.01))
    assert time.perf_counter() - began_s < 5, "nobody waits for a courier that is busy"
    assert outcome.sent is None
    first.may_encode.set()
    done = Event()
    courier.carry(done.set)
    assert done.wait(20)
    assert first.is_sent.is_set()
    assert not second.encodes.is_set()


def test_a_reply_that_is_no_good_leaves_the_device_alone(courier: Courier) -> None:
    road, attempt = Road(), Attempt()
    courier.carry(lambda: attempt.depart(road.encode, road.send))

    def compute(options: onnxruntime.RunOptions) -> list[np.ndarray]:
        assert road.is_sent.wait(20)
        road.answer("another output than was asked for")
        return computes(0.05)(options)

    outcome = first_answer(attempt, 0.0, 30, compute)
    assert not is_theirs(outcome)
    assert "lacks output y" in str(outcome.error)


def test_an_encoding_that_fails_is_told_and_leaves_the_device_alone(courier: Courier) -> None:
    attempt = Attempt()

    def encode() -> Outgoing:
        raise ValueError("not finite")

    courier.carry(lambda: attempt.depart(encode, Road().send))
    outcome = first_answer(attempt, 0.0, 30, computes(until=_over(attempt)))
    assert not is_theirs(outcome)
    assert isinstance(outcome.error, ValueError)
    assert outcome.sent is None


def _over(attempt: Attempt) -> Event:
    over = Event()
    attempt.over.add_done_callback(lambda _: over.set())
    return over


def test_where_the_device_fails_the_gateway_answers(courier: Courier) -> None:
    road, attempt = Road(), Attempt()
    courier.carry(lambda: attempt.depart(road.encode, road.send))
    threading.Timer(0.1, road.answer).start()
    assert is_theirs(first_answer(attempt, 0.0, 30, computes(error=EngineFailed("no memory"))))


def test_where_both_fail_the_gateways_failure_is_raised_first(courier: Courier) -> None:
    road, attempt = Road(), Attempt()
    courier.carry(lambda: attempt.depart(road.encode, road.send))
    broken = ConnectionLost("the cable was pulled")
    threading.Timer(0.05, road.pending.fail, (broken,)).start()
    with pytest.raises(ConnectionLost) as raised:
        first_answer(attempt, 0.0, 30, computes(error=EngineFailed("no memory")))
    assert isinstance(raised.value.__cause__, EngineFailed)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_where_the_device_fails_behind_a_busy_courier_the_time_is_bounded(courier: Courier, seconds: float) -> None:
    road, held, attempt = Road(), Attempt(), Attempt()
    road.may_encode.clear()
    courier.carry(lambda: held.depart(road.encode, road.send))
    courier.carry(lambda: attempt.depart(road.encode, road.send))
    began_s = time.perf_counter()
    with pytest.raises(TimeoutError):
        first_answer(attempt, 0.0, seconds, computes(error=DeadlinePassed("no answer in time")))
    assert seconds <= time.perf_counter() - began_s < seconds + 0.5
    road.may_encode.set()


def test_a_hedge_that_is_not_needed_never_begins() -> None:
    road, attempt = Road(), Attempt()
    attempt.depart(road.encode, road.send)
    threading.Timer(0.05, road.answer).start()
    outcome = first_answer(attempt, 10.0, 30, computes(error=AssertionError("it was to wait")))
    assert is_theirs(outcome)
    assert (outcome.hedged_s, outcome.local_s) == (None, 0.0)


def test_the_loser_is_cancelled_and_the_caller_interrupted_cancels_too(courier: Courier) -> None:
    for compute, raised in ((computes(0.02), None), (computes(error=KeyboardInterrupt()), KeyboardInterrupt)):  # type: ignore[arg-type]
        road, attempt = Road(), Attempt()
        courier.carry(lambda attempt=attempt, road=road: attempt.depart(road.encode, road.send))
        assert road.is_sent.wait(20)
        if raised is None:
            assert not is_theirs(first_answer(attempt, 0.0, 30, compute))
        else:
            with pytest.raises(raised):
                first_answer(attempt, 0.0, 30, compute)
        courier.carry(lambda: None)
        until_s = time.monotonic() + 20
        while not road.reply.cancelled():
            assert time.monotonic() < until_s
            time.sleep(0.001)


def test_exactly_one_answer_and_one_bill_whatever_the_timing(courier: Courier) -> None:
    rng = random.Random(0)
    winners = set()
    for _ in range(150):
        road, attempt = Road(), Attempt()
        paid: list[int] = []

        def send(sent: Outgoing, road: Road = road, paid: list[int] = paid) -> Reply:
            paid.append(sent.bytes_up)
            threading.Timer(rng.uniform(0, 0.004), road.answer).start()
            return road.send(sent)

        courier.carry(lambda attempt=attempt, road=road, send=send: attempt.depart(road.encode, send))
        outcome = first_answer(attempt, 0.0, 30, computes(rng.uniform(0, 0.006)))
        settled = list(paid)
        assert (outcome.sent is not None) == bool(settled), "what is billed is what was sent"
        assert (outcome.response is not None) == is_theirs(outcome)
        done = Event()
        courier.carry(done.set)
        assert done.wait(20)
        assert paid == settled, "once the answer is there nothing is sent any more"
        winners.add((is_theirs(outcome), outcome.sent is not None))
    assert {(True, True), (False, True)} <= winners


async def test_awaited_races_end_the_same_ways(courier: Courier) -> None:
    road, attempt = Road(), Attempt()
    courier.carry(lambda: attempt.depart(road.encode, road.send))
    threading.Timer(0.05, road.answer).start()
    outcome = await first_answer_awaitable(attempt, 0.0, 30, computes(20))
    assert is_theirs(outcome)

    slow, overtaken = Road(), Attempt()
    slow.may_encode.clear()
    courier.carry(lambda: overtaken.depart(slow.encode, slow.send))
    outcome = await first_answer_awaitable(overtaken, 0.0, 30, computes(until=slow.encodes))
    assert not is_theirs(outcome)
    assert outcome.sent is None
    running = asyncio.ensure_future(first_answer_awaitable(Attempt(), 0.0, 30, computes(20)))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    slow.may_encode.set()
    with pytest.raises(TimeoutError):
        await first_answer_awaitable(Attempt(), 0.0, -0.9, computes(error=EngineFailed("no memory")))


def test_a_courier_that_is_closed_carries_nothing_and_leaves_no_thread() -> None:
    courier, done, threads = Courier(), Event(), []
    assert courier.carry(lambda: threads.append(threading.current_thread()))
    assert courier.carry(done.set)
    courier.close(5)
    assert done.is_set(), "what was handed over before is done"
    assert not courier.carry(done.clear)
    assert done.is_set()
    assert not threads[0].is_alive()
    courier.close(5)


def test_the_idle_thread_keeps_nothing_alive() -> None:
    class Session:
        """Anything that the collector should be able to end."""

        def __init__(self) -> None:
            self.courier, self.done = Courier(), Event()

        def work(self) -> None:
            self.done.set()

    session = Session()
    gone = weakref.ref(session)
    session.courier.carry(session.work)
    assert session.done.wait(5)
    courier, again = session.courier, Event()
    courier.carry(again.set)
    assert again.wait(5)
    del session
    gc.collect()
    assert gone() is None
    courier.close(5)


def test_who_sees_an_answer_sees_when_it_came() -> None:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            road, attempt = Road(), Attempt()
            attempt.depart(road.encode, road.send)

            def compute(_: onnxruntime.RunOptions, road: Road = road, attempt: Attempt = attempt) -> list[np.ndarray]:
                threading.Thread(target=road.answer).start()
                while attempt.outputs is None:
                    pass
                return [HERE]

            outcome = first_answer(attempt, 0.0, 30, compute)
            assert outcome.sent is not None
            assert outcome.arrived_s >= outcome.sent.sent_s
            assert outcome.response is not None
    finally:
        sys.setswitchinterval(interval_s)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_courier_of_its_own(courier: Courier) -> None:
    road, attempt = Road(), Attempt()
    road.may_encode.clear()
    courier.carry(lambda: attempt.depart(road.encode, road.send))
    assert road.encodes.wait(20)
    child = os.fork()
    if not child:
        courier.forked()
        done = Event()
        courier.carry(done.set)
        os._exit(0 if done.wait(5) else 1)
    road.may_encode.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert road.is_sent.wait(5)
    attempt.withdraw()
