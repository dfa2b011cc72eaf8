"""Problems in the log: a line when one comes, another when all of its kind are over."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from edge_agent.part import Problem

_log = logging.getLogger("hybrid.agent")


class ProblemLog:
    """Looked at again and again; what it has told it does not repeat while it goes on.

    What a problem says may hold figures that change with every look, so kinds are followed by their code: one that
    comes while others of its kind are there is told too, with them.

    Args:
        problems: gives all that are there now.
    """

    def __init__(self, problems: Callable[[], Sequence[Problem]]) -> None:
        self._problems = problems
        self._known: Counter[str] = Counter()

    def look(self) -> None:
        """Compare with the last look."""
        problems = self._problems()
        now = Counter(problem.code for problem in problems)
        for problem in problems:
            if now[problem.code] > self._known[problem.code]:
                level = logging.ERROR if problem.blocks else logging.WARNING
                _log.log(level, "problem.seen code=%s what=%r do=%r", problem.code, problem.what, problem.do)
        for code in self._known.keys() - now.keys():
            _log.info("problem.over code=%s", code)
        self._known = now
