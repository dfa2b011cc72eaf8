"""Where the box's gateway is now: where it was, else wherever on this network one proves to be it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from hybrid.errors import GatewayUnreachable, GatewayUntrusted, HybridError, LinkError
from hybrid.transport.fleet_hello import Met, meet

LOOK_S: Final = 3.0
AT_ONCE: Final = 8
MOST_CANDIDATES: Final = 64
_log = logging.getLogger("hybrid.agent.trust")

Browse = Callable[[float], Awaitable[Iterable[str]]]
"""Gives URLs of what announces itself as a gateway, after listening for some seconds."""


class Locator:
    """Finds and meets the one gateway of an authority.

    Attributes:
        url: where it was met last; empty for nowhere yet.
    """

    def __init__(
        self,
        authority_sha256: bytes,
        url: str,
        *,
        may_look: bool,
        browse: Browse | None = None,
        moved: Callable[[str], None] | None = None,
    ) -> None:
        """Looks nowhere yet.

        Args:
            authority_sha256: fingerprint of the gateway's authority.
            url: where it is asked first; empty for a gateway that has to be discovered.
            may_look: whether it may be looked for on the network when it is not there.
            browse: gives candidates; by multicast DNS when it is None.
            moved: told where it was found instead.
        """
        self.url = url
        self._authority_sha256 = authority_sha256
        self._may_look = may_look or not url
        self._browse = browse or browse_network
        self._moved = moved

    async def __call__(self) -> Met:
        """Meet it.

        Raises:
            LinkError: it is nowhere, or only somebody is there who is not it; says why.
        """
        failure: HybridError | None = None
        if self.url:
            try:
                return await meet(self.url, self._authority_sha256)
            except LinkError as exc:
                failure = exc
                if not self._may_look:
                    raise
        met = await self._look()
        if met is None:
            nobody = "no gateway on this network proved to be the one of this box's enrolment token"
            raise failure or GatewayUnreachable(f"{nobody}; check that it runs, or name it: --gateway URL")
        _log.info("trust.gateway_found url=%s", met.url)
        self.url = met.url
        if self._moved is not None:
            self._moved(met.url)
        return met

    async def _look(self) -> Met | None:
        """The first candidate that proves itself; nothing but a nonce is sent to any other."""
        urls = list(dict.fromkeys(await self._browse(LOOK_S)))[:MOST_CANDIDATES]
        for at in range(0, len(urls), AT_ONCE):
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._try(url)) for url in urls[at : at + AT_ONCE]]
            found = next((task.result() for task in asked if task.result() is not None), None)
            if found is not None:
                return found
        return None

    async def _try(self, url: str) -> Met | None:
        try:
            return await meet(url, self._authority_sha256, timeout_s=5.0, trust_env=False)
        except GatewayUntrusted as exc:
            _log.warning("trust.not_the_gateway url=%s reason=%s", url, exc)
        except HybridError as exc:
            _log.info("trust.gateway_silent url=%s reason=%s", url, exc)
        return None


async def browse_network(listen_s: float) -> Iterable[str]:
    """URLs announced on this network by multicast DNS; hearsay."""
    from hybrid.discovery.browse import Browser

    browser = Browser()
    await asyncio.to_thread(browser.start)
    try:
        await asyncio.sleep(listen_s)
        return [url for candidate in browser.candidates() for url in candidate.urls]
    finally:
        await asyncio.to_thread(browser.close)
