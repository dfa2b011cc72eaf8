"""A device's energy as a model: powers of its states times the seconds that it spends in them.

Design: nothing is measured here; every joule that comes out is *modelled* and says so wherever it is shown. The powers
are those of the whole device in that state, as a meter at its plug would show them.

Source: the form (power of a state times the seconds in it) is that of Neurosurgeon (Kang et al., ASPLOS 2017).
"""

from typing import Final

import msgspec


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Watts of the whole device in each state.

    Attributes:
        idle_w: switched on and waiting.
        compute_w: running a model.
        transmit_w: sending.
        receive_w: receiving.
        source: where the figures come from.
    """

    idle_w: float
    compute_w: float
    transmit_w: float
    receive_w: float
    source: str = ""

    def energy_j(self, *, total_s: float, compute_s: float, transmit_s: float = 0.0, receive_s: float = 0.0) -> float:
        """Modelled joules of one request.

        Args:
            total_s: from the call to the answer.
            compute_s: of these, seconds of computing (what a hedge wasted included); they may overlap with the others.
            transmit_s: seconds of sending.
            receive_s: seconds of receiving.
        """
        return (
            self.idle_w * total_s
            + (self.compute_w - self.idle_w) * compute_s
            + (self.transmit_w - self.idle_w) * transmit_s
            + (self.receive_w - self.idle_w) * receive_s
        )


GENERIC_POWER: Final = Power(
    idle_w=2.5,
    compute_w=6.0,
    transmit_w=3.2,
    receive_w=3.0,
    source="generic single-board computer; an assumption, used while no device description is known",
)
"""About what a single-board computer of the last years draws; used where nothing is known of the device."""
