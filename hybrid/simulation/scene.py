"""A scene: everything that a policy meets, and the luck that belongs to it."""

from dataclasses import dataclass

import numpy as np

from hybrid.simulation.device import DeviceModel
from hybrid.simulation.gateway import GatewayModel
from hybrid.simulation.link import LinkModel
from hybrid.simulation.luck import Luck, draw
from hybrid.simulation.stream import Stream
from hybrid.simulation.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything but the policy: the same scene gives every policy the same luck.

    Attributes:
        work: the ways to answer, with their true parts.
        link: the link.
        device: the device.
        gateway: the gateway.
        stream: when requests come.
        seed: of all chance.
        cascade_head_s: seconds of a cascade's small model on the device (see `Conduct.unsure_ratio`).
    """

    work: Work
    link: LinkModel
    stream: Stream
    device: DeviceModel = DeviceModel()
    gateway: GatewayModel = GatewayModel()
    seed: int = 0

    def luck(self) -> Luck:
        """What chance gives each request."""
        return draw(np.random.default_rng([self.seed, 1]), self.device.noise_ratio, self.gateway.noise_ratio)
