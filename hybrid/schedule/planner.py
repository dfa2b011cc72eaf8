"""The choice among all ways to answer one request: a pure function of what was measured.

Design: no clock, no I/O, no state. The caller hands in the prospects with their profiled seconds, the link as it is
believed to be and the running speed ratios; the same inputs always give the same decision, so that one can be replayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybrid.cost.link import LinkView
from hybrid.schedule.options import Objective, PlacementKind

SWITCH_GAIN_RATIO = 0.1
"""A plan is left only for one that is better by this share..."""

SWITCH_GAIN_S = 0.0005
"""...and by at least this much: below it, measuring noise would decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One way to answer a request, with what is known of its parts.

    Attributes:
        placement: where it computes.
        cut: cut id of a split, else an empty string.
        codec: how the crossing tensors are encoded.
        gateway: URL of the gateway, empty for local.
        head_s: profiled seconds on the device (the whole model for local); None while not timed.
        encode_s: seconds to encode what crosses.
        bytes_up: encoded bytes that go up, as measured on a real request.
        bytes_down: bytes of the reply, as they came.
        reply_bytes: bytes of the reply's tensors before any encoding.
        tail_s: profiled seconds at the gateway; None while not timed.
        accuracy_drop: calibrated loss, 0 for lossless; None for a lossy codec that nobody calibrated.
        raw_input: whether one of the model's own inputs crosses.
        obstacle: why it cannot be used at all, or an empty string.
    """

    placement: PlacementKind
    cut: str = ""
    codec: str = "none"
    gateway: str = ""
    head_s: float | None = 0.0
    encode_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    reply_bytes: int = 0
    tail_s: float | None = 0.0
    accuracy_drop: float | None = 0.0
    raw_input: bool = False
    obstacle: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells this prospect from the others of its request."""
        return (self.placement, self.cut, self.codec, self.gateway)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """What is believed of one gateway: its link, its speed ratio to its profile, its queue in seconds."""

    link: LinkView
    speed_ratio: float = 1.0
    queue_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One considered placement, as `session.explain()` shows it.

    Attributes:
        placement: `local`, `offload` or `split`.
        cut: cut id of a split, else an empty string.
        codec: how the crossing tensors are encoded.
        gateway: URL of the gateway, empty for local.
        predicted_s: expected seconds of a request; None when a part of it is not measured yet.
        bytes_up: bytes that would go up.
        accuracy_drop: calibrated loss as a ratio, None if unknown.
        chosen: whether the planner takes it now.
        reason: why it is chosen, or why not.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """All that a decision rests on beside the prospects.

    Attributes:
        device_speed_ratio: running ratio of measured to profiled seconds on this device.
        gateways: what is believed of each gateway that can be reached now, by URL.
        constraints: what a plan must keep.
        objective: what is minimised.
    """

    device_speed_ratio: float
    gateways: Mapping[str, GatewayView]
    constraints: Constraints
    objective: Objective = "latency"


def predicted_s(prospect: Prospect, device_speed_ratio: float, gateway: GatewayView | None) -> float | None:
    """Expected seconds of a request; None while a part of it is not measured.

    The sum of DESIGN section 5: head, encoding, network, queue, tail; each profiled part times the running ratio of
    measured to profiled seconds on its side.
    """
    if prospect.head_s is None or prospect.tail_s is None:
        return None
    here_s = prospect.head_s * device_speed_ratio + prospect.encode_s
    if prospect.placement == "local":
        return here_s
    if gateway is None:
        return None
    network_s = gateway.link.transfer_s(prospect.bytes_up, prospect.bytes_down)
    if network_s is None:
        return None
    return here_s + network_s + gateway.queue_s + prospect.tail_s * gateway.speed_ratio


def cost(prospect: Prospect, total_s: float, device_speed_ratio: float, objective: Objective) -> float:
    """What the objective minimises, in seconds or bytes."""
    head_s = (prospect.head_s or 0.0) * device_speed_ratio + prospect.encode_s
    if objective == "latency":
        return total_s
    if objective == "throughput":
        return max(head_s, total_s - head_s)
    if objective == "bytes":
        return prospect.bytes_up + prospect.bytes_down + total_s * 1e-6
    # Energy on the device: computing costs its full power, waiting and sending about a third of it (a single-board
    # computer idles at a third to a half of its full load); the device descriptions will say it per machine.
    return head_s + (total_s - head_s) / 3


