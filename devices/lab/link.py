"""The emulated link as programs use it, whichever way it is emulated: real packets, or the shaped proxy."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final, Literal, Protocol

from devices.errors import EmulationError, EmulationUnavailable
from devices.lab.launch import Side, launched
from devices.shape import LinkStatistics, Shape, Step
from devices.shaped_proxy import ShapedProxy

Kind = Literal["tun", "proxy"]
LOOPBACK: Final = "127.0.0.1"
_NOWHERE: Final = 9
"""The port `discard`: a proxy begins with one target, and the lab does not know any yet."""


class Link(Protocol):
    """A link between device and gateway that can be changed while it is used."""

    @property
    def kind(self) -> Kind:
        """`tun`: real packets under kernel TCP; `proxy`: shaped byte streams on loopback."""
        ...

    @property
    def congestion_control(self) -> str | None:
        """Of TCP over the link; None for a proxy, whose TCP never meets the link."""
        ...

    @property
    def scheduling(self) -> str:
        """How the emulation itself is scheduled: `real time`, `preferred` or `ordinary`."""
        ...

    @property
    def shape(self) -> Shape:
        """The shape that was set last."""
        ...

    def set(self, shape: Shape) -> None:
        """Changes the link from now on; ends a trace that is being played."""
        ...

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes these ways until `restore`, and nobody is told."""
        ...

    def restore(self) -> None:
        """Ends a blackhole."""
        ...

    def play(self, steps: Sequence[Step], *, loop_s: float = 0.0) -> None:
        """Plays a trace from now on, again and again every `loop_s`; the last shape stays where that is 0."""
        ...

    def statistics(self) -> LinkStatistics:
        """What passed so far."""
        ...

    def address(self, side: Side) -> str:
        """The IPv4 address that programs at this end listen on."""
        ...

    def endpoint(self, port: int) -> tuple[str, int]:
        """Address and port at which the device reaches this TCP port of the gateway."""
        ...

    def command(self, side: Side, argv: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
        """The command that runs `argv` at one end, in these control groups; hand it to whatever starts processes."""
        ...

    def entered(self, side: Side) -> contextlib.AbstractContextManager[None]:
        """This thread stands at one end meanwhile; sockets and threads that are made inside stay there."""
        ...

    def close(self) -> None:
        """Ends the link; a second call does nothing."""
        ...


class ProxyLink:
    """A link of shaped proxies on loopback: needs no rights, knows bytes and no packets.

    Both ends are this machine. The gateway listens on 127.0.0.1 as always; what reaches it by `endpoint` is shaped.

    Attributes:
        kind: `proxy`.
        congestion_control: None.
        scheduling: `ordinary`: a thread of this process.
    """

    kind: Literal["proxy"] = "proxy"
    congestion_control: None = None
    scheduling = "ordinary"

    def __init__(self, shape: Shape | None = None, *, seed: int = 0) -> None:
        """Starts the proxy.

        Args:
            shape: of the link at first; without one it is wide open.
            seed: of losses and jitter.
        """
        self._proxy = ShapedProxy(_NOWHERE, shape, seed=seed)

    @property
    def shape(self) -> Shape:
        """The link's shape now."""
        return self._proxy.shape

    def set(self, shape: Shape) -> None:
        """Changes the link from now on; ends a trace that is being played."""
        self._proxy.set(shape)

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes these ways until `restore`; what waits goes on then."""
        self._proxy.blackhole(up=up, down=down)

    def restore(self) -> None:
        """Ends a blackhole."""
        self._proxy.restore()

    def play(self, steps: Sequence[Step], *, loop_s: float = 0.0) -> None:
        """Plays a trace from now on, again and again every `loop_s`; the last shape stays where that is 0."""
        self._proxy.play(steps, loop_s=loop_s)

    def statistics(self) -> LinkStatistics:
        """What passed so far."""
        return self._proxy.statistics()

    def address(self, side: Side) -> str:
        """Loopback, for either end."""
        del side
        return LOOPBACK

    def endpoint(self, port: int) -> tuple[str, int]:
        """Where the shaped way to this port of the gateway begins."""
        return LOOPBACK, self._proxy.port_to(port)

    def command(self, side: Side, argv: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
        """`argv` itself, or the command that joins these control groups first."""
        del side
        return launched([], argv, groups)

    @contextlib.contextmanager
    def entered(self, side: Side) -> Iterator[None]:
        """Nothing to do: both ends are here."""
        del side
        yield

    def close(self) -> None:
        """Cuts every connection; a second call does nothing."""
        self._proxy.close()


def open_link(
    shape: Shape,
    *,
    kind: Literal["auto", "tun", "proxy"] = "auto",
    congestion_control: str | None = None,
    seed: int = 0,
) -> Link:
    """A link, by real packets where this machine allows that and else by the proxy.

    Args:
        shape: of the link at first.
        kind: `auto`, or the only one that will do.
        congestion_control: of TCP over the link, such as `cubic` or `bbr`; None for this machine's own.
        seed: of losses and jitter.

    Raises:
        EmulationUnavailable: `tun` where it is not allowed, or a congestion control that only real packets can have.
    """
    if kind == "proxy" and congestion_control is not None:
        raise EmulationError("a proxy has no congestion control to choose; leave it out, or use kind='tun'")
    if kind != "proxy":
        from devices.lab.tun_link import TunLink

        try:
            return TunLink(shape, congestion_control=congestion_control, seed=seed)
        except EmulationUnavailable:
            if kind == "tun" or congestion_control is not None:
                raise
    return ProxyLink(shape, seed=seed)
