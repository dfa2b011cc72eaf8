"""Models that are named and not given: fetched from a gateway once, then opened from the cache."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from hybrid.artifact.cache import cache_dir
from hybrid.errors import HybridError, ModelUnavailable
from hybrid.session.source import Source
from hybrid.transport.model_pull import pull_model
from hybrid.transport.pulled_names import cached_model
from hybrid.transport.trust import Trust

DISCOVERY_S = 3.0
"""How long the opening of a named model waits for a gateway to be found when none is named and nothing is cached."""


def fetched(name: str, urls: Sequence[str] | None, token: str | None) -> Source:
    """The source of `NAME[:VERSION]`: the first gateway that has it, else the cache.

    Raises:
        ModelUnavailable: neither cached nor to be had; the message says why for each gateway.
    """
    model, _, version = name.partition(":")
    reasons = []
    gateways = _named(urls) if urls else _discovered(token) if urls == () else []
    for url, trust in gateways:
        try:
            return Source(path=pull_model(url, token, model, version or None, cache_dir(), trust=trust))
        except HybridError as exc:
            reasons.append(str(exc))
    known = cached_model(model, version or None, cache_dir())
    if known is not None:
        return Source(path=known)
    why = "; ".join(reasons) or "no gateway is named or found"
    file = f"a file; the folder that is here is ./{name}" if Path(name).is_dir() else "a file"
    raise ModelUnavailable(
        f"model {name} is not in the cache and cannot be had: {why}; name a gateway that holds it, or give {file}",
        name=name,
    )


def _named(urls: Sequence[str]) -> list[tuple[str, Trust]]:
    parts = [url.partition("#sha256=") for url in urls]
    return [(address, Trust(pin_sha256=pin or None)) for address, _, pin in parts]


def _discovered(token: str | None) -> list[tuple[str, Trust]]:
    """Gateways on this network that proved themselves, waiting a moment for the first."""
    pin_sha256 = os.environ.get("HYBRID_PIN") or None
    if token is None and pin_sha256 is None:
        return []
    from hybrid.discovery.find import find_gateways

    found = Event()
    finding = find_gateways(
        token, on_found=lambda _url, _pin: found.set(), on_lost=lambda _url: None, pin_sha256=pin_sha256
    )
    try:
        found.wait(DISCOVERY_S)
        return [
            (gateway.url, Trust(pin_sha256=gateway.certificate_sha256, is_explicit=False))
            for gateway in finding.gateways
        ]
    finally:
        finding.close()
