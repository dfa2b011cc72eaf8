"""The session's one background thread: hashes, prepares, asks gateways, scouts, probes; never in a request's way."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread, current_thread
from time import monotonic
from weakref import WeakSet

from hybrid.errors import HybridError
from hybrid.partition.prepared import Prepared, prepare
from hybrid.session.gateways import Gateways
from hybrid.session.holding import Holding
from hybrid.session.route import Route
from hybrid.session.scouting import Scout
from hybrid.transport.client import GatewayClient

log = logging.getLogger("hybrid.session")

TICK_S = 1.0
UNSETTLED_S = 0.2
MOST_PAUSE_S = 60.0
UNREACHABLE_S = 5.0
ASK_TIMEOUT_S = 10.0
ASK_AGAIN_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
IN_USE_S = 10.0
PROBE_LEAST_S = 2.0
PROBE_MOST_S = 5.0
PROBE_SHARE = 0.1
LINK_CHANGE_RATIO = 1.5


@dataclass(slots=True)
class Progress:
    """How far one route's preparation has come.

    Attributes:
        graph: its cuts, once prepared.
        asked: by gateway URL, how often it was asked and when it may be asked again (monotonic seconds).
        uplinks_bps: by gateway URL, the goodput at the last scouting.
        probed_s: monotonic time of the last probe.
        began_s: monotonic time at which the route was asked for.
        unknown_at: URLs of gateways that do not hold the model.
        settled: whether the last scouting had an answer to everything that it tried.
    """

    graph: Prepared | None = None
    asked: dict[str, tuple[int, float]] = field(default_factory=dict)
    uplinks_bps: dict[str, float] = field(default_factory=dict)
    probed_s: float = 0.0
    settled: bool = True
    began_s: float = field(default_factory=monotonic)
    unknown_at: set[str] = field(default_factory=set)

    def is_hopeless(self, gateways: Gateways) -> bool:
        """Whether nobody is there, or none of those who are there holds the model."""
        ready = gateways.ready
        if not ready:
            return monotonic() - self.began_s > UNREACHABLE_S
        return all(client.url in self.unknown_at for client in ready)


class Preparation:
    """Works through the routes of a session, the one asked for last first, and then once a second.

    Args:
        model_path: gives the model file (a path of its own, so that it can be written where the model came as bytes).
        digest: gives the model digest; may take as long as hashing the file.
        cache: folder for prepared graphs.
        gateways: the session's.
        scout: gives the scout once the digest is known.
        wants_cuts: whether interior cuts are to be considered at all.
        on_unknown: called with a client whose gateway does not hold the model.
    """

    def __init__(
        self,
        *,
        model_path: Callable[[], Path],
        digest: Callable[[], str],
        cache: Path,
        gateways: Gateways,
        scout: Callable[[str], Scout],
        wants_cuts: bool,
        on_unknown: Callable[[GatewayClient], None],
    ) -> None:
        self._model_path = model_path
        self._digest = digest
        self._cache = cache
        self._gateways = gateways
        self._make_scout = scout
        self._wants_cuts = wants_cuts
        self._on_unknown = on_unknown
        self._changed = Condition()
        self._routes: dict[Route, Progress] = {}
        self._woken = False
        self._closed = False
        self._thread: Thread | None = None
        self._scout: Scout | None = None
        self.model_digest = ""
        self._pause_s = TICK_S
        _alive.add(self)

    def add(self, route: Route) -> None:
        """Begins to prepare a route; starts the thread when it is the first (or this process is a fork)."""
        with self._changed:
            self._routes[route] = Progress()
            self._woken = True
            self._changed.notify_all()
        self.ensure_running()

    def ensure_running(self) -> None:
        """Starts the thread where there is none: at the first route, and in a forked child at its first request."""
        if self._thread is not None or self._closed:
            return
        with self._changed:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="hybrid-preparation", daemon=True)
                self._thread.start()

    def forked(self) -> None:
        """In a forked child: the thread stayed with the parent, and whoever held the lock with it."""
        self._changed = Condition()
        self._thread = None

    def drop(self, route: Route) -> None:
        """Forgets a route that the session no longer keeps."""
        with self._changed:
            self._routes.pop(route, None)

    def wake(self) -> None:
        """Something changed (a gateway came, a way was refused): look again now."""
        with self._changed:
            self._woken = True
            for progress in self._routes.values():
                progress.asked.clear()
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until a condition over the routes holds; whether it did in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or condition(), timeout_s) and not self._closed

    def close(self, wait_s: float) -> None:
        """Stops the thread after what it is doing; waits at most this long for it."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join(timeout=wait_s)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._round()
            except HybridError as exc:
                log.warning("preparation.failed code=%s", exc.code)
                self._give_up(f"{exc.code}: {exc}")
            except Exception:
                # The thread outlives whatever one model or one gateway does: requests go on locally meanwhile.
                log.exception("preparation.crashed")
                self._give_up("preparing failed unexpectedly; the log of `hybrid.session` says how")
            with self._changed:
                self._changed.notify_all()
                if not self._woken and not self._closed:
                    unsettled = any(route.holdings and not at.settled for route, at in self._routes.items())
                    self._changed.wait(UNSETTLED_S if unsettled else self._pause_s)
                self._woken = False

    def _give_up(self, why: str) -> None:
        """Nothing remote for now: says why, and looks again later and later."""
        self._pause_s = min(MOST_PAUSE_S, 2 * self._pause_s)
        for route in list(self._routes):
            route.note, route.is_hopeless = why, True

    def _round(self) -> None:
        self._gateways.tend()
        if not self.model_digest:
            self.model_digest = self._digest()
        if self._scout is None:
            self._scout = self._make_scout(self.model_digest)
        for route, progress in sorted(self._routes.items(), key=lambda item: -item[0].last_used_s):
            if self._closed:
                return
            news = self._ask_all(route, progress)
            if not route.holdings:
                route.is_hopeless = progress.is_hopeless(self._gateways)
                continue
            if news or not progress.settled or _link_changed(route, progress):
                progress.settled = self._scout.scout(route, self._graph(route, progress))
                progress.uplinks_bps = _uplinks_bps(route)
                route.is_hopeless = progress.settled and not route.has_way()
            elif _probe_is_due(route, progress):
                progress.probed_s = monotonic()
                self._scout.probe(route)

    def _graph(self, route: Route, progress: Progress) -> Prepared | None:
        """The prepared graph of a route; a model that cannot be cut is still offloaded whole."""
        if self._wants_cuts and progress.graph is None and not route.obstacle:
            try:
                progress.graph = prepare(self._model_path(), self.model_digest, route.shape_key, self._cache)
            except HybridError as exc:
                log.warning("route.uncuttable shape=%s code=%s", route.shape_key.id, exc.code)
                route.obstacle = f"no cuts: {exc}"
        return progress.graph

    def _ask_all(self, route: Route, progress: Progress) -> bool:
        """Asks each connected gateway that has not answered for this route; whether a new one holds the model."""
        here = set(self._gateways.clients)
        held = {holding.client for holding in route.holdings}
        if not held <= here:
            route.holdings = tuple(holding for holding in route.holdings if holding.client in here)
            route.put_crossings(tuple(c for c in route.crossings if c.holding.client in here))
        now_s = monotonic()
        asked = [c for c in self._gateways.ready if c not in held and progress.asked.get(c.url, (0, 0.0))[1] <= now_s]
        answers = [self._ask(route, progress, client) for client in asked]
        found = tuple(holding for holding in answers if holding is not None)
        route.holdings = (*route.holdings, *found)
        if not route.holdings and not self._gateways.ready:
            clients = self._gateways.clients
            why = f"no gateway is reachable: {clients[0].down_reason or 'still connecting'}" if clients else ""
            route.note = why or "no gateway is configured or found yet"
        return bool(found)

    def _ask(self, route: Route, progress: Progress, client: GatewayClient) -> Holding | None:
        """What a gateway holds of this model and shape key; None while it has not, or is not ready."""
        n_asked, _ = progress.asked.get(client.url, (0, 0.0))
        progress.asked[client.url] = (n_asked + 1, monotonic() + ASK_AGAIN_S[min(n_asked, len(ASK_AGAIN_S) - 1)])
        body = {"model_digest": self.model_digest, "shape_key": route.shape_key.text}
        try:
            answer = client.post_json("/v2/hybrid/prepare", body, timeout_s=ASK_TIMEOUT_S).result(ASK_TIMEOUT_S + 1)
        except (HybridError, TimeoutError) as exc:
            route.note = f"{getattr(exc, 'code', 'timeout')}: {exc}"
            return None
        state = answer.get("state")
        if state == "unknown":
            route.note = "the gateway does not hold this model; push it with `hybrid models push`"
            progress.unknown_at.add(client.url)
            self._on_unknown(client)
            return None
        progress.unknown_at.discard(client.url)
        if state != "ready":
            route.note = "the gateway is preparing this model and shape"
            return None
        tails = {cut["id"]: cut.get("tail_s") for cut in answer.get("cuts", ())}
        return Holding(client, answer.get("whole_s"), tails)


