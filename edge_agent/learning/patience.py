"""How long to wait after failures: full jitter up to a bound that doubles, longer where the gateway asked for it."""

from random import Random
from typing import Final

from hybrid.errors import HybridError, NotFound

FIRST_PAUSE_S: Final = 1.0
MOST_PAUSE_S: Final = 60.0
MOST_WANTED_S: Final = 900.0
UNKNOWN_S: Final = 600.0
"""After a gateway that knows no rounds."""


class Patience:
    """Counts failures in a row."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.n_failures = 0

    @property
    def is_worth_a_line(self) -> bool:
        """Whether the log should hear of the last failure."""
        return self.n_failures in {1, 8} or self.n_failures % 64 == 0

    def succeeded(self) -> None:
        """The gateway answered."""
        self.n_failures = 0

    def failed(self, error: HybridError) -> float:
        """The pause after one more failure."""
        self.n_failures += 1
        if isinstance(error, NotFound):
            return UNKNOWN_S * (0.5 + self._rng.random())
        drawn_s = self._rng.uniform(0.0, min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.n_failures, 10)))
        wanted_s = error.fields.get("retry_after_s")
        if isinstance(wanted_s, int | float) and wanted_s > 0:
            return max(drawn_s, min(float(wanted_s), MOST_WANTED_S) * (1.0 + self._rng.random()))
        return drawn_s
