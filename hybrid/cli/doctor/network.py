"""What the doctor sees of the network: discovery, and the gateway with its round trip, goodput and version."""

import os
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final

from hybrid.cli.doctor.check import Check, failed, passed, warned

if TYPE_CHECKING:
    from hybrid.transport.client import GatewayClient
    from hybrid.transport.trust import Trust

_CONNECT_S: Final = 2.0
_CALL_S: Final = 1.5
_SEARCH_S: Final = 1.2
_N_CALLS: Final = 5
_LOAD_BYTES: Final = 96 * 1024
"""Small enough for 0.5 Mbit/s within the time that there is, large enough to tell a rate."""

_NOBODY: Final = "0" * 64
"""The digest of no model: the gateway answers `unknown` and does nothing."""

_MULTICAST: Final = ("224.0.0.251", 5353)


def discovery() -> Check:
    """Whether gateways could be found: an address that others reach, and multicast that leaves this machine."""
    from hybrid.discovery.network import announced, present_addresses

    outside = [address for address in announced("0.0.0.0", present_addresses()) if not address.startswith("127.")]
    if not outside:
        fix = "connect this machine to a network, or name the gateway with HYBRID_GATEWAY"
        return warned("discovery", "there is no address but loopback", fix, possible=False)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(outside[0]))
            joined = socket.inet_aton(_MULTICAST[0]) + socket.inet_aton(outside[0])
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            probe.sendto(b"\x00" * 12, _MULTICAST)  # an empty question
    except OSError as error:
        fix = "allow multicast (in Docker: --network host), or name the gateway with HYBRID_GATEWAY"
        return warned("discovery", f"multicast does not leave this machine: {error.strerror}", fix, possible=False)
    token = " (needs HYBRID_TOKEN or a pin)" if not os.environ.get("HYBRID_TOKEN") else ""
    return passed("discovery", f"multicast DNS is possible on {len(outside)} address(es){token}", possible=True)


def gateway(named: str, token: str | None) -> Check:
    """The gateway: reachable, who it claims to be, its round trip, goodput and version.

    Args:
        named: a URL, several with commas between them (the first counts), `auto` or `none`.
        token: what it asks for, if it asks.
    """
    from hybrid.cli.gateway_choice import LOOPBACK
    from hybrid.transport.trust import Trust

    url = next((part.strip() for part in named.split(",") if part.strip()), "auto")
    if url == "none":
        return passed("gateway", "set to none: every model runs on this device alone", url=None)
    if url != "auto":
        return _looked_at(url, token, Trust(), is_named=True)
    if _answers("127.0.0.1", 8700):
        return _looked_at(LOOPBACK, token, Trust(), is_named=False)
    return _searched(token)


def _searched(token: str | None) -> Check:
    from queue import Empty, SimpleQueue

    from hybrid.discovery.find import find_gateways
    from hybrid.transport.trust import Trust

    proved: SimpleQueue[tuple[str, str]] = SimpleQueue()
    finding = find_gateways(token, on_found=lambda url, pin: proved.put((url, pin)), on_lost=lambda url: None)  # noqa: ARG005
    try:
        url, pin = proved.get(timeout=_SEARCH_S if token else 0.0)
    except Empty:
        fix = (
            "start one (hybrid gateway serve) or name one (--gateway URL, HYBRID_GATEWAY); without one models run here"
        )
        return warned("gateway", f"none named and none found: {finding.why_none}", fix, url=None)
    finally:
        finding.close()
    return _looked_at(url, token, Trust(pin_sha256=pin, is_explicit=False), is_named=False)


def _looked_at(url: str, token: str | None, trust: "Trust", *, is_named: bool) -> Check:
    from hybrid.cli.explanations import EXPLANATIONS
    from hybrid.errors import GatewayUnreachable, HybridError
    from hybrid.transport import client as clients

    shown = _shown(url)
    if "@" in url.partition("://")[2].partition("/")[0]:
        fix = "leave name and password out of the address; a token goes into HYBRID_TOKEN"
        return failed("gateway", f"{shown}: the address that was given holds credentials", fix, url=shown)
    try:
        client = clients.acquire(url, token, trust=trust)
    except HybridError as error:
        return failed("gateway", str(error), error.advice or f"hybrid explain {error.code}", url=shown)
    try:
        if client.wait_settled(_CONNECT_S) != "ready":
            reason = client.down_reason or f"{GatewayUnreachable.code}: no connection within {_CONNECT_S:g} s"
            code, _, what = reason.partition(": ")
            known = EXPLANATIONS.get(code, EXPLANATIONS["internal"])
            fix = f"{known.do} (hybrid explain {code})"
            return (failed if is_named else warned)("gateway", _clean(what, token), fix, url=shown, code=code)
        return _measured(client, shown)
    finally:
        clients.release(client)


def _measured(client: "GatewayClient", shown: str) -> Check:
    from hybrid import __version__

    hello = client.gateway_info
    software = hello.software if hello is not None and hello.software else "of an unknown version"
    facts: dict[str, str | float | bool | None] = {"url": shown, "software": software}
    try:
        rtt_s = statistics.median(_call_s(client, 0) for _ in range(_N_CALLS))
        loaded_s = _call_s(client, _LOAD_BYTES)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        fix = "ask the gateway's operator whether this token may infer; see `hybrid explain forbidden`"
        return warned("gateway", f"{shown}: {software}, connected, but a call fails: {error}", fix, **facts)
    goodput_bps = 8 * _LOAD_BYTES / max(loaded_s - rtt_s, 1e-4)
    facts |= {"rtt_s": round(rtt_s, 6), "uplink_bps": round(goodput_bps)}
    rate = f"{goodput_bps / 1e6:.3g} Mbit/s up" if goodput_bps < 1e9 else "over 1 Gbit/s up"
    seen = f"{shown}: {software}, round trip {1e3 * rtt_s:.1f} ms, {rate} (one transfer of 96 KiB)"
    theirs = software.rpartition(" ")[2].split(".")[:2]
    if theirs[0].isdigit() and theirs != __version__.split(".")[:2]:
        fix = "they understand each other; upgrade the older side when you can"
        return warned("gateway", f"{seen}; this side is hybrid {__version__}", fix, **facts)
    return passed("gateway", seen, **facts)


def _call_s(client: "GatewayClient", n_bytes: int) -> float:
    """Seconds of a call that the gateway has nothing to do for, with so many bytes of padding."""
    body = {"model_digest": _NOBODY, "shape_key": "{}", "padding": "0" * n_bytes}
    began_s = time.perf_counter()
    client.post_json("/v2/hybrid/prepare", body, timeout_s=_CALL_S).result(_CALL_S + 0.5)
    return time.perf_counter() - began_s


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 0.5).close()
    except OSError:
        return False
    return True


def _shown(url: str) -> str:
    """An address without what a user may have written into it."""
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}" if mark else url


def _clean(text: str, token: str | None) -> str:
    return text.replace(token, "(the token)") if token else text
