"""How much may be written in a day: a bucket of bytes that fills evenly, for flash has only so many writes in it."""

from typing import Final

_DAY_S: Final = 86_400.0


class WriteBudget:
    """Bytes of one day; a start of the agent begins with an hour's share.

    Attributes:
        left_bytes: what may be written now.
    """

    def __init__(self, day_bytes: int) -> None:
        self._day_bytes = day_bytes
        self._seen_s: float | None = None
        self.left_bytes: float = day_bytes / 24.0

    def take(self, n_bytes: int, now_s: float) -> bool:
        """Whether so many bytes may be written now; then they are counted. One larger than a whole day's never may."""
        if self._seen_s is not None:
            filled = self.left_bytes + (now_s - self._seen_s) * self._day_bytes / _DAY_S
            self.left_bytes = min(float(self._day_bytes), filled)
        self._seen_s = now_s
        if n_bytes > self.left_bytes:
            return False
        self.left_bytes -= n_bytes
        return True
