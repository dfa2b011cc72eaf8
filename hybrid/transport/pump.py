"""Moves a channel's frames to a socket, with little enough unsent that control frames are never far behind."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from hybrid.wire.channel import Channel

SEND_BYTES: Final = 32 * 1024
"""Handed to the socket at a time."""

UNSENT_BYTES: Final = 32 * 1024
"""What the kernel may hold unsent, where the platform can tell it so."""

SEND_TIMEOUT_S: Final = 60.0
"""A peer that takes nothing for so long is dropped."""


class FramePump:
    """The writing half of a connection; one task runs it, anyone on the loop wakes it."""

    def __init__(self, channel: Channel, send: Callable[[bytes], Awaitable[None]], clock: Callable[[], float]) -> None:
        self._channel = channel
        self._send = send
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Sends until the channel is closed and its last words are out.

        Raises:
            TimeoutError: the peer takes nothing. OSError, RuntimeError: the connection is gone.
        """
        channel = self._channel
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            while True:
                self._wake.clear()
                frames = channel.next_frames(SEND_BYTES, self._clock())
                if frames:
                    limit.reschedule(loop.time() + SEND_TIMEOUT_S)
                    await self._send(frames)
                elif channel.is_closed:
                    return
                else:
                    limit.reschedule(None)
                    await self._wake.wait()


def keep_unsent_low(transport: asyncio.BaseTransport | None) -> None:
    """Makes the pump wait until the kernel has taken all, and, where the platform can, until it has sent most of it."""
    if not isinstance(transport, asyncio.WriteTransport):
        return
    transport.set_write_buffer_limits(high=0)
    tcp = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if tcp is not None and option is not None and tcp.family in {socket.AF_INET, socket.AF_INET6}:
        try:
            tcp.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)
        except OSError:
            pass  # a platform that names the option and lacks it: only the transport's limit holds there


def congestion_control(transport: asyncio.BaseTransport | None) -> str:
    """The congestion control of this side of a TCP connection, as `sysctl` names it; empty where it cannot be told."""
    tcp = transport.get_extra_info("socket") if transport is not None else None
    option = getattr(socket, "TCP_CONGESTION", None)
    if tcp is None or option is None or tcp.family not in {socket.AF_INET, socket.AF_INET6}:
        return ""
    try:
        name: bytes = tcp.getsockopt(socket.IPPROTO_TCP, option, 16)
    except OSError:
        return ""
    return name.partition(b"\0")[0].decode("ascii", "replace")
