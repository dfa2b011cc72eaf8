"""Which candidates are to be asked for a proof, when, and which gateways have given one: pure state.

Design: a gateway that proved itself stays until it fails to do so again: by another certificate or a wrong proof at
once, by silence only when it is no longer announced either. So a link that is down for a while, or a farewell that
somebody forged, takes nothing away.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from hybrid.discovery.candidate import Candidate

MAX_ASKED_AT_ONCE: Final = 8
REPROVE_S: Final = 90.0
"""Seconds after which a gateway is asked again, half of it random."""
BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 60.0
_MAX_URLS: Final = 128
_MAX_SILENCES: Final = 3
_SETTLE_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundGateway:
    """A gateway that proved itself.

    Attributes:
        url: where it is reached.
        certificate_sha256: the pin of its certificate, in hex; every connection must meet it.
        rtt_s: round-trip time of its last proof.
        name: what it was announced as; hearsay, for people.
        gateway_id: what it calls itself; hearsay too.
    """

    url: str
    certificate_sha256: str
    rtt_s: float
    name: str
    gateway_id: str


@dataclass(slots=True, kw_only=True)
class _Standing:
    candidate: Candidate
    due_s: float
    announced: bool = True
    asked: bool = False
    failures: int = 0
    found: FoundGateway | None = None
    reason: str = "not asked yet"


class Ledger:
    """The state of the search. Times are seconds of any steady clock."""

    def __init__(self, random: Callable[[], float]) -> None:
        """Start empty; `random` gives numbers from 0 to 1, so that a thousand devices do not ask at the same moment."""
        self._random = random
        self._standings: dict[str, _Standing] = {}
        self._chosen: dict[tuple[str, str], str] = {}

    def announce(self, candidates: Iterable[Candidate], now_s: float) -> None:
        """Take over what is announced now; new and changed candidates are due soon."""
        wanted = {url: candidate for candidate in candidates for url in candidate.urls}
        for url, standing in list(self._standings.items()):
            if url not in wanted and standing.announced:
                standing.announced, standing.due_s = False, now_s
                if standing.found is None:
                    del self._standings[url]
        for url, candidate in wanted.items():
            known = self._standings.get(url)
            if known is None:
                if len(self._standings) < _MAX_URLS:
                    due_s = now_s + _SETTLE_S * self._random()
                    self._standings[url] = _Standing(candidate=candidate, due_s=due_s)
                continue
            known.announced = True
            if known.candidate != candidate:
                known.candidate, known.due_s, known.failures = candidate, now_s, 0

    def take_due(self, now_s: float) -> list[str]:
        """URLs to ask now, a few at a time; each must be answered by one of the three below."""
        n_asked = sum(standing.asked for standing in self._standings.values())
        due = [url for url, standing in self._standings.items() if not standing.asked and standing.due_s <= now_s]
        due.sort(key=lambda url: self._standings[url].due_s)
        taken = due[: max(0, MAX_ASKED_AT_ONCE - n_asked)]
        for url in taken:
            self._standings[url].asked = True
        return taken

    def next_due_s(self) -> float | None:
        """When the next URL is due, or None."""
        waiting = [standing.due_s for standing in self._standings.values() if not standing.asked]
        return min(waiting, default=None)

    def recheck(self, url: str, now_s: float) -> None:
        """Ask a gateway again soon, as after a connection that met another certificate."""
        if url in self._standings:
            self._standings[url].due_s = now_s

    def proved(self, url: str, certificate_sha256: str, rtt_s: float, now_s: float) -> None:
        """A gateway gave its proof, or carries the pinned certificate."""
        standing = self._answered(url)
        if standing is None:
            return
        standing.failures, standing.reason = 0, ""
        standing.due_s = now_s + REPROVE_S * (0.5 + 0.5 * self._random())
        standing.found = FoundGateway(
            url=url,
            certificate_sha256=certificate_sha256,
            rtt_s=rtt_s,
            name=standing.candidate.name,
            gateway_id=standing.candidate.gateway_id,
        )

    def refuted(self, url: str, reason: str, now_s: float) -> None:
        """A gateway answered, and did not prove itself: it is out at once."""
        standing = self._answered(url)
        if standing is None:
            return
        standing.found = None
        self._failed(url, standing, reason, now_s)

    def silent(self, url: str, reason: str, now_s: float) -> None:
        """A gateway could not be asked."""
        standing = self._answered(url)
        if standing is not None:
            self._failed(url, standing, reason, now_s)

    def gateways(self) -> tuple[FoundGateway, ...]:
        """One entry for each gateway that proved itself, nearest first, by an address that stays while it works."""
        groups: dict[tuple[str, str], list[_Standing]] = {}
        for standing in self._standings.values():
            if standing.found is not None:
                groups.setdefault((standing.found.certificate_sha256, standing.found.gateway_id), []).append(standing)
        chosen = {}
        for key, group in groups.items():
            current = [each for each in group if each.announced] or group
            found = [each.found for each in current if each.found is not None]
            kept = next((each for each in found if each.url == self._chosen.get(key)), None)
            chosen[key] = kept or min(found, key=lambda each: each.rtt_s)
        self._chosen = {key: found.url for key, found in chosen.items()}
        return tuple(sorted(chosen.values(), key=lambda found: found.rtt_s))

    def reasons(self) -> tuple[str, ...]:
        """Why candidates are not gateways, one line each."""
        return tuple(standing.reason for standing in self._standings.values() if standing.found is None)

    def _answered(self, url: str) -> _Standing | None:
        standing = self._standings.get(url)
        if standing is not None:
            standing.asked = False
        return standing

    def _failed(self, url: str, standing: _Standing, reason: str, now_s: float) -> None:
        standing.reason = reason
        standing.failures += 1
        if not standing.announced and (standing.found is None or standing.failures >= _MAX_SILENCES):
            del self._standings[url]
            return
        span_s = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(standing.failures - 1, 10))
        standing.due_s = now_s + span_s * (0.2 + 0.8 * self._random())
