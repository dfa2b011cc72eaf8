"""What a prospect is expected to take, as the sum of its parts: to rank those that are not offered yet."""

from dataclasses import dataclass

from hybrid.cost.link_view import LinkView
from hybrid.schedule.prospect import Prospect


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """What is believed of one gateway: its link, its speed ratio to its profile, its queue in seconds."""

    link: LinkView
    speed_ratio: float = 1.0
    queue_s: float = 0.0


def predicted_s(prospect: Prospect, device_speed_ratio: float, gateway: GatewayView | None) -> float | None:
    """Expected seconds of a request without a hedge; None while a part of it is not measured.

    Head, encoding, network, queue, tail; each profiled part times the running ratio of measured to profiled seconds on
    its side. Slow start and spread are left out.
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
