"""Classes of links as data: rate, round trip, jitter and loss, and the states that its traces move between."""

from dataclasses import dataclass

from devices.errors import CatalogInvalid
from devices.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """One state of a link's Markov trace.

    Attributes:
        name: `good`, `weak` or `outage`.
        share_ratio: of all time that the link spends in it, 0 to 1.
        mean_s: how long one visit lasts on average; lengths are exponential.
        up_bps: median goodput from device to gateway while in it, bit/s; 0 in an outage.
        down_bps: median goodput from gateway to device.
        spread_ratio: standard deviation of log(rate) within the state.
        rtt_s: median round trip.
        loss_ratio: packets lost, 0 to 1.
    """

    name: str
    share_ratio: float
    mean_s: float
    up_bps: float
    down_bps: float
    spread_ratio: float = 0.0
    rtt_s: float = 0.0
    loss_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClass:
    """One class of links, as it is most of the time.

    Attributes:
        name: short and stable, such as `lte`; the name of its file in the catalog.
        title: as people call it.
        up_bps: median goodput from device to gateway, bit/s.
        down_bps: median goodput from gateway to device, bit/s.
        rtt_s: median round trip of a small packet on the idle link.
        jitter_s: standard deviation of the round trip.
        loss_ratio: packets lost, 0 to 1.
        states: of the Markov trace, with what was published of it put in.
        sources: where its figures are from.
    """

    name: str
    title: str
    up_bps: float
    down_bps: float
    rtt_s: float
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    states: tuple[LinkState, ...] = ()
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.up_bps <= 0 or self.down_bps <= 0:
            raise CatalogInvalid(f"link {self.name!r}: a rate of 0 bit/s is none; give more than 0")
        if self.rtt_s < 0 or self.jitter_s < 0 or not 0 <= self.loss_ratio < 1:
            raise CatalogInvalid(f"link {self.name!r}: give rtt_s and jitter_s from 0 on and loss_ratio below 1")
