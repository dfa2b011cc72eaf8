"""The addresses that this machine has at the moment, and which of them matter to multicast DNS."""

import ipaddress
import socket
from collections.abc import Iterable

EVERY_HOST = frozenset({"", "0.0.0.0", "::"})
"""What a service is bound to when it listens on every address."""


def present_addresses() -> tuple[str, ...]:
    """IPv4 and IPv6 addresses of every interface that is up, sorted; link-local IPv6 ones with their scope."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return tuple(
        sorted(
            entry.address
            for name, entries in psutil.net_if_addrs().items()
            if name in up
            for entry in entries
            if entry.family in {socket.AF_INET, socket.AF_INET6}
        )
    )


def listening(present: Iterable[str]) -> list[str | int]:
    """Where to hear announcements, as zeroconf wants it: IPv4 addresses, and interface numbers for IPv6.

    Link-local IPv6 addresses name their interface; every interface that speaks IPv6 has one, but loopback. An address
    that left since it was seen is left out: zeroconf would lose a socket over it.
    """
    found: list[str | int] = []
    for address in present:
        host, _, scope = address.partition("%")
        if ipaddress.ip_address(host).version == 4:
            found += [host] if _is_ours(host) else []
        elif scope:
            found.append(_index(scope))
    return list(dict.fromkeys(entry for entry in found if entry != 0))


def announced(host: str, present: Iterable[str]) -> list[str]:
    """The addresses under which a service bound to `host` can be reached, without scopes; loopback only if need be."""
    addresses = [address.partition("%")[0] for address in present]
    if host == "localhost":
        host = "127.0.0.1"
    if host not in EVERY_HOST:
        return [address for address in addresses if address == host.partition("%")[0]]
    if host in {"0.0.0.0", "::"}:  # a server on `::` takes IPv6 only, as asyncio opens it
        addresses = [address for address in addresses if (":" in address) == (host == "::")]
    ranks = [[a for a in addresses if _rank(a) == rank] for rank in range(3)]
    return next((group for group in ranks if group), [])


def _rank(address: str) -> int:
    """0 for an address others reach anywhere on the network, 1 for link-local, 2 for loopback."""
    ip = ipaddress.ip_address(address)
    return 2 if ip.is_loopback else 1 if ip.is_link_local else 0


def _is_ours(ipv4: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ipv4, 0))
        except OSError:
            return False
    return True


def _index(scope: str) -> int:
    if scope.isdigit():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError:  # the interface went away meanwhile
        return 0
