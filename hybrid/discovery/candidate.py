"""What somebody on the network says of a gateway, bounded and with an end: hearsay until it has proved itself.

Design: everything here comes from strangers. It is cut to size, and a second announcer under the same name is kept
beside the first instead of replacing it, so that a rogue cannot hide a gateway by taking its name.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

SERVICE_TYPE: Final = "_hybrid-gateway._tcp.local."
MAX_CANDIDATES: Final = 64
MAX_ADDRESSES: Final = 8
MAX_SAME_NAME: Final = 4
RIVAL_S: Final = 120.0
"""Seconds for which a candidate stays after another one was announced under its name."""

_HEX: Final = re.compile(r"[0-9a-f]{1,64}", re.ASCII)
_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A gateway as announced.

    Attributes:
        name: the service's name, for people.
        gateway_id: what it calls itself, in hex; "" if it does not say.
        addresses: numeric addresses, IPv4 first; link-local IPv6 ones carry their scope.
        port: TCP port.
        tls: whether it says that it speaks TLS.
        version: protocol version as announced.
        fingerprint: the first digits of its certificate's SHA-256, as announced; a hint only.
        path: what stands in front of `/v2`.
    """

    name: str
    gateway_id: str
    addresses: tuple[str, ...]
    port: int
    tls: bool
    version: str = ""
    fingerprint: str = ""
    path: str = "/"

    @property
    def urls(self) -> tuple[str, ...]:
        """One https URL for each address; none for a gateway without TLS, which is never used."""
        if not self.tls:
            return ()
        hosts = (f"[{address}]" if ":" in address else address for address in self.addresses)
        return tuple(f"https://{host}:{self.port}{self.path.rstrip('/')}" for host in hosts)


def candidate_of(
    name: str, port: int | None, addresses: Iterable[str], txt: Mapping[bytes, bytes | None]
) -> Candidate | None:
    """A candidate from the records of a service, cut to what may be trusted to be handled; None if it is of no use."""
    usable = tuple(address for address in addresses if _is_usable(address))[:MAX_ADDRESSES]
    if not usable or port is None or not 0 < port < 65536:
        return None
    path = _text(txt, b"path")
    return Candidate(
        name="".join(c if c.isprintable() else "?" for c in name.removesuffix("." + SERVICE_TYPE))[:63],
        gateway_id=_hex(txt, b"id"),
        addresses=usable,
        port=port,
        tls=_text(txt, b"tls") == "1",
        version=_text(txt, b"version")[:16],
        fingerprint=_hex(txt, b"fp"),
        path=path if _PATH.fullmatch(path) else "/",
    )


class CandidateBook:
    """The candidates of the moment. Pure: the time is handed in, in seconds of any steady clock."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[Candidate, float | None]] = {}

    def seen(self, name: str, candidate: Candidate, now_s: float) -> bool:
        """Note what was announced under a name; whether anything changed."""
        self._expire(now_s)
        same = self._by_name.get(name)
        if same is None:
            if sum(map(len, self._by_name.values())) >= MAX_CANDIDATES:
                return False
            same = self._by_name[name] = {}
        changed = candidate not in same
        for other, ends_s in same.items():
            if ends_s is None and other != candidate:
                same[other] = now_s + RIVAL_S
        same[candidate] = None
        while len(same) > MAX_SAME_NAME:
            del same[next(other for other in same if other != candidate)]
        return changed

    def gone(self, name: str) -> bool:
        """Note that a name was withdrawn or ran out; whether anything changed."""
        return self._by_name.pop(name, None) is not None

    def clear(self) -> None:
        """Forget everything, as after a change of network."""
        self._by_name.clear()

    def candidates(self, now_s: float) -> tuple[Candidate, ...]:
        """All that were announced and have not run out."""
        self._expire(now_s)
        return tuple(candidate for same in self._by_name.values() for candidate in same)

    def _expire(self, now_s: float) -> None:
        for name, same in list(self._by_name.items()):
            for candidate, ends_s in list(same.items()):
                if ends_s is not None and ends_s <= now_s:
                    del same[candidate]
            if not same:
                del self._by_name[name]


def _is_usable(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (ip.is_multicast or ip.is_unspecified or ip.is_reserved)


def _text(txt: Mapping[bytes, bytes | None], key: bytes) -> str:
    return (txt.get(key) or b"").decode("ascii", "replace")


def _hex(txt: Mapping[bytes, bytes | None], key: bytes) -> str:
    text = _text(txt, key)
    return text if _HEX.fullmatch(text) else ""
