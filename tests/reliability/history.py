"""What could be observed during a run, in order; two runs of a seed must give the same."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from tests.reliability.virtual_loop import VirtualLoop


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    at_s: float
    who: str
    what: str
    detail: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        told = " ".join(f"{name}={value}" for name, value in self.detail.items())
        return f"{self.at_s:12.4f} {self.who:<10} {self.what:<18} {told}"


class History:
    """Events, and what they broke."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.events: list[Event] = []
        self.broken: list[str] = []
        self.is_closed = False

    def add(self, who: str, what: str, **detail: Any) -> None:
        """Something happened now."""
        if not self.is_closed:
            self.events.append(Event(round(self._loop.now_s, 6), who, what, detail))

    def breach(self, promise: str, what: str) -> None:
        """A promise was broken now."""
        self.add("CHECK", promise, broken=what)
        if not self.is_closed:
            self.broken.append(f"{promise} at {self._loop.now_s:.3f} s: {what}")

    def of(self, *kinds: str) -> list[Event]:
        """Events of these kinds."""
        return [event for event in self.events if event.what in kinds]

    @property
    def digest(self) -> str:
        """Names the whole history."""
        return hashlib.sha256("\n".join(map(str, self.events)).encode()).hexdigest()[:16]
