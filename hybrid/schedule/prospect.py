"""What the scheduler compares: the ways to answer one request, what they must keep, and how they are shown."""

from dataclasses import dataclass

from hybrid.schedule.options import PlacementKind

Key = tuple[str, str, str, str, str]
"""Placement, cut, codec, gateway, variant: what tells a prospect from the others of its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One way to answer a request, with what is known of its parts.

    Attributes:
        placement: where it computes.
        cut: cut id of a split, else an empty string.
        codec: how the crossing tensors are encoded.
        gateway: URL of the gateway, empty for local.
        variant: id of a local variant of the artifact, empty for the model itself.
        head_s: profiled seconds on the device (the whole model for local); None while not timed.
        encode_s: seconds to encode what crosses.
        bytes_up: encoded bytes that go up, as measured on a real request.
        bytes_down: bytes of the reply, as they came.
        reply_bytes: bytes of the reply's tensors before any encoding.
        tail_s: profiled seconds at the gateway; None while not timed.
        decode_s: seconds, at either end, to decode what crosses and to code the reply and decode it; 0 while not known.
        rest_s: profiled device seconds that finish the request alone once it has departed (a hedge); None for those
            of the best local prospect.
        accuracy_drop: calibrated loss, 0 for lossless; None for a lossy codec that nobody calibrated.
        raw_input: whether one of the model's own inputs crosses.
        obstacle: why it cannot be used at all, or an empty string.
    """

    placement: PlacementKind
    cut: str = ""
    codec: str = "none"
    gateway: str = ""
    variant: str = ""
    head_s: float | None = 0.0
    encode_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    reply_bytes: int = 0
    tail_s: float | None = 0.0
    decode_s: float = 0.0
    rest_s: float | None = None
    accuracy_drop: float | None = 0.0
    raw_input: bool = False
    obstacle: str = ""

    @property
    def key(self) -> Key:
        """What tells this prospect from the others of its request."""
        return (self.placement, self.cut, self.codec, self.gateway, self.variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One considered placement, as `session.explain()` shows it.

    Attributes:
        placement: `local`, `offload` or `split`.
        cut: cut id of a split, else an empty string.
        codec: how the crossing tensors are encoded.
        gateway: URL of the gateway, empty for local.
        predicted_s: expected seconds of a request, hedge included; None where it cannot be had, or is not measured.
        bytes_up: bytes that would go up.
        accuracy_drop: calibrated loss as a ratio, None if unknown.
        chosen: whether the planner takes it now.
        reason: why it is chosen, or why not.
        variant: id of a local variant of the artifact, empty for the model itself.
        hedge_s: when the device would begin beside it, in seconds from departure; None: never.
    """

    placement: PlacementKind
    cut: str
    codec: str
    gateway: str
    predicted_s: float | None
    bytes_up: int
    accuracy_drop: float | None
    chosen: bool
    reason: str
    variant: str = ""
    hedge_s: float | None = None


def local_only(reason: str) -> Candidate:
    """All that there is to explain where nothing remote is known."""
    return Candidate(
        placement="local",
        cut="",
        codec="none",
        gateway="",
        predicted_s=None,
        bytes_up=0,
        accuracy_drop=0.0,
        chosen=True,
        reason=reason,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a plan must keep: see `Options`; `uplink_left_bytes` is what the uplink budget still allows now."""

    max_accuracy_drop: float = 0.01
    raw_input_may_leave: bool = True
    uplink_left_bytes: float | None = None
    lossy_allowed: bool = False


def refusal(prospect: Prospect, constraints: Constraints) -> str:
    """Why this prospect may not be used, or an empty string."""
    if prospect.obstacle:
        return prospect.obstacle
    if prospect.accuracy_drop is None and not constraints.lossy_allowed:
        named = f"codec {prospect.codec}" if prospect.placement != "local" else f"variant {prospect.variant}"
        return f"{named} is lossy and not calibrated"
    if prospect.accuracy_drop is not None and prospect.accuracy_drop > constraints.max_accuracy_drop:
        return f"accuracy drop {prospect.accuracy_drop:.3f} is above {constraints.max_accuracy_drop:.3f}"
    if prospect.placement == "local":
        return ""
    if prospect.raw_input and not constraints.raw_input_may_leave:
        return "the model's raw input may not leave this machine"
    if constraints.uplink_left_bytes is not None and prospect.bytes_up > constraints.uplink_left_bytes:
        return "the uplink budget is used up for now"
    return ""
