"""The parts of the agent that belong to its fleet: access, outbox, what was deferred, installation."""

import asyncio
import os
from pathlib import Path
from random import Random, SystemRandom
from time import time
from typing import TYPE_CHECKING

import msgspec

from edge_agent.config import AgentConfig
from edge_agent.disk import RealDisk
from edge_agent.install.fetching import GatewayFiles
from edge_agent.install.install import Install
from edge_agent.install.means import Means
from edge_agent.install.rules import TrustKeys
from edge_agent.models.host import Host
from edge_agent.outbox.deferred import Deferred
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.part import Part
from edge_agent.trust.access import Access
from hybrid.fleet.messages import Installed

if TYPE_CHECKING:
    from hybrid.session.connected import Neighbourhood
    from hybrid.transport.token_source import Credential


class FleetSide:
    """Builds and holds them; each works without a gateway, without enrolment and without models.

    Attributes:
        access: who the box is, and its token.
        outbox: what must reach the gateway.
        deferred: requests that wait for it.
        install: brings versions into slots.
        parts: all that is to be run.
    """

    def __init__(self, config: AgentConfig, host: Host, software: str) -> None:
        """Reads some small files; blocking."""
        self._config = config
        disk, rng = RealDisk(), Random()  # noqa: S311 (pauses)
        data = Path(config.data)
        self.access = Access(data, disk, rng=rng, gateway=_named(config.gateway), software=software)
        place = Place(folder=data / "outbox", disk=disk)
        self.outbox = Outbox(place, calls=self.access.calls, rng=rng, installation=self.access.epoch)
        self.deferred = Deferred(self.outbox, self.access.calls, vault=place.vault, rng=SystemRandom())
        self.install = Install(
            Means(
                data=data,
                disk=disk,
                host=host,
                files=GatewayFiles(lambda: self.access.calls if self.access.enrolment else None, disk),
                trust=self._keys,
                rng=rng,
                now_s=time,
                report=self._report,
            )
        )
        self.parts: tuple[Part, ...] = (self.access, self.outbox, self.deferred, self.install)

    def neighbourhood(self) -> "Neighbourhood | None":
        """Who may be asked to compute now; None for nobody."""
        config, access = self._config, self.access
        if config.gateway == "none" or config.placement == "local":
            return None
        if access.enrolment is not None:
            token = access.token_source
            return _asking((access.gateway_url,), token) if access.gateway_url and token.text else None
        token_text = config.token or os.environ.get("HYBRID_TOKEN") or None
        if config.gateway != "auto":
            return _asking(tuple(config.gateway.split(",")), token_text)
        may_discover = token_text is not None or bool(os.environ.get("HYBRID_PIN"))
        return _asking((), token_text) if may_discover else None

    @property
    def gateway_url(self) -> str:
        """Where its gateway is; empty for none that is known."""
        return self.access.gateway_url or _named(self._config.gateway)

    async def stop(self) -> None:
        """The agent stops in good order."""
        await self.install.stop()

    def _keys(self) -> TrustKeys | None:
        return self.access.trust()

    async def _report(self, installed: Installed) -> None:
        body = await asyncio.to_thread(msgspec.msgpack.encode, installed)
        await self.outbox.put("report", body, stream="report", about=installed.name)


def _named(gateway: str) -> str:
    return "" if gateway in ("auto", "none") else gateway


def _asking(urls: tuple[str, ...], token: "Credential") -> "Neighbourhood":
    from hybrid.session.connected import Neighbourhood  # with all that a session that may travel loads

    return Neighbourhood(urls, token)
