"""How many second attempts are allowed: a share of the requests, so that retries never multiply a gateway's load.

Source: Google SRE book (2016), chapter 21, "Handling Overload": a client-wide retry budget of 10 %.
"""

from typing import Final

RETRY_RATIO: Final = 0.1
MOST_TOKENS: Final = 10.0


class RetryBudget:
    """A bucket that each request fills by a tenth and each second attempt empties by one."""

    def __init__(self) -> None:
        self._tokens = MOST_TOKENS

    def request(self) -> None:
        """Counts a first attempt."""
        self._tokens = min(MOST_TOKENS, self._tokens + RETRY_RATIO)

    def take(self) -> bool:
        """Whether a second attempt may be made; takes one token if so."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
