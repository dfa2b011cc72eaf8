"""Training stands still while somebody asks, and goes on when nobody has for a while."""

import threading
import time
from collections.abc import Callable

import pytest

from edge_agent.learning.yielding import Yielding
from hybrid.errors import Cancelled


class Steps:
    """A thread that trains: how many small steps it made, and how it ended."""

    def __init__(self, yielding: Yielding, *, at_once: bool = True) -> None:
        self.n, self.ended = 0, ""
        self._yielding = yielding
        self._thread = threading.Thread(target=self._run, daemon=True)
        yielding.begin()
        if at_once:
            self._thread.start()

    def start(self) -> None:
        """Where it does not run yet."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._yielding.between()
                self.n += 1
                time.sleep(0.001)
        except Cancelled as exc:
            self.ended = str(exc)

    def join(self) -> None:
        self._thread.join(5.0)
        assert not self._thread.is_alive()


def until(fact: Callable[[], object], within_s: float = 5.0) -> None:
    end_s = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < end_s
        time.sleep(0.002)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_stands_still_and_goes_on() -> None:
    clock = Clock()
    yielding = Yielding(idle_s=0.2, now_s=clock)
    steps = Steps(yielding)
    until(lambda: steps.n > 5)
    yielding.asked(True)
    until(lambda: yielding.n_stood)
    stood = steps.n
    clock.now_s += 10.0
    time.sleep(0.3)  # in which it looks again
    assert steps.n == stood, "it goes on beside a request"
    yielding.asked(False)
    clock.now_s += 0.15
    time.sleep(0.1)
    assert steps.n == stood, "it goes on as soon as the request was answered"
    clock.now_s += 0.1
    until(lambda: steps.n > stood)
    assert yielding.n_stood == 1
    yielding.give_up()
    steps.join()
    assert steps.ended == "the task was given up"


def test_how_long_it_went_on_beside_a_request_is_told() -> None:
    clock = Clock()
    yielding = Yielding(idle_s=60.0, now_s=clock)
    steps = Steps(yielding, at_once=False)
    yielding.asked(True)
    clock.now_s += 0.25
    steps.start()
    until(lambda: yielding.n_stood)
    until(lambda: yielding.longest_s)
    assert yielding.longest_s == 0.25
    yielding.give_up()
    steps.join()


def test_gives_up_while_it_stands() -> None:
    yielding = Yielding(idle_s=60.0)
    steps = Steps(yielding)
    until(lambda: steps.n)
    yielding.asked(True)
    until(lambda: yielding.n_stood)
    yielding.give_up()
    steps.join()
    assert steps.ended == "the task was given up"


def test_a_run_of_the_engine_is_ended_by_a_request() -> None:
    class Options:
        terminate = False

    yielding, options = Yielding(idle_s=0.2), Options()
    yielding.begin()
    with yielding.ending(options):
        assert not options.terminate
        yielding.asked(True)
        assert options.terminate
    late = Options()
    with yielding.ending(late):
        assert late.terminate, "somebody asks already"


def test_nothing_begins_before_it_may() -> None:
    with pytest.raises(Cancelled):
        Yielding().between()
