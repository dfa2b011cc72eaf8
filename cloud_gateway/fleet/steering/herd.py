"""How many boxes ask at once: the pause between their calls, the limit of calls that wait, and their release.

Design: a box chooses its moment at random below a bound that the gateway names (full jitter: the rule with the lowest
peak of those tried in a simulation), so the bound alone decides the arrivals: boxes / bound a second after all of them
were told something at once. Waiting calls cost memory only, and are counted.
"""

import random
from dataclasses import dataclass
from typing import Final

from hybrid.errors import Overloaded

WAIT_MOST_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HerdLimits:
    """How boxes may come.

    Attributes:
        arrivals_per_s: calls a second that the gateway wants at most, when all boxes were told something at once.
        least_poll_after_s, most_poll_after_s: bounds of the pause; `many_poll_after_s` is the least of a large fleet.
        max_waiting: calls that may wait at the same time; further ones are refused.
        few_boxes: a smaller fleet may come as fast as it likes.
    """

    arrivals_per_s: float = 50.0
    least_poll_after_s: float = 2.0
    many_poll_after_s: float = 12.0
    most_poll_after_s: float = 300.0
    max_waiting: int = 3000
    few_boxes: int = 50

    def poll_after_s(self, n_boxes: int) -> float:
        """Upper end of the random pause that a box makes before its next call."""
        least = self.least_poll_after_s if n_boxes < self.few_boxes else self.many_poll_after_s
        return min(self.most_poll_after_s, max(least, n_boxes / self.arrivals_per_s))

    def overloaded(self, n_boxes: int) -> Overloaded:
        """The refusal of one call too many; whoever gets it comes again when others have been served."""
        return Overloaded(
            f"{self.max_waiting} boxes are waiting on this gateway already; it asks for patience",
            retry_after_s=self.poll_after_s(n_boxes),
        )


def release_moments(n: int, within_s: float, rng: random.Random) -> list[float]:
    """When each of `n` waiting calls is let go, rising: spread evenly, so that boxes do not come back in a crowd."""
    return sorted((at + rng.random()) * within_s / n for at in range(n)) if n else []
