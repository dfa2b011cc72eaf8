"""Problems in the log: each is told when it comes, not again while it goes on, and that it is over."""

import logging

import pytest

from edge_agent.part import Problem
from edge_agent.problem_log import ProblemLog


def missing(name: str, *, blocks: bool = True) -> Problem:
    return Problem(code="model_missing", what=f"no file of {name}", do="give another", blocks=blocks)


def test_a_problem_is_told_when_it_comes_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hybrid.agent")
    there: list[Problem] = []
    log = ProblemLog(lambda: there)

    def told() -> list[tuple[str, str]]:
        caplog.clear()
        log.look()
        return [(record.levelname, record.getMessage().partition(" do=")[0]) for record in caplog.records]

    assert told() == []
    there += [missing("a"), Problem(code="disk_low", what="61 MB are left", do="make room", blocks=False)]
    assert told() == [
        ("ERROR", "problem.seen code=model_missing what='no file of a'"),
        ("WARNING", "problem.seen code=disk_low what='61 MB are left'"),
    ]
    there[1] = Problem(code="disk_low", what="60 MB are left", do="make room", blocks=False)
    assert told() == [], "a figure that changed is no other problem"
    there.append(missing("b"))
    assert [text[-4:] for _, text in told()] == ["f a'", "f b'"]
    there.pop()
    assert told() == [], "one of a kind is left"
    del there[0]
    assert told() == [("INFO", "problem.over code=model_missing")]
    there.append(missing("a"))
    assert len(told()) == 1, "it is told again when it comes again"
