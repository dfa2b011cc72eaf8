"""Ctrl-C is never taken for a fault of one candidate."""

import pytest

from compression.errors import NotMeasurable, NotQuantizable
from hybrid.compress.search.bench import _tried
from hybrid.compress.splits.work import _why


class Archive:
    """As numpy's files are: what closes one in the middle of a write fails with an error of its own."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        raise ValueError("an open writing handle")


def cut_off_in_a_write() -> None:
    with Archive():
        raise KeyboardInterrupt


def told_as_unquantizable() -> None:
    try:
        cut_off_in_a_write()
    except ValueError as exc:
        raise NotQuantizable("it could not be written") from exc


@pytest.mark.parametrize("call", [cut_off_in_a_write, told_as_unquantizable])
def test_an_interrupt_that_an_error_hides_ends_the_search(call) -> None:
    with pytest.raises(KeyboardInterrupt):
        _tried(call)


def test_an_interrupt_that_an_error_hides_ends_the_work_on_splits() -> None:
    with pytest.raises(ValueError, match="writing handle") as caught:
        cut_off_in_a_write()
    with pytest.raises(KeyboardInterrupt):
        _why(caught.value)


@pytest.mark.parametrize(("error", "is_final"), [(NotQuantizable("no"), True), (NotMeasurable("no"), False)])
def test_what_no_interrupt_caused_costs_one_candidate(error, is_final) -> None:
    def fails() -> None:
        raise error

    assert _tried(fails) == (None, "no", is_final)
