"""Rows that travel together: what goes wrong on the way is everybody's answer, and nobody waits for ever."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, sleep

import numpy as np
import pytest

from hybrid.cascade.together import Feeds, Replied, Together
from hybrid.errors import DeadlinePassed, ProtocolError

ROWS = {"x": np.ones((2, 3), np.float32)}


@pytest.mark.parametrize("answer", [np.ones((1, 3)), np.float32(1)])
def test_an_answer_of_other_rows_is_nobodys(answer: np.ndarray) -> None:
    def ask(_feeds: Feeds, names: Sequence[str], _left_s: float | None) -> Replied:
        return Replied(outputs=dict.fromkeys(names, np.asarray(answer)))

    together = Together(ask)
    with ThreadPoolExecutor(3) as threads:
        for asked in [threads.submit(together.ask, ROWS, ["y"], None) for _ in range(3)]:
            with pytest.raises(ProtocolError):
                asked.result(10)
    together.close()


def test_who_is_in_a_hurry_does_not_wait_for_the_others() -> None:
    def ask(feeds: Feeds, names: Sequence[str], _left_s: float | None) -> Replied:
        sleep(1.5)
        return Replied(outputs=dict.fromkeys(names, feeds["x"]))

    together = Together(ask, hold_s=0.05)
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(together.ask, ROWS, ["y"], None)
        started_s = perf_counter()
        with pytest.raises(DeadlinePassed):
            together.ask(ROWS, ["y"], 0.3)
        assert perf_counter() - started_s < 1.0
        assert len(patient.result(10).outputs["y"]) == 2
    together.close()


def test_a_forked_child_sends_on_a_thread_of_its_own() -> None:
    def ask(feeds: Feeds, names: Sequence[str], _left_s: float | None) -> Replied:
        return Replied(outputs=dict.fromkeys(names, feeds["x"]))

    together = Together(ask)
    together.ask(ROWS, ["y"], 5.0)
    together.forked()
    assert len(together.ask(ROWS, ["y"], 5.0).outputs["y"]) == 2
    together.close()
