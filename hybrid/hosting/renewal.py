"""A certificate whose files are replaced while the gateway serves: new connections get it, open ones go on.

Design: whoever renews certificates writes two files one after the other, so that what does not fit together yet is
looked at again. The files are looked at every few seconds, and at once on SIGHUP, which renewing tools send.
"""

import asyncio
import logging
import signal
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from hybrid.errors import StorageError
from hybrid.hosting.tls import ServerCertificate, load_certificate

LOOK_S: Final = 10.0
_log = logging.getLogger("hybrid.gateway.tls")

Marks = tuple[tuple[int, int, int] | None, ...]


class LiveCertificate:
    """The certificate that new connections get.

    Attributes:
        current: what is served with now.
        context: the listener's.
        hears_hangup: whether SIGHUP makes it look; a service that has more to do then calls `ask`.
    """

    def __init__(self, certificate: ServerCertificate) -> None:
        self.current = certificate
        self.context: ssl.SSLContext = certificate.context()
        self._seen = self._marks()
        self._asked = asyncio.Event()
        self.hears_hangup = True

    def ask(self) -> None:
        """Look at the files now."""
        self._asked.set()

    async def follow(self, renewed: Callable[[], Awaitable[None]]) -> None:
        """Look at the files until cancelled; `renewed` is awaited after each change."""
        loop = asyncio.get_running_loop()
        if self.hears_hangup:
            loop.add_signal_handler(signal.SIGHUP, self.ask)
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), LOOK_S)
                self._asked.clear()
                if await self._look():
                    await renewed()
        finally:
            if self.hears_hangup:
                loop.remove_signal_handler(signal.SIGHUP)

    async def _look(self) -> bool:
        marks = await asyncio.to_thread(self._marks)
        if marks == self._seen:
            return False
        try:
            found = await asyncio.to_thread(load_certificate, self.current.certificate_path, self.current.key_path)
            self.context.load_cert_chain(found.certificate_path, found.key_path)
        except (StorageError, OSError) as exc:  # half of it is there, or none: looked at again
            _log.warning("tls.certificate_not_taken error=%s", exc)
            return False
        self._seen = marks
        if found == self.current:
            return False
        self.current = found
        _log.info("tls.certificate_renewed sha256=%s", found.certificate_sha256[:16])
        return True

    def _marks(self) -> Marks:
        return tuple(_mark(path) for path in (self.current.certificate_path, self.current.key_path))


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
