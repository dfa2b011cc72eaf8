"""The choice among all ways to answer one request: a pure function of what was measured.

Design: no clock, no I/O, no state. The caller hands in the prospects with their profiled seconds, the link as it is
believed to be and the running speed ratios; the same inputs always give the same decision, so that one can be replayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybrid.cost.link import LinkView
from hybrid.schedule.options import Objective
from hybrid.schedule.prospect import Candidate, Constraints, Key, Prospect, local_only, refusal

__all__ = [
    "Beliefs",
    "Candidate",
    "Constraints",
    "Decision",
    "GatewayView",
    "Prospect",
    "choose",
    "cost",
    "explained",
    "local_only",
    "predicted_s",
    "refusal",
]

SWITCH_GAIN_RATIO = 0.1
"""A plan is left only for one that is better by this share..."""

SWITCH_GAIN_S = 0.0005
"""...and by at least this much: below it, measuring noise would decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """What is believed of one gateway: its link, its speed ratio to its profile, its queue in seconds."""

    link: LinkView
    speed_ratio: float = 1.0
    queue_s: float = 0.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The planner's answer: the prospect taken, its expected seconds, and all costs (none if it was forced).

    `index` is the chosen one's place among the prospects.
    """

    chosen: Prospect
    predicted_s: float | None
    costs: tuple[float | None, ...]
    index: int = 0


def choose(prospects: Sequence[Prospect], beliefs: Beliefs, current: Key | None = None) -> Decision:
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
