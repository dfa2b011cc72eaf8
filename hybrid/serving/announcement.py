"""A service's announcement by DNS-SD, renewed with its certificate."""

import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hybrid.hosting.renewal import LiveCertificate
from hybrid.hosting.service_settings import ServiceSettings

if TYPE_CHECKING:
    from hybrid.discovery.announce import Announcer

_log = logging.getLogger("hybrid.serving")


class Announcement:
    """Makes a service known on its network while it serves; on loopback nobody could reach it.

    Args:
        settings: where it listens and how it is called.
        properties: TXT fields beside those of the certificate.
    """

    def __init__(self, settings: ServiceSettings, properties: Mapping[str, str]) -> None:
        self._settings = settings
        self._properties = properties
        self._announcer: Announcer | None = None

    async def follow(self, certificate: LiveCertificate, port: int) -> None:
        """Announce the certificate that there is, and each one that takes its place, until cancelled."""

        async def renewed() -> None:
            await self.withdraw()
            await self._announce(certificate, port)

        try:
            await renewed()
            await certificate.follow(renewed)
        except Exception:  # noqa: BLE001 (who cannot be found is still served)
            _log.exception("service.not_announced")

    async def withdraw(self) -> None:
        """Say farewell; returns when that is out."""
        if self._announcer is not None:
            announcer, self._announcer = self._announcer, None
            await announcer.close()

    async def _announce(self, certificate: LiveCertificate, port: int) -> None:
        settings, current = self._settings, certificate.current
        if settings.no_announce or settings.is_loopback:
            return
        from hybrid.discovery.announce import Announcer

        mark = {"fp": current.certificate_sha256, "id": current.spki_sha256.hex()[:16]}
        self._announcer = Announcer(
            name=settings.name or socket.gethostname(),
            port=port,
            tls=True,
            properties={**self._properties, **mark},
            host=settings.host,
        )
        await self._announcer.start()
