"""What a machine is, as data: cores, memory, engines, power, price, and how fast one of its cores is."""

from dataclasses import dataclass
from math import isfinite
from typing import Final

from devices.errors import CatalogInvalid
from devices.source import Source

REFERENCE_CORE: Final = "AMD EPYC 7742"
"""One core of this server processor (Zen 2, 2019) counts as 1 in every `slowdown_ratio`."""

KINDS: Final = ("single-board computer", "accelerator board", "phone", "gateway", "industrial computer", "mini PC")
INTERFACES: Final = ("ethernet", "wifi", "lte")


@dataclass(frozen=True, slots=True, kw_only=True)
class Radio:
    """What one network interface draws, beside what the machine draws anyway.

    Attributes:
        idle_w: attached and waiting, in watts.
        transmit_w: more than `idle_w` while it sends at full rate.
        receive_w: more than `idle_w` while it receives at full rate.
        tail_s: how long it stays awake after the last byte (the radio's tail), in seconds.
        tail_w: more than `idle_w` during that time.
    """

    idle_w: float = 0.0
    transmit_w: float = 0.0
    receive_w: float = 0.0
    tail_s: float = 0.0
    tail_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One class of machines.

    Attributes:
        name: short and stable, such as `rpi-4b`; the name of its file in the catalog.
        title: as people call it.
        kind: one of `KINDS`.
        cpu: model of the processor, and its clock.
        n_cores: cores that compute an engine's threads (the big ones of a phone and the small ones alike).
        memory_bytes: main memory.
        engines: what can compute a model here: `cpu` always, then such as `cuda`, `npu`, `gpu`.
        slowdown_ratio: seconds that one core takes for the same float32 model, over those of the reference core
            (`REFERENCE_CORE`); above 1 for a slower machine.
        idle_w: the whole machine at rest, in watts.
        active_w: the whole machine with every core computing, in watts.
        radios: by interface (`ethernet`, `wifi`, `lte`), what it draws beside.
        price_usd: what it cost new, None where no price is published.
        links: names of the link classes that it is typically on, the usual one first.
        recognised_by: what the board or the processor calls itself on such a machine; one of them is enough.
        sources: where its figures are from.
    """

    name: str
    title: str
    kind: str
    cpu: str
    n_cores: int
    memory_bytes: int
    engines: tuple[str, ...] = ("cpu",)
    slowdown_ratio: float
    idle_w: float
    active_w: float
    radios: tuple[tuple[str, Radio], ...] = ()
    price_usd: float | None = None
    links: tuple[str, ...] = ()
    recognised_by: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CatalogInvalid(f"device {self.name!r} is a {self.kind!r}; give one of {', '.join(KINDS)}")
        unknown = {interface for interface, _ in self.radios} - set(INTERFACES)
        if unknown:
            raise CatalogInvalid(f"device {self.name!r}: no interface is called {unknown}; give one of {INTERFACES}")
        if self.n_cores < 1 or self.memory_bytes < 1:
            raise CatalogInvalid(f"device {self.name!r} has no cores or no memory; give at least one of each")
        if not (isfinite(self.slowdown_ratio) and self.slowdown_ratio > 0):
            raise CatalogInvalid(f"device {self.name!r}: a slowdown of {self.slowdown_ratio} is none; give more than 0")
        if not 0 <= self.idle_w <= self.active_w:
            raise CatalogInvalid(
                f"device {self.name!r} draws {self.idle_w} W idle and {self.active_w} W active; "
                "give 0 <= idle <= active"
            )

    @property
    def core_w(self) -> float:
        """Watts that one computing core adds to the idle machine: the difference shared by the cores."""
        return (self.active_w - self.idle_w) / self.n_cores

    def radio(self, link: str) -> Radio:
        """What a link of this class draws here: LTE and 5G by the modem, Wi-Fi by its radio, else the cable."""
        interface = "wifi" if link.startswith("wifi") else "ethernet" if link == "ethernet" else "lte"
        return dict(self.radios).get(interface, Radio())

    def factor_on(self, host_slowdown_ratio: float) -> float:
        """How many times slower than a host this machine is, one core against one; below 1 where it is faster."""
        return self.slowdown_ratio / host_slowdown_ratio
