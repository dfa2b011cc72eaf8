"""What one run has done so far, from the call to the answer."""

from dataclasses import dataclass, field
from time import perf_counter


@dataclass(slots=True)
class Trip:
    """Counters of one run; the report is made from them.

    Attributes:
        started_s: `perf_counter` at the call.
        plan_s: seconds of deciding.
        predicted_s: what the planner expects, None where it cannot know.
        attempts: failed attempts.
        bytes_up: bytes that failed attempts sent.
        wasted_s: seconds that failed attempts computed.
        wasted_bytes: bytes that did not lead to the answer.
        fallback: why the device answers, `code: message`, or None.
    """

    started_s: float = field(default_factory=perf_counter)
    plan_s: float = 0.0
    predicted_s: float | None = None
    attempts: int = 0
    bytes_up: int = 0
    wasted_s: float = 0.0
    wasted_bytes: int = 0
    fallback: str | None = None
