"""The device's half of a lab: a machine of the catalog, emulated by a slowdown of its programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

from devices.device import Device

SlowdownKind = Literal["auto", "quota", "pacing", "none"]


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
    """

    name: str
    factor: float
    kind: str


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
    device: Device | None, kind: SlowdownKind, factor: float | None = None
) -> tuple[Slowdown | None, Emulated]:
    """The slowdown that makes this machine that one; None where there is nothing to slow down.

    Args:
        device: which machine; None for this one.
        kind: of the slowdown, or `auto` for the best that is allowed.
        factor: how many times slower than this machine; None for as many as the device is, by a short benchmark.

    Raises:
        EmulationUnavailable: a quota was asked for and is not allowed here.
        EmulationError: a factor below 1.
    """
    name = device.name if device is not None else "this machine"
    if kind == "none" or (device is None and factor is None):
        return None, Emulated(name=name, factor=1.0, kind="nothing")
    if factor is None:
        assert device is not None, "one of them was given"
        factor = max(1.0, device.factor_on(host_slowdown_ratio()))
    if factor == 1.0:
        return None, Emulated(name=name, factor=1.0, kind="nothing")
    from devices.slowdown import slow_down

    slowdown = slow_down(factor, kind=kind)
    return slowdown, Emulated(name=name, factor=factor, kind=slowdown.kind)


@cache
def host_slowdown_ratio() -> float:
    """How fast a core of this machine is, as `Device.slowdown_ratio` counts; measured once a process, in a second."""
    from devices.machine import measured_speed

    return measured_speed().slowdown_ratio
