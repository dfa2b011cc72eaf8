"""The device's half of a lab: a machine of the catalog, emulated by a slowdown of its programs."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from devices.device import Device
from devices.errors import EmulationUnavailable

if TYPE_CHECKING:
    from devices.cpu_quota import CpuQuota
    from devices.slow_cores import SlowCores
    from devices.slowdown import Pacing

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
        n_cores: how many cores it has; None for those of this machine.
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


def named(device: Device | str | None, factor: float | None = None) -> dict[str, str]:
    """The variables that tell programs which machine they are on, where its name or file says all of it.

    Args:
        device: which machine; None for this one.
        factor: how many times slower it was asked to be; None where that is measured.
    """
    from devices.catalog.load import names
    from devices.machine import FACTOR_VARIABLE, VARIABLE

    chosen = {FACTOR_VARIABLE: f"{factor:g}"} if device is not None and factor is not None else {}
    if isinstance(device, str):
        return chosen | {VARIABLE: device if device in names("devices") else str(Path(device).resolve())}
    return chosen | {VARIABLE: device.name} if device is not None and device.name in names("devices") else {}


def emulated(
    device: Device | None, kind: SlowdownKind, factor: float | None = None, n_cores: int | None = None
) -> tuple[Slowdown | None, Emulated]:
    """The slowdown that makes this machine that one; None where there is nothing to slow down.

    Args:
        device: which machine; None for this one.
        kind: of the slowdown, or `auto` for the best that is allowed.
        factor: how many times slower than this machine; None for as many as the device is, by a short benchmark.
        n_cores: of the device; None for as many as it has and this machine can hold, one where no device is named.

    Raises:
        EmulationUnavailable: a quota was asked for and is not allowed here.
        EmulationError: a factor below 1, or more cores than this machine can hold.
    """
    name = device.name if device is not None else "this machine"
    if kind == "none" or (device is None and factor is None):
        return None, Emulated(name=name, factor=1.0, kind="nothing", n_cores=None)
    if factor is None:
        assert device is not None, "one of them was given"
        factor = max(1.0, device.factor_on(host_slowdown_ratio()))
    if factor == 1.0:
        return None, Emulated(name=name, factor=1.0, kind="nothing", n_cores=None)
    wanted = n_cores or (min(device.n_cores, _held(factor)) if device is not None else 1)
    slowdown = _slowed(factor, wanted, kind, is_exact=n_cores is not None)
    return slowdown, Emulated(name=name, factor=factor, kind=slowdown.kind, n_cores=getattr(slowdown, "n_cores", 1))


def _held(factor: float) -> int:
    """How many cores of that factor this machine can hold beside the gateway's work."""
    from devices.slow_cores import FULLEST_RATIO

    n_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, math.floor(FULLEST_RATIO * factor) * max(1, n_processors - 1))


def _slowed(factor: float, n_cores: int, kind: SlowdownKind, *, is_exact: bool) -> "CpuQuota | SlowCores | Pacing":
    """A slowdown of so many cores, or of one where that is all that is allowed and nobody insists."""
    from devices.slowdown import slow_down

    assert kind != "none", "that was answered above"
    if n_cores > 1 and kind != "pacing":
        try:
            return slow_down(factor, n_cores=n_cores, kind="quota")
        except EmulationUnavailable:
            if is_exact:
                raise
    return slow_down(factor, kind=kind)


@cache
def host_slowdown_ratio() -> float:
    """How fast a core of this machine is, as `Device.slowdown_ratio` counts; measured once a process, in a second."""
    from devices.machine import measured_speed

    return measured_speed().slowdown_ratio