_alive: WeakSet[Preparation] = WeakSet()


def _after_fork() -> None:
    for preparation in _alive:
        preparation.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _uplinks_bps(route: Route) -> dict[str, float]:
    """Goodput of each connected link of a route, where it is known."""
    views = {holding.client.url: holding.client for holding in route.holdings}
    rates = {url: client.link.view.uplink_bps for url, client in views.items() if client.state == "ready"}
    return {url: bps for url, bps in rates.items() if bps}


def _link_changed(route: Route, progress: Progress) -> bool:
    """Whether a link differs so much from the last scouting that other cuts may win now."""
    seen = progress.uplinks_bps
    return any(
        url not in seen or max(bps, seen[url]) > LINK_CHANGE_RATIO * min(bps, seen[url])
        for url, bps in _uplinks_bps(route).items()
    )


def _probe_is_due(route: Route, progress: Progress) -> bool:
    """Whether the route is in use, nothing told of its link lately, and a probe takes little of the link's time."""
    now_s = monotonic()
    links = [crossing.holding.client.link.view for crossing in route.crossings if crossing.verified]
    if now_s - route.last_used_s > IN_USE_S or not links:
        return False
    lightest = min(way.prospect.bytes_up for crossing in route.crossings for way in crossing.ways)
    probe_s = links[0].transfer_s(lightest, 0) or 0.0
    pause_s = min(PROBE_MOST_S, max(PROBE_LEAST_S, probe_s / PROBE_SHARE))
    return bool(now_s - max(links[0].measured_s, progress.probed_s) >= pause_s)
