"""One request on its way through the simulated world."""

from dataclasses import dataclass

from hybrid.simulation.device import Job
from hybrid.simulation.policy import Move


@dataclass(slots=True, eq=False)
class Request:
    """What is remembered of a request until it is answered.

    Attributes:
        slot: number in its stream; picks its luck.
        start_s: when it came.
        move: what was decided.
        over: whether it is answered.
        remote_open: whether a remote attempt may still answer.
        local_job: the whole model on the device, once it was asked for.
        departed_s: after head and encoding; 0 before.
        up_start_s: when the attempt under way began to leave.
        up_end_s: when its last byte leaves.
        n_up: its bytes; 0 where there is none.
        computing_to: when the gateway will have computed it.
        queue_s: what it waited there.
        compute_s: what it computed there.
        device_s: seconds on the device's engine so far.
        head_s: of these, of the head and the encoding.
        wasted_s: of these, in vain.
        up_s: seconds of sending so far.
        down_s: seconds of receiving.
        bytes_up: sent so far.
        bytes_down: received.
        wasted_bytes: of both, in vain.
        attempts: remote attempts so far.
        is_shadow: whether nobody waits for it: it only measures.
    """

    slot: int
    start_s: float
    move: Move
    over: bool = False
    remote_open: bool = False
    local_job: Job | None = None
    departed_s: float = 0.0
    up_start_s: float = 0.0
    up_end_s: float = 0.0
    n_up: float = 0.0
    computing_to: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    device_s: float = 0.0
    head_s: float = 0.0
    wasted_s: float = 0.0
    up_s: float = 0.0
    down_s: float = 0.0
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    wasted_bytes: float = 0.0
    attempts: int = 0
    is_shadow: bool = False
