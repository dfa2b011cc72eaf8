"""Classes of links as data: rates, round trip, jitter and loss, and the states that a link of this class moves between.

Design: what is kept are statistics that somebody measured, second by second: five quantiles of either rate, how much of
the time the link was good, weak (below half its median) or out (below a twentieth), and how long such a state lasted.
`devices.markov` draws traces from exactly these, so nothing is fitted that could drift away from its source.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from devices.errors import CatalogInvalid
from devices.source import Source

WEAK_BELOW_RATIO: Final = 0.5
"""A second is weak when its rate is below this share of the median."""

OUT_BELOW_RATIO: Final = 0.05
"""A second is an outage when its rate is below this share of the median."""

STATES: Final = ("outage", "weak", "good")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast one direction was in the course of time: quantiles of the goodput of single seconds, in bit/s."""

    p5_bps: float
    p25_bps: float
    median_bps: float
    p75_bps: float
    p95_bps: float

    def __post_init__(self) -> None:
        ladder = (0.0, self.p5_bps, self.p25_bps, self.median_bps, self.p75_bps, self.p95_bps)
        if self.median_bps <= 0 or any(low > high for low, high in pairwise(ladder)):
            raise CatalogInvalid(f"rates of {ladder[1:]} bit/s do not rise from 0 on over a median above 0")

    @classmethod
    def steady(cls, bps: float) -> "Rates":
        """A rate that never changes."""
        return cls(p5_bps=bps, p25_bps=bps, median_bps=bps, p75_bps=bps, p95_bps=bps)

    @property
    def is_steady(self) -> bool:
        """Whether all quantiles are one."""
        return self.p5_bps == self.p95_bps


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """One state of a link.

    Attributes:
        name: `outage`, `weak` or `good`.
        share_ratio: of all time that the link spends in it, 0 to 1.
        mean_s: how long one visit lasts on average, in seconds.
    """

    name: str
    share_ratio: float
    mean_s: float

    def __post_init__(self) -> None:
        if self.name not in STATES or not 0 <= self.share_ratio <= 1 or not self.mean_s > 0:
            raise CatalogInvalid(
                f"state {self.name!r} with a share of {self.share_ratio} and {self.mean_s} s: give one of {STATES}, "
                "a share from 0 to 1 and a time above 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClass:
    """One class of links.

    Attributes:
        name: short and stable, such as `lte`; the name of its file in the catalog.
        title: as people call it.
        up: goodput from device to gateway.
        down: goodput from gateway to device.
        rtt_s: median round trip of a small packet on the idle link.
        jitter_s: standard deviation of the round trip.
        loss_ratio: packets lost in each direction, 0 to 1, as TCP sees them.
        states: of its traces; none for a link that keeps its rate.
        persistence_ratio: correlation of log(rate) from one second to the next within a state, 0 to 1.
        sources: where its figures are from.
    """

    name: str
    title: str
    up: Rates
    down: Rates
    rtt_s: float
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    states: tuple[LinkState, ...] = ()
    persistence_ratio: float = 0.0
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.rtt_s < 0 or self.jitter_s < 0 or not 0 <= self.loss_ratio < 1:
            raise CatalogInvalid(f"link {self.name!r}: give rtt_s and jitter_s from 0 on and loss_ratio below 1")
        if not 0 <= self.persistence_ratio < 1:
            raise CatalogInvalid(f"link {self.name!r}: a persistence of {self.persistence_ratio} is none; give 0 to 1")
        names = [state.name for state in self.states]
        if len(set(names)) != len(names) or (
            names and abs(sum(state.share_ratio for state in self.states) - 1) > 0.005
        ):
            raise CatalogInvalid(f"link {self.name!r}: the shares of different states must add up to 1")

    @property
    def up_bps(self) -> float:
        """Median goodput from device to gateway, bit/s."""
        return self.up.median_bps

    @property
    def down_bps(self) -> float:
        """Median goodput from gateway to device, bit/s."""
        return self.down.median_bps
