"""Memory of all request bodies that are in flight, under one bound for the whole service."""

from typing import Final

from hybrid.errors import Overloaded

_RETRY_AFTER_S: Final = 0.5


class BodyBudget:
    """Counts bytes of bodies from their arrival until their answer; used from the event loop only.

    Bytes count as they come, not as they are announced: a sender that declares much and sends little holds little.

    Args:
        limit_bytes: what is beyond is refused.

    Attributes:
        n_bytes: held now.
        peak_bytes: the most that was held.
        n_refused: bodies that were refused.
    """

    __slots__ = ("limit_bytes", "n_bytes", "n_refused", "peak_bytes")

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self.peak_bytes = 0
        self.n_refused = 0

    def take(self, n_bytes: int) -> None:
        """Hold so many bytes more. Raises `Overloaded` when they do not fit."""
        if self.n_bytes + n_bytes > self.limit_bytes:
            self.n_refused += 1
            raise Overloaded(
                f"request bodies in flight hold {self.n_bytes} bytes, {n_bytes} more would pass the limit of "
                f"{self.limit_bytes}; try again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.hold(n_bytes)

    def hold(self, n_bytes: int) -> None:
        """Hold bytes that are here already, whatever the limit."""
        self.n_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.n_bytes)

    def give(self, n_bytes: int) -> None:
        """Let them go."""
        self.n_bytes -= n_bytes
