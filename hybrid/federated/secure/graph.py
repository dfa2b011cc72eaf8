"""Who is whose neighbour in a masked round: a random regular graph that every device draws for itself.

Source: Bell et al. 2020, section 3: a Harary graph (each place of a ring with the next k/2 on both sides) whose places
are dealt out at random is k-regular, and the neighbours of a device are a uniform draw.
"""

from collections.abc import Collection
from typing import Final

from hybrid.federated.secure.bounds import Plan
from hybrid.federated.secure.cipher import Stream, derived

LABEL: Final = b"hybrid secure graph v1"


class Graph:
    """The graph of a roster; the same for all who hold the same roster.

    Args:
        plan: number of devices and degree.
        roster_digest: seed; it holds everybody's fresh keys, so it is settled only once all are advertised.
    """

    def __init__(self, plan: Plan, roster_digest: bytes) -> None:
        self.plan = plan
        self._device_at = list(range(plan.n_devices))
        if not plan.is_complete:
            stream = Stream(derived(roster_digest, b"", LABEL))
            for place in range(plan.n_devices - 1, 0, -1):
                other = stream.below(place + 1)
                devices = self._device_at
                devices[place], devices[other] = devices[other], devices[place]
        self._place_of = {device: place for place, device in enumerate(self._device_at)}
        self._holders: dict[int, tuple[int, ...]] = {}

    def neighbours(self, device: int) -> tuple[int, ...]:
        """Neighbours of a device, ascending."""
        n_devices = self.plan.n_devices
        if self.plan.is_complete:
            return tuple(other for other in range(n_devices) if other != device)
        place, half = self._place_of[device], self.plan.degree // 2
        steps = [*range(-half, 0), *range(1, half + 1)]
        return tuple(sorted(self._device_at[(place + step) % n_devices] for step in steps))

    def holders(self, device: int) -> tuple[int, ...]:
        """Who gets a share of a device's secrets: its neighbours and itself, ascending."""
        found = self._holders.get(device)
        if found is None:
            found = self._holders[device] = tuple(sorted((*self.neighbours(device), device)))
        return found

    def core(self, devices: Collection[int]) -> frozenset[int]:
        """The largest part of these of which each has at least a threshold of holders in it."""
        core = set(devices)
        while True:
            bare = {one for one in core if sum(other in core for other in self.holders(one)) < self.plan.threshold}
            if not bare:
                return frozenset(core)
            core -= bare
