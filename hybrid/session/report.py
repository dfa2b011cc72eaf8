"""What the last run did: where it computed, what it cost, and why it fell back if it did."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One finished run.

    Attributes:
        placement: of the winner: `local`, `offload` or `split`.
        cut: cut id of a split; beside `local` the one from whose activation the device went on when it overtook the
            gateway: that answer is within 1e-4 of the whole model's, as a split's is. Else an empty string.
        codec: how the crossing tensors were encoded.
        gateway: URL of the gateway that computed, empty for local.
        bytes_up: all bytes of tensors that were sent, those of failed attempts included.
        bytes_down: all bytes of tensors that were received.
        head_s: seconds that the device computed for the answer (the whole model when local).
        encode_s: seconds of encoding.
        network_s: seconds between sending and receiving less the gateway's own.
        queue_s: seconds that the request waited at the gateway.
        tail_s: seconds that the gateway computed.
        total_s: seconds from the call to the answer.
        predicted_s: what the planner expected, None where it could not know.
        plan_s: seconds of deciding.
        hedge_s: when a second computation was started beside the first, None if never.
        wasted_s: seconds of computing that did not lead to the answer.
        wasted_bytes: bytes sent that did not lead to the answer.
        attempts: how many placements were tried.
        fallback: None, or why the device answered instead of the planned placement: `code: message`.
        model_digest: digest of the model that computed the answer, empty until it is known.
        variant: id of the artifact's local variant that computed it, empty for the model itself.
        engine_fallback: None, or why this device's CPU computes in place of the accelerator that was asked for:
            `provider: reason`. It is tried again later.
        answered_by: in a cascade which model answered: `small`, `large`, or `both` (some rows the one, some the other).
            Where `small` did although it was not sure, `fallback` says why.
        confidence: in a cascade how sure the small model was, 0 to 1, of its least sure row.
    """

    placement: str = "local"
    cut: str = ""
    codec: str = "none"
    gateway: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    head_s: float = 0.0
    encode_s: float = 0.0
    network_s: float = 0.0
    queue_s: float = 0.0
    tail_s: float = 0.0
    total_s: float = 0.0
    predicted_s: float | None = None
    plan_s: float = 0.0
    hedge_s: float | None = None
    wasted_s: float = 0.0
    wasted_bytes: int = 0
    attempts: int = 1
    fallback: str | None = None
    model_digest: str = ""
    variant: str = ""
    engine_fallback: str | None = None
    answered_by: str = ""
    confidence: float | None = None


class ReportSlot:
    """The last report of each thread or asyncio task.

    A purely local run leaves only its seconds: the full report is built when somebody reads it, since building it costs
    more than everything else that the library adds to such a run.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: ContextVar[RunReport | tuple[float, str] | None] = ContextVar("hybrid_last_report", default=None)

    def put(self, report: RunReport) -> None:
        """Keeps the report of the run that just ended here."""
        self._last.set(report)

    def put_local(self, total_s: float, model_digest: str) -> None:
        """Keeps what is needed to build the report of a purely local run."""
        self._last.set((total_s, model_digest))

    def get(self) -> RunReport | None:
        """The last report of this thread or task, None before its first run."""
        last = self._last.get()
        if isinstance(last, tuple):
            total_s, model_digest = last
            return RunReport(head_s=total_s, total_s=total_s, model_digest=model_digest)
        return last
