"""The proxy that the environment names for a gateway: asked once for each, since the answer may lie in files."""

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
