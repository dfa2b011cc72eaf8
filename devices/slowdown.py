"""A machine that is slower than this one, by whatever this system allows: a quota of the kernel, else pacing."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Protocol, Self

from devices import pace
from devices.cpu_quota import CpuQuota
from devices.errors import EmulationError, EmulationUnavailable
from devices.slow_cores import SlowCores


class Slowdown(Protocol):
    """What slows the programs of an emulated machine down; closed by whoever made it."""

    @property
    def kind(self) -> str:
        """`cgroup v1`, `cgroup v2` or `pacing`."""
        ...

    @property
    def groups(self) -> Sequence[str]:
        """Lists of processes that a program joins by writing its id, before it starts to work."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that its programs get."""
        ...

    def set(self, factor: float) -> None:
        """Another factor from now on."""
        ...

    def close(self) -> None:
        """Takes the slowdown away."""
        ...


class Pacing:
    """A slowdown that programs of ours do themselves, told by a variable (`devices.pace`); others are not slowed.

    Attributes:
        factor: what programs that start now are told.
    """

    kind = "pacing"
    groups: tuple[str, ...] = ()

    def __init__(self, factor: float) -> None:
        """Raises `EmulationError` for a factor below 1."""
        self.set(factor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """The variable that paces a program."""
        return {pace.VARIABLE: f"{self.factor:g}"}

    def set(self, factor: float) -> None:
        """Another factor for programs that start from now on; running ones keep theirs."""
        self.factor = pace.sound(factor)

    def close(self) -> None:
        """Nothing to take away."""


def slow_down(
    factor: float,
    *,
    n_cores: int = 1,
    steady: bool | None = None,
    kind: Literal["auto", "quota", "pacing"] = "auto",
) -> CpuQuota | SlowCores | Pacing:
    """A slowdown by a factor; its `kind` says which one it is.

    Args:
        factor: how many times slower than this machine, from 1 on.
        n_cores: of the emulated machine that compute (a quota only; pacing slows each thread by itself).
        steady: whether rests between jobs are kept from making the next one faster (see `devices.cpu_quota`); None for
            where that is true to life: with one core.
        kind: `quota` or `pacing`, or the first of them that this system allows.

    Raises:
        EmulationError: a factor or cores that are none, or more cores than this machine can hold.
        EmulationUnavailable: a quota was asked for and this system allows none.
    """
    if kind not in {"auto", "quota", "pacing"}:
        raise EmulationError(f"there is no slowdown of the kind {kind!r}; give auto, quota or pacing")
    if kind != "pacing":
        try:
            if n_cores == 1:
                return CpuQuota(factor, steady=steady is not False)
            return SlowCores(factor, n_cores=n_cores, steady=bool(steady))
        except EmulationUnavailable:
            if kind == "quota":
                raise
    return Pacing(factor)
