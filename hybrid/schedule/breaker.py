"""A circuit breaker for one gateway: after failures nothing is sent for a while, then one request tries it.

Design: closed lets everything through; open nothing until its time is over; half-open one request at a time. The time
is drawn anew from a range that doubles with each failure ("full jitter"), so that clients that failed together do not
return together, and is capped so that a gateway that is back is found within three seconds.

Source: M. Nygard, Release It! (2007), circuit breaker; M. Brooker, Exponential backoff and jitter (AWS Architecture
Blog, 2015), full jitter; RFC 9110 section 10.2.3 (Retry-After).
"""

import random
from typing import Final, Literal

State = Literal["closed", "open", "half_open"]

FIRST_PAUSE_S: Final = 0.25
MOST_PAUSE_S: Final = 2.0
"""Upper end of the range that a pause is drawn from; Retry-After may ask for more."""

MOST_RETRY_AFTER_S: Final = 30.0
TRIAL_S: Final = 2.0
"""A trial that nobody reported on counts as lost after this, so that the next one may go."""


class Breaker:
    """The breaker of one gateway.

    Args:
        rng: source of the jitter.

    Attributes:
        epoch: counts the transitions between closed and not closed.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._n_failures = 0
        self._not_before_s = 0.0
        self._trial_s: float | None = None
        self._is_closed = True
        self.epoch = 0

    def state(self, now_s: float) -> State:
        """closed, open, or half_open (a trial may go, or is on its way)."""
        if self._is_closed:
            return "closed"
        return "half_open" if now_s >= self._not_before_s else "open"

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now."""
        if self._is_closed:
            return True
        if now_s < self._not_before_s:
            return False
        return self._trial_s is None or now_s - self._trial_s > TRIAL_S

    def sent(self, now_s: float) -> None:
        """A request goes there; while half open it is the trial."""
        if not self._is_closed:
            self._trial_s = now_s

    def withdrawn(self) -> None:
        """The request that went there ended without a word on the gateway (cancelled early): the next one may try."""
        self._trial_s = None

    def succeeded(self) -> None:
        """An answer came."""
        self._n_failures = 0
        self._trial_s = None
        if not self._is_closed:
            self._is_closed = True
            self.epoch += 1

    def failed(self, now_s: float, retry_after_s: float | None = None) -> None:
        """A request failed by the gateway's or the link's fault."""
        self._n_failures += 1
        self._trial_s = None
        most_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._n_failures - 1))
        pause_s = self._rng.uniform(0.0, most_s)
        if retry_after_s is not None:
            pause_s += min(MOST_RETRY_AFTER_S, max(0.0, retry_after_s))
        self._not_before_s = now_s + pause_s
        if self._is_closed:
            self._is_closed = False
            self.epoch += 1

    def reachable(self, now_s: float) -> None:
        """A connection was made: whoever is there can be asked at once."""
        self._not_before_s = min(self._not_before_s, now_s)
        self._trial_s = None

    def ready_at_s(self) -> float:
        """When a trial may go at the earliest."""
        return 0.0 if self._is_closed else self._not_before_s
