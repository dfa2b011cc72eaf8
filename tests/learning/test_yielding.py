"""Training stands still while somebody asks, and goes on when nobody has for a while."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from edge_agent.learning.yielding import Yielding
from hybrid.errors import Cancelled
from hybrid.federated.box.work import Learnable
from hybrid.federated.campaign import Training
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.training import Start, train
from tests.learning.lab import made
from tests.learning.nets import N_CLASSES

YIELDS_WITHIN_S = 0.1
"""Of a request's coming, as docs/learning.md has it."""

SLOW_PRODUCTS_PER_S = 0.5e9
"""Of a core slower than any that runs an agent: forward and back are three products for each weight and sample."""

N_ROWS = 128


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


class Large:
    """A training whose batches are too large to be done at once; counts the samples that are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        n_features = 100_000
        self.desk = made(n_features)[1]
        self.learnable = Learnable.of(self.desk.head)
        self.n_weights = self.learnable.layout.n_elements
        features = np.random.default_rng(1).random((1, n_features), np.float32)
        all_alike = np.broadcast_to(features, (N_ROWS, n_features))
        self.examples = Examples(all_alike, np.arange(N_ROWS) % N_CLASSES)
        self.n_rows = self.n_pieces = 0
        self.at_piece: Callable[[], None] = lambda: None
        some = Examples.some

        def counted(examples: Examples, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.n_rows += len(indices)
            self.n_pieces += 1
            self.at_piece()
            return some(examples, indices)

        monkeypatch.setattr(Examples, "some", counted)

    def train(self, between: Callable[[], None]) -> None:
        plan, start = Training(epochs=1, batch=N_ROWS, learning_rate=0.01), Start(shared=self.desk.head.vector)
        train(self.learnable.program, self.learnable.layout, self.examples, plan, start=start, between=between)


def test_between_two_looks_is_less_work_than_a_request_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """In multiplications, not by a clock: all that is computed between two looks at whether somebody asks."""
    large, found = Large(monkeypatch), list[int]()

    def between() -> None:
        found.append(large.n_rows)
        large.n_rows = 0

    large.train(between)
    assert sum(found) >= 3 * N_ROWS, "a pass each to measure, learn and measure"
    assert 3 * N_ROWS * large.n_weights / SLOW_PRODUCTS_PER_S > 2 * YIELDS_WITHIN_S, "a batch as a whole is too much"
    assert 3 * max(found) * large.n_weights / SLOW_PRODUCTS_PER_S < YIELDS_WITHIN_S


def test_no_piece_of_a_training_begins_after_a_request_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in which it comes is the last, wherever that is: so what a request waits for is one piece at most."""
    for at in (3, 16, 25):  # while it measures, learns, and measures again
        with monkeypatch.context() as patched:
            large, yielding, ended = Large(patched), Yielding(idle_s=60.0), list[str]()

            def ask(large: Large = large, yielding: Yielding = yielding, at: int = at) -> None:
                if large.n_pieces == at:
                    yielding.asked(True)

            def run(large: Large = large, yielding: Yielding = yielding, ended: list[str] = ended) -> None:
                try:
                    large.train(yielding.between)
                except Cancelled as exc:
                    ended.append(str(exc))

            large.at_piece = ask
            yielding.begin()
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            until(lambda yielding=yielding: yielding.n_stood)  # type: ignore[misc]
            assert large.n_pieces == at
            yielding.give_up()
            thread.join(5.0)
            assert (ended, large.n_pieces) == (["the task was given up"], at)
