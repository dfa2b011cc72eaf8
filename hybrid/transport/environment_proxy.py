"""The proxy that the environment names for a gateway: asked once for each, since the answer may lie in files."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL


class EnvironmentProxy(NamedTuple):
    """A proxy, None for none, and the headers of whoever asks it for a tunnel; of each call where there is none."""

    url: URL | None = None
    headers: Mapping[str, str] = {}


def environment_proxy(url: URL) -> EnvironmentProxy:
    """For a URL, by `HTTPS_PROXY`, `NO_PROXY` and their like, or the system's settings; blocks."""
    try:
        proxy, login = get_env_proxy_for_url(url)
    except LookupError:
        return EnvironmentProxy()
    return EnvironmentProxy(proxy, {} if login is None else {"Proxy-Authorization": login.encode()})


class EnvironmentProxies:
    """The proxy of the gateway that is asked; aiohttp would look into files for it, in two threads, at each call."""

    def __init__(self) -> None:
        self._known: tuple[str, EnvironmentProxy] | None = None

    def forget(self) -> None:
        """The environment is asked anew: the box may be elsewhere now."""
        self._known = None

    async def of(self, url: str) -> EnvironmentProxy:
        """For a URL."""
        if self._known is None or self._known[0] != url:
            self._known = (url, await asyncio.to_thread(environment_proxy, URL(url)))
        return self._known[1]
