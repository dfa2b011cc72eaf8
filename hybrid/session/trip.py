"""What one run has done so far, from the call to the answer, and the report that is made of it."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hybrid.session.report import RunReport

if TYPE_CHECKING:  # a session that never meets a gateway does not load what these need
    from hybrid.route.departure import Outgoing
    from hybrid.route.variants import LocalVariant
    from hybrid.route.way import Way
    from hybrid.schedule.beliefs import Decision
    from hybrid.schedule.table import Table
    from hybrid.session.race import Outcome
    from hybrid.wire.message import InferResponse


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of a run, and its report."""

    outputs: list[Any]
    report: RunReport


@dataclass(slots=True)
class Trip:
    """Counters of one run; the report is made from them.

    Attributes:
        started_s: `perf_counter` at the call.
        deadline_s: seconds from the call in which it must be answered; None for no limit.
        plan_s: seconds of deciding.
        decision: the scheduler's first one for this run, None while there was none.
        table: the prospects that it refers to.
        predicted_s: what the planner expects, None where it cannot know.
        attempts: failed attempts.
        bytes_up: bytes that went up without leading to the answer.
        wasted_s: seconds of computing that did not lead to the answer.
        hedge_s: when the device began beside a gateway, in seconds from departure; None if it never did.
        fallback: why the device answers, `code: message`, or None.
        variant: the local variant that computes here, None for the model itself.
        cut: where the device went on from a head's activation, empty where it computed in one piece.
    """

    started_s: float = field(default_factory=perf_counter)
    deadline_s: float | None = None
    plan_s: float = 0.0
    decision: "Decision | None" = None
    table: "Table | None" = None
    predicted_s: float | None = None
    attempts: int = 0
    bytes_up: int = 0
    wasted_s: float = 0.0
    hedge_s: float | None = None
    fallback: str | None = None
    variant: "LocalVariant | None" = None
    cut: str = ""

    @property
    def left_s(self) -> float | None:
        """Seconds that are left until the deadline; None without one."""
        return None if self.deadline_s is None else self.deadline_s - (perf_counter() - self.started_s)

    def report_here(self, computed_s: float, model_digest: str) -> RunReport:
        """The device answered, after computing so long."""
        return RunReport(
            cut=self.cut,
            bytes_up=self.bytes_up,
            head_s=computed_s,
            total_s=perf_counter() - self.started_s,
            predicted_s=self.predicted_s,
            plan_s=self.plan_s,
            hedge_s=self.hedge_s,
            wasted_s=self.wasted_s,
            wasted_bytes=self.bytes_up,
            attempts=self.attempts + 1,
            fallback=self.fallback,
            model_digest=model_digest,
            variant=self.variant.prospect.variant if self.variant is not None else "",
        )

    def report_there(
        self, way: "Way", sent: "Outgoing", outcome: "Outcome", response: "InferResponse", model_digest: str
    ) -> RunReport:
        """A gateway answered."""
        moved_s = outcome.arrived_s - sent.sent_s
        return RunReport(
            placement=way.prospect.placement,
            cut=way.prospect.cut,
            codec=way.prospect.codec,
            gateway=way.prospect.gateway,
            bytes_up=self.bytes_up + sent.bytes_up,
            bytes_down=sum(len(tensor.payload) for tensor in response.outputs),
            head_s=sent.head_s,
            encode_s=sent.encode_s,
            network_s=max(0.0, moved_s - response.queue_s - response.compute_s),
            queue_s=response.queue_s,
            tail_s=response.compute_s,
            total_s=perf_counter() - self.started_s,
            predicted_s=self.predicted_s,
            plan_s=self.plan_s,
            hedge_s=self.hedge_s,
            wasted_s=self.wasted_s,
            wasted_bytes=self.bytes_up,
            attempts=self.attempts + 1,
            fallback=self.fallback,
            model_digest=model_digest,
        )
