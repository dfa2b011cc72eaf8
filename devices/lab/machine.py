"""The device's half of a lab: a machine of the catalog, emulated by a slowdown of its programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from devices.device import Device

SlowdownKind = Literal["auto", "quota", "pacing", "none"]

_HARDLY_SLOWER_RATIO: Final = 1.02


class Slowdown(Protocol):
    """What slows the programs of a place down."""

    @property
    def groups(self) -> Sequence[str]:
        """Control groups' lists of processes that its programs join."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that its programs get."""
        ...

    def close(self) -> None:
        """Takes away what the emulation made; its programs have ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """Which machine a lab's device is, and how.

    Attributes:
        name: of the catalog, or what was given in its place.
        factor: how many times slower than this machine a core is; 1 for this machine itself.
        kind: what slows it down: `cgroup v1`, `cgroup v2`, `pacing` or `nothing`.
        n_cores: that may compute; None for as many as there are.
    """

    name: str
    factor: float
    kind: str
    n_cores: int | None


def device_of(device: Device | str | None) -> Device | None:
    """A machine that was given in any of its forms; a string is a name of the catalog or a TOML file.

    Raises:
        CatalogUnknown: no machine of that name.
    """
    if isinstance(device, str):
        from devices.catalog.load import device as load

        return load(device)
    return device


def emulated(
    device: Device | None, kind: SlowdownKind, host_slowdown_ratio: float, n_cores: int
) -> tuple[Slowdown | None, Emulated]:
    """The slowdown that makes this machine that one; None where there is nothing to slow down.

    Args:
        device: which machine; None for this one.
        kind: of the slowdown, or `auto` for the best that is allowed.
        host_slowdown_ratio: how fast this machine is, as `Device.slowdown_ratio` counts.
        n_cores: that the device's programs use.

    Raises:
        EmulationUnavailable: a quota was asked for and is not allowed here.
    """
    if device is None:
        return None, Emulated(name="this machine", factor=1.0, kind="nothing", n_cores=None)
    factor = device.factor_on(host_slowdown_ratio)
    if kind == "none" or factor <= _HARDLY_SLOWER_RATIO:
        return None, Emulated(name=device.name, factor=1.0, kind="nothing", n_cores=None)
    from devices.slowdown import slow_down

    slowdown = slow_down(factor, n_cores=n_cores, kind=kind)
    return slowdown, Emulated(name=device.name, factor=factor, kind=slowdown.kind, n_cores=n_cores)
