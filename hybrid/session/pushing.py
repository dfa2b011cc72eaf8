"""Uploads a model that a gateway does not hold, in the background, for sessions that were asked to."""

import asyncio
import logging
import re
from threading import Thread

from hybrid.errors import HybridError
from hybrid.session.source import Source
from hybrid.transport.client import GatewayClient
from hybrid.transport.model_push import PushOptions, push
from hybrid.transport.registry_client import RegistryClient

log = logging.getLogger("hybrid.session")


class Pusher:
    """Pushes one session's model to each gateway that lacks it, once.

    Args:
        source: the model.
        token: a publisher's token.
    """

    def __init__(self, source: Source, token: str | None) -> None:
        self._source = source
        self._token = token
        self._begun: set[str] = set()

    def push(self, client: GatewayClient) -> None:
        """Begins to push to this gateway, unless that is under way; called by the preparation thread alone."""
        if client.url in self._begun:
            return
        self._begun.add(client.url)
        Thread(target=self._push, args=(client,), name="hybrid-push", daemon=True).start()

    def _push(self, client: GatewayClient) -> None:
        url = client.url
        try:
            pushed = asyncio.run(self._send(client))
        except (HybridError, OSError, TimeoutError) as exc:
            log.warning("model.push_failed url=%s code=%s", url, getattr(exc, "code", type(exc).__name__))
            return
        finally:
            self._begun.discard(url)  # asked again, it begins again
        log.info("model.pushed url=%s version=%s", url, pushed)

    async def _send(self, client: GatewayClient) -> str:
        async with RegistryClient(client.url, self._token, trust=client.trust) as registry:
            pushed = await push(registry, self._source.file(), model_name(self._source), PushOptions())
        return pushed.version.version


def model_name(source: Source) -> str:
    """A name for a model that has only a file: the file's, with what names may not hold replaced."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", source.file().stem.lower()).strip("-._")
    return stem[:64] or "model"
