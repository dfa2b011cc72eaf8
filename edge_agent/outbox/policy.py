"""What the outbox holds, in which order it travels, and what leaves first when room is short.

Design: what somebody was told is safe (results, deferred requests, reports) is never dropped to make room; who brings
more is refused and knows. What may be lost by its nature (samples, telemetry) leaves oldest first, and is counted.
"""

from dataclasses import dataclass, field
from typing import Final

from hybrid.fleet.messages import Kind

KINDS: Final[tuple[Kind, ...]] = ("report", "result", "deferred", "sample", "telemetry")
PRIORITY: Final[dict[Kind, int]] = {"report": 1, "result": 2, "deferred": 2, "sample": 3, "telemetry": 4}
"""1 travels first; docs/outbox.md has the table."""

DROPPED_FIRST: Final[tuple[Kind, ...]] = ("telemetry", "sample")
"""What leaves when room is short, oldest first, in this order; nothing else ever does."""

INLINE_BYTES: Final = 100 << 10
"""A larger body is a file."""

MAX_BODY_BYTES: Final = 64 << 20
"""As the wire's largest message: a body is held in memory whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindLimits:
    """How much of a kind is held.

    Attributes:
        n_bytes: of bodies.
        n_items: of items.
        age_s: older ones are dropped; None keeps them until they were sent.
    """

    n_bytes: int
    n_items: int
    age_s: float | None = None


def _by_kind() -> dict[Kind, KindLimits]:
    return {
        "report": KindLimits(n_bytes=16 << 20, n_items=10_000),
        "result": KindLimits(n_bytes=256 << 20, n_items=100_000),
        "deferred": KindLimits(n_bytes=256 << 20, n_items=10_000),
        "sample": KindLimits(n_bytes=256 << 20, n_items=100_000, age_s=90 * 86_400.0),
        "telemetry": KindLimits(n_bytes=32 << 20, n_items=100_000, age_s=30 * 86_400.0),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxLimits:
    """What the outbox may use of the box.

    Attributes:
        n_bytes: of all bodies together.
        n_items: of all items together.
        kinds: limits by kind.
        reserve_bytes: what samples and telemetry leave free on the disk for everything else.
        group_s, group_items: a commit waits so long, or for so many items.
        telemetry_flush_s: what was gathered since may be lost with the power.
        telemetry_memory_bytes: gathered before it is flushed early.
        pending_items, pending_bytes: what may wait for the disk in memory.
    """

    n_bytes: int = 512 << 20
    n_items: int = 200_000
    kinds: dict[Kind, KindLimits] = field(default_factory=_by_kind)
    reserve_bytes: int = 64 << 20
    group_s: float = 0.02
    group_items: int = 64
    telemetry_flush_s: float = 30.0
    telemetry_memory_bytes: int = 256 << 10
    pending_items: int = 1024
    pending_bytes: int = 128 << 20
