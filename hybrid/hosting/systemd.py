"""What a service tells the system that started it: ready, alive, reloading, stopping (sd_notify without a library)."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_log = logging.getLogger("hybrid.systemd")
_MOST_STATUS: Final = 200


class Notifier:
    """One datagram for each word; without `NOTIFY_SOCKET` nothing is sent. Never raises, never waits.

    Attributes:
        watchdog_s: how long the system waits for a sign of life; 0 where it does not.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        self._refused = False
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        text = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(text) / 1e6 if is_ours and text.isascii() and text.isdigit() else 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """It serves; also after a reload."""
        self._send("READY=1", *self._told(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`; the same line is sent once."""
        told = self._told(text)
        if told:
            self._send(*told)

    def reloading(self) -> None:
        """Settings are read anew; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It takes itself down."""
        self._send("STOPPING=1", *self._told("stopping"))

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    async def keep_alive(self) -> None:
        """Signs of life from this event loop until cancelled; ends at once where no watchdog waits for them."""
        while self.watchdog_s:
            self.alive()
            await asyncio.sleep(self.watchdog_s / 3)

    def extend(self, by_s: float) -> None:
        """Starting, or stopping, takes so much longer."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(by_s * 1e6)}")

    def _told(self, status: str) -> tuple[str, ...]:
        line = " ".join(status.split())[:_MOST_STATUS]
        if not line or line == self._status:
            return ()
        self._status = line
        return (f"STATUS={line}",)

    def _send(self, *lines: str) -> None:
        if not self._address or self._refused:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
                out.sendto("\n".join(lines).encode(), name)
        except BlockingIOError:
            pass  # whoever listens is far behind: the next word comes soon
        except OSError as exc:
            self._refused = True
            _log.warning("systemd.not_told socket=%s reason=%s", self._address, exc.strerror or exc)
