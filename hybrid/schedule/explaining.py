"""What is expected of each prospect, in words and seconds for people.

Design: a sum of the parts without hedge, slow start or spread, so that a person can follow it; the choice itself is
made by `deciding.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybrid.cost.link_view import LinkView
from hybrid.schedule.prospect import Candidate, Constraints, Prospect, refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """What is believed of one gateway: its link, its speed ratio to its profile, its queue in seconds."""

    link: LinkView
    speed_ratio: float = 1.0
    queue_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """What an explanation rests on beside the prospects.

    Attributes:
        device_speed_ratio: running ratio of measured to profiled seconds on this device.
        gateways: what is believed of each gateway that can be reached now, by URL.
        constraints: what a plan must keep.
    """

    device_speed_ratio: float
    gateways: Mapping[str, GatewayView]
    constraints: Constraints


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


def explained(
    prospects: Sequence[Prospect],
    chosen: Prospect,
    chosen_s: float | None,
    beliefs: Beliefs,
    *,
    is_forced: bool = False,
) -> list[Candidate]:
    """Every prospect in words.

    Args:
        prospects: all of them, usable or not.
        chosen: the one that is taken now.
        chosen_s: its expected seconds, None while unknown.
        beliefs: what is known now.
        is_forced: whether it was taken since the options name its placement.
    """
    rows = []
    for prospect in prospects:
        is_chosen = prospect.key == chosen.key
        why = refusal(prospect, beliefs.constraints)
        total_s = predicted_s(prospect, beliefs.device_speed_ratio, beliefs.gateways.get(prospect.gateway))
        if is_chosen and not why:
            why = "forced by options.placement" if is_forced else "lowest expected cost, or not yet worth leaving"
            total_s = total_s if chosen_s is None else chosen_s
        rows.append(
            Candidate(
                placement=prospect.placement,
                cut=prospect.cut,
                codec=prospect.codec,
                gateway=prospect.gateway,
                predicted_s=None if why and not is_chosen else total_s,
                bytes_up=prospect.bytes_up,
                accuracy_drop=prospect.accuracy_drop,
                chosen=is_chosen,
                reason=why or _compared(total_s, chosen_s),
                variant=prospect.variant,
            )
        )
    return rows


def _compared(total_s: float | None, chosen_s: float | None) -> str:
    if total_s is None:
        return "not measured yet"
    if chosen_s is None:
        return "not compared yet"
    return f"expected {1e3 * (total_s - chosen_s):+.1f} ms against the chosen one"
