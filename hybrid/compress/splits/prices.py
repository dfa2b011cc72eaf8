"""What a request costs by a way: seconds on the device, on the link and at the gateway, or joules of the device."""

from dataclasses import dataclass

import msgspec

from devices.link_class import LinkClass
from hybrid.compress.job import Objective
from hybrid.cost.energy import Power


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and joules of one request, predicted from what was measured of its parts.

    Attributes:
        head_s: of the head, on the device.
        encode_s: of encoding, on the device.
        network_s: round trip, upload and download.
        gateway_s: of decoding and the tail.
        energy_j: of the device, modelled.
    """

    head_s: float
    encode_s: float = 0.0
    network_s: float = 0.0
    gateway_s: float = 0.0
    energy_j: float = 0.0

    @property
    def total_s(self) -> float:
        """From the call to the answer."""
        return self.head_s + self.encode_s + self.network_s + self.gateway_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices of one device, one link and one gateway.

    Attributes:
        link: medians of its class count, on a connection in full swing.
        power: of the device.
        objective: of the job; bytes of files say nothing of requests, so seconds stand for them.
        local_s: of the whole model on the device.
        gateway_s: of the whole model at the gateway.
        pace: seconds of the device for one of this machine's, by which encoding is scaled.
    """

    link: LinkClass
    power: Power
    objective: Objective
    local_s: float
    gateway_s: float
    pace: float

    def local(self, seconds: float) -> Spent:
        """The device alone, in so many seconds."""
        return Spent(head_s=seconds, energy_j=self.power.energy_j(total_s=seconds, compute_s=seconds))

    def divided(
        self, *, head_s: float, encode_s: float, up_bytes: float, decode_s: float, tail_s: float, down_bytes: float
    ) -> Spent:
        """A request that is divided.

        Args:
            head_s: on the device.
            encode_s: on this machine.
            up_bytes: of the payloads.
            decode_s: at the gateway.
            tail_s: at the gateway.
            down_bytes: of the answer.
        """
        up_s, down_s = 8 * up_bytes / self.link.up_bps, 8 * down_bytes / self.link.down_bps
        encode_s *= self.pace
        spent = Spent(
            head_s=head_s,
            encode_s=encode_s,
            network_s=self.link.rtt_s + up_s + down_s,
            gateway_s=decode_s + tail_s,
        )
        joules = self.power.energy_j(
            total_s=spent.total_s, compute_s=head_s + encode_s, transmit_s=up_s, receive_s=down_s
        )
        return msgspec.structs.replace(spent, energy_j=joules)

    def cost(self, spent: Spent) -> float:
        """What is made small."""
        return spent.energy_j if self.objective == "energy" else spent.total_s