def refusal(prospect: Prospect, constraints: Constraints) -> str:
    """Why this prospect may not be used, or an empty string."""
    if prospect.obstacle:
        return prospect.obstacle
    if prospect.placement == "local":
        return ""
    if prospect.raw_input and not constraints.raw_input_may_leave:
        return "the model's raw input may not leave this machine"
    if prospect.accuracy_drop is None and not constraints.lossy_allowed:
        return f"codec {prospect.codec} is lossy and not calibrated"
    if prospect.accuracy_drop is not None and prospect.accuracy_drop > constraints.max_accuracy_drop:
        return f"accuracy drop {prospect.accuracy_drop:.3f} is above {constraints.max_accuracy_drop:.3f}"
    if constraints.uplink_left_bytes is not None and prospect.bytes_up > constraints.uplink_left_bytes:
        return "the uplink budget is used up for now"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The planner's answer: the prospect taken, its expected seconds, and all costs (none if it was forced).

    `index` is the chosen one's place among the prospects.
    """

    chosen: Prospect
    predicted_s: float | None
    costs: tuple[float | None, ...]
    index: int = 0


def choose(
    prospects: Sequence[Prospect], beliefs: Beliefs, current: tuple[str, str, str, str] | None = None
) -> Decision:
    """The best prospect; the current plan stays unless another beats it by more than the switching gain.

    Args:
        prospects: all ways, the first one local (always possible).
        beliefs: what is known now.
        current: key of the plan in use, None at first.
    """
    best, best_cost, best_s = 0, None, None
    kept, kept_cost, kept_s = None, 0.0, None
    costs: list[float | None] = []
    for index, prospect in enumerate(prospects):
        total_s = None
        if not refusal(prospect, beliefs.constraints):
            total_s = predicted_s(prospect, beliefs.device_speed_ratio, beliefs.gateways.get(prospect.gateway))
        if total_s is None:
            costs.append(None)
            continue
        value = cost(prospect, total_s, beliefs.device_speed_ratio, beliefs.objective)
        costs.append(value)
        if prospect.key == current:
            kept, kept_cost, kept_s = index, value, total_s
        if best_cost is None or value < best_cost:
            best, best_cost, best_s = index, value, total_s
    if (
        kept is not None
        and best_cost is not None
        and kept_cost - best_cost < max(SWITCH_GAIN_RATIO * kept_cost, SWITCH_GAIN_S)
    ):
        return Decision(chosen=prospects[kept], predicted_s=kept_s, costs=tuple(costs), index=kept)
    return Decision(chosen=prospects[best], predicted_s=best_s, costs=tuple(costs), index=best)


def explained(prospects: Sequence[Prospect], decision: Decision, beliefs: Beliefs) -> list[Candidate]:
    """Every prospect in words, for people."""
    rows = []
    for prospect in prospects:
        chosen = prospect.key == decision.chosen.key
        why = refusal(prospect, beliefs.constraints)
        total_s = predicted_s(prospect, beliefs.device_speed_ratio, beliefs.gateways.get(prospect.gateway))
        rows.append(
            Candidate(
                placement=prospect.placement,
                cut=prospect.cut,
                codec=prospect.codec,
                gateway=prospect.gateway,
                predicted_s=None if why else total_s,
                bytes_up=prospect.bytes_up,
                accuracy_drop=prospect.accuracy_drop,
                chosen=chosen,
                reason=_reason(why, total_s, decision, chosen=chosen),
            )
        )
    return rows


def _reason(why: str, total_s: float | None, decision: Decision, *, chosen: bool) -> str:
    if why:
        return why
    if chosen and not decision.costs:
        return "forced by options.placement"
    if total_s is None:
        return "not measured yet"
    if chosen:
        return "lowest expected cost, or not beaten by more than the switching gain"
    if decision.predicted_s is None:
        return "not compared yet"
    return f"expected {1e3 * (total_s - decision.predicted_s):+.1f} ms against the chosen one"
