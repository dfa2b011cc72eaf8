"""What routes must know of the machine that they are on: its cores, and what an attempt takes from a run."""

from dataclasses import dataclass
from typing import Final

from devices import machine, pace
from devices.errors import DeviceError

ATTEMPT_S: Final = 0.005
"""Processor seconds of one attempt (message, sending, receiving, report) on the catalog's reference core."""

UNKNOWN_RATIO: Final = 0.4
"""Slowness that is assumed of a machine that the catalog does not know: a current x86 core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThisMachine:
    """This machine as routes see it.

    Attributes:
        n_cores: whole cores that this process may use; with more than one a race is encoded and sent beside the run.
        attempt_s: what an attempt takes from a run beside it, until that is measured: nothing where another core does
            it.
    """

    n_cores: int
    attempt_s: float

    @classmethod
    def found(cls) -> "ThisMachine":
        """As this process finds it now; measures nothing."""
        n_cores = max(1, int(machine.usable_cores()))
        if n_cores > 1:
            return cls(n_cores=n_cores, attempt_s=0.0)
        try:
            known = machine.this_device()
        except DeviceError:
            known = None
        slowness = known.slowdown_ratio if known is not None else UNKNOWN_RATIO * pace.factor()
        return cls(n_cores=1, attempt_s=ATTEMPT_S * slowness)
