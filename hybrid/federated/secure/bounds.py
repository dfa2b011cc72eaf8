"""How many neighbours and how many shares a masked round needs, so that stated losses and stated corruption are borne.

Source: Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS 2020: the neighbours of a device are a uniform draw, so hypergeometric tails bound what can go wrong (section 3
there); Bonawitz et al., CCS 2017, section 6, for the quorum against a gateway that lies.
Design: all sums are of whole numbers, because gateway and devices must come to the same degree and the same threshold
on every machine; rates are percents for the same reason.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb
from typing import Final

from hybrid.errors import BadMessage

MAX_DEVICES: Final = 1024
SECURITY_BITS: Final = 40
GRINDING_BITS: Final = 64
"""A gateway may try this many (as a power of two) of its own devices' keys until the graph suits it."""
AVAILABILITY_BITS: Final = 20
COMPLETE_UP_TO: Final = 64
"""Devices that are all each other's neighbours: a sparser graph would spare little."""
LEAST_GROUP: Final = 8
"""Honest devices in every sum that can be uncovered on a sparse graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers of a round of n devices.

    Attributes:
        n_devices: on the roster.
        n_corrupt: of them that may work for the gateway.
        n_lost: of them that may be lost, by chance.
        quorum: devices that must sign one and the same live set; also the fewest in it.
        degree: neighbours of a device; n_devices - 1 is the complete graph.
        threshold: shares that rebuild a secret, of `degree` + 1.
    """

    n_devices: int
    n_corrupt: int
    n_lost: int
    quorum: int
    degree: int
    threshold: int

    @property
    def is_complete(self) -> bool:
        """Whether every device is every other's neighbour."""
        return self.degree == self.n_devices - 1


def tail(n_all: int, n_marked: int, n_drawn: int, least: int) -> Fraction:
    """Chance that a draw without replacement holds at least so many marked ones (hypergeometric upper tail)."""
    most = min(n_marked, n_drawn)
    ways = sum(comb(n_marked, m) * comb(n_all - n_marked, n_drawn - m) for m in range(max(0, least), most + 1))
    return Fraction(ways, comb(n_all, n_drawn))


def exposure(plan: Plan) -> Fraction:
    """Bound on the chance that some honest device could be uncovered in a group below `LEAST_GROUP`.

    A device whose neighbours are corrupt less often than the threshold keeps its secrets, and of the `threshold`
    live holders that every device checks (itself among them) the rest are honest: they are its group.
    """
    if plan.is_complete:
        return Fraction(int(plan.threshold - plan.n_corrupt < 2))
    return plan.n_devices * tail(
        plan.n_devices - 1, plan.n_corrupt, plan.degree, max(0, plan.threshold - LEAST_GROUP + 1)
    )


def failure(plan: Plan) -> Fraction:
    """Bound on the chance that random losses of the stated size leave some device with too few live neighbours."""
    if plan.is_complete:
        return Fraction(int(plan.n_devices - plan.n_lost < plan.threshold))
    return plan.n_devices * tail(plan.n_devices - 1, plan.n_lost, plan.degree, max(0, plan.degree - plan.threshold + 1))


@lru_cache(maxsize=256)
def plan_for(n_devices: int, *, dropout_percent: int, corrupt_percent: int) -> Plan:
    """Degree, threshold and quorum for so many devices.

    The quorum is the least q with 2q > n + corrupt: two different live sets cannot both have it. The graph is the
    sparsest whose `exposure` stays below 2^-104 (40 bits, after 2^64 tries of the gateway) and whose `failure` below
    2^-20; where none is sparser than complete, the complete graph with the quorum as threshold.

    Raises:
        BadMessage: too few or too many devices, or rates that cannot both be borne.
    """
    if not 3 <= n_devices <= MAX_DEVICES:
        raise BadMessage(f"{n_devices} devices in a masked round; 3 to {MAX_DEVICES} are wanted: gather others")
    n_corrupt = max(1, n_devices * corrupt_percent // 100)
    n_lost = n_devices * dropout_percent // 100
    quorum = (n_devices + n_corrupt) // 2 + 1
    if n_devices - n_lost < quorum:
        raise BadMessage(
            f"{dropout_percent} % lost and {corrupt_percent} % corrupt of {n_devices} devices cannot both be borne: "
            f"{quorum} must remain, {n_devices - n_lost} would; state smaller rates"
        )
    complete = Plan(
        n_devices=n_devices,
        n_corrupt=n_corrupt,
        n_lost=n_lost,
        quorum=quorum,
        degree=n_devices - 1,
        threshold=quorum,
    )
    found = complete
    low, high = 1, 0 if n_devices <= COMPLETE_UP_TO else (n_devices - 2) // 2
    while low <= high:
        half = (low + high) // 2
        threshold = _threshold(complete, 2 * half)
        if threshold is None:
            low = half + 1
        else:
            found, high = _sparse(complete, 2 * half, threshold), half - 1
    return found


def _sparse(complete: Plan, degree: int, threshold: int) -> Plan:
    return Plan(
        n_devices=complete.n_devices,
        n_corrupt=complete.n_corrupt,
        n_lost=complete.n_lost,
        quorum=complete.quorum,
        degree=degree,
        threshold=threshold,
    )


def _threshold(complete: Plan, degree: int) -> int | None:
    """The largest threshold that the stated losses allow, None where it does not keep the secrets."""
    low, high = 1, degree
    while low < high:
        middle = (low + high + 1) // 2
        if failure(_sparse(complete, degree, middle)) * 2**AVAILABILITY_BITS <= 1:
            low = middle
        else:
            high = middle - 1
    plan = _sparse(complete, degree, low)
    bits = SECURITY_BITS + GRINDING_BITS
    return low if failure(plan) * 2**AVAILABILITY_BITS <= 1 and exposure(plan) * 2**bits <= 1 else None
