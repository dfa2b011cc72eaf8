"""The session's one background thread: hashes, prepares, asks gateways, scouts, probes; never in a request's way."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from threading import Condition, Thread, current_thread
from time import monotonic

from hybrid.errors import HybridError, ModelError, ModelInvalid, ModelUnsupported, TensorMismatch
from hybrid.partition.prepared import Prepared, prepare
from hybrid.partition.store import keep_newest
from hybrid.route.holding import Holding
from hybrid.route.route import Route
from hybrid.scouting.gateways import Gateways
from hybrid.scouting.offer import ask
from hybrid.scouting.scout import Scout
from hybrid.scouting.variants import Variants
from hybrid.transport.client import GatewayClient

log = logging.getLogger("hybrid.session")

TICK_S = 1.0
UNSETTLED_S = 0.2
MOST_PAUSE_S = 30.0
DEVICE_STALE_S = 5.0
DEVICE_DOUBT_RATIO = 1.3
N_KEPT_GRAPHS = 16
"""Prepared shapes of one model that stay on disk; each may hold a copy of the weights."""

UNREACHABLE_S = 5.0
ASK_AGAIN_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
IN_USE_S = 10.0
LINK_CHANGE_RATIO = 1.5


@dataclass(slots=True)
class Progress:
    """How far one route's preparation has come.

    Attributes:
        graph: its cuts, once prepared.
        asked: by gateway URL, how often it was asked and when it may be asked again (monotonic seconds).
        uplinks_bps: by gateway URL, the goodput at the last scouting.
        began_s: monotonic time at which the route was asked for.
        unknown_at: URLs of gateways that do not hold the model.
        is_settled: whether the last scouting had an answer to everything that it tried.
        n_troubles: scoutings and failures in a row that did not settle it.
        not_before_s: monotonic time before which it is left alone.
    """

    graph: Prepared | None = None
    asked: dict[str, tuple[int, float]] = field(default_factory=dict)
    uplinks_bps: dict[str, float] = field(default_factory=dict)
    began_s: float = field(default_factory=monotonic)
    unknown_at: set[str] = field(default_factory=set)
    is_settled: bool = True
    n_troubles: int = 0
    not_before_s: float = 0.0

    def is_hopeless(self, gateways: Gateways) -> bool:
        """Whether nobody is there, or none of those who are there holds the model."""
        ready = gateways.ready
        if not ready:
            return monotonic() - self.began_s > UNREACHABLE_S
        return all(client.url in self.unknown_at for client in ready)

    def scouted(self, *, is_settled: bool) -> None:
        """Notes how a scouting ended; one that did not settle it is repeated, later and later."""
        self.is_settled = is_settled
        self.n_troubles = 0 if is_settled else self.n_troubles + 1
        self.not_before_s = monotonic() + min(MOST_PAUSE_S, UNSETTLED_S * 2 ** (self.n_troubles - 1)) * (not is_settled)


class Preparation:
    """Works through the routes of a session, the one used last first, and then once a second.

    Args:
        model_path: gives the model file (a path of its own, so that it can be written where the model came as bytes).
        digest: gives the model digest; may take as long as hashing the file.
        cache: folder for prepared graphs.
        gateways: the session's.
        scout: gives the scout once the digest is known.
        variants: gives the model's local variants then.
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
        variants: Callable[[str], Variants],
        wants_cuts: bool,
        on_unknown: Callable[[GatewayClient], None],
    ) -> None:
        self._model_path = model_path
        self._digest = digest
        self._cache = cache
        self._gateways = gateways
        self._make_scout = scout
        self._make_variants = variants
        self._wants_cuts = wants_cuts
        self._on_unknown = on_unknown
        self._changed = Condition()
        self._routes: dict[Route, Progress] = {}
        self._woken = False
        self._closed = False
        self._thread: Thread | None = None
        self._scout: Scout | None = None
        self._variants: Variants | None = None
        self.model_digest = ""

    def add(self, route: Route) -> None:
        """Begins to prepare a route; starts the thread when it is the first (or this process is a fork)."""
        with self._changed:
            self._routes.setdefault(route, Progress())
            self._woken = True
            self._changed.notify_all()
        self.ensure_running()

    def drop(self, route: Route) -> None:
        """Forgets a route that the session no longer keeps."""
        with self._changed:
            self._routes.pop(route, None)

    def ensure_running(self) -> None:
        """Starts the thread where there is none: at the first route, and in a forked child at its first request."""
        if self._thread is not None or self._closed or not self._routes:
            return
        with self._changed:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="hybrid-preparation", daemon=True)
                self._thread.start()

    def forked(self) -> None:
        """In a forked child: the thread stayed with the parent, and whoever held the lock with it."""
        self._changed = Condition()
        self._thread = None

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

    def end(self) -> None:
        """Begins nothing more; waits for nobody."""
        self._closed = True

    def _run(self) -> None:
        while not self._closed:
            self._round()
            with self._changed:
                self._changed.notify_all()
                if not self._woken and not self._closed:
                    self._changed.wait(self._pause_s())
                self._woken = False

    def _pause_s(self) -> float:
        now_s = monotonic()
        due_s = [at.not_before_s - now_s for route, at in self._routes.items() if route.holdings and not at.is_settled]
        return max(0.01, min([TICK_S, *due_s]))

    def _round(self) -> None:
        try:
            self._gateways.tend()
            if not self.model_digest:
                self.model_digest = self._digest()
            if self._scout is None:
                self._scout = self._make_scout(self.model_digest)
                self._variants = self._make_variants(self.model_digest)
        except Exception as exc:  # noqa: BLE001  (the thread outlives whatever a model does: requests go on locally)
            log.warning("preparation.failed error=%s", getattr(exc, "code", type(exc).__name__))
            for route in list(self._routes):
                route.note, route.is_hopeless = f"the model cannot be prepared: {exc}", True
            return
        for route, progress in sorted(self._routes.items(), key=lambda item: -item[0].last_used_s):
            if self._closed:
                return
            route.look_at_machine()
            if route.sample is None or monotonic() < progress.not_before_s:
                continue
            try:
                self._advance(route, progress, self._scout)
            except Exception as exc:
                log.exception("route.failed shape=%s", route.shape_key.id)
                route.note, route.is_hopeless = f"preparing failed: {exc}", True
                progress.scouted(is_settled=False)

    def _advance(self, route: Route, progress: Progress, scout: Scout) -> None:
        """The next step for one route: ask, scout, probe, or nothing."""
        if self._variants is not None:
            self._variants.offer(route, self._gateways.ready)
        news = self._ask_all(route, progress)
        if not route.holdings:
            route.is_hopeless = progress.is_hopeless(self._gateways)
            return
        if news or not progress.is_settled or _link_changed(route, progress) or scout.has_news(route):
            progress.scouted(is_settled=scout.scout(route, self._graph(route, progress)))
            progress.uplinks_bps = _uplinks_bps(route)
            route.is_hopeless = progress.is_settled and not route.has_way()
            return
        if monotonic() - route.last_used_s > IN_USE_S:
            return
        scout.probe_if_due(route)
        if _device_is_doubtful(route):
            scout.remeasure(route)

    def _graph(self, route: Route, progress: Progress) -> Prepared | None:
        """The prepared graph of a route; a model that cannot be cut is still offloaded whole."""
        if not self._wants_cuts or progress.graph is not None:
            return progress.graph
        try:
            self._require_same_file()
            graph = prepare(self._model_path(), self.model_digest, route.shape_key, self._cache)
            if graph.table.keeps_state:
                raise ModelUnsupported("it remembers something between runs, which all must be this device's")
            try:
                self._require_same_file()
            except ModelInvalid:
                rmtree(graph.folder, ignore_errors=True)  # it may have been made from the other content
                raise
        except (ModelError, TensorMismatch) as exc:
            route.obstacle = f"no cuts: {exc}"
            progress.graph = None
            self._wants_cuts = self._wants_cuts and isinstance(exc, TensorMismatch)
        except HybridError as exc:
            # A full disk or a slow machine may pass: the route is used uncut until the next scouting.
            route.obstacle = f"no cuts for now: {exc}"
        else:
            route.obstacle, progress.graph = "", graph
            keep_newest(graph.folder.parent, N_KEPT_GRAPHS, self._graphs_in_use())
        return progress.graph

    def _graphs_in_use(self) -> list[Path]:
        return [at.graph.folder for at in list(self._routes.values()) if at.graph is not None]

    def _require_same_file(self) -> None:
        """Nothing is prepared from a file that was replaced after this session opened it."""
        if self._digest() != self.model_digest:
            raise ModelInvalid(
                f"{self._model_path()} changed after it was opened; open it anew to use the new one",
                path=str(self._model_path()),
            )

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
        """A gateway that holds the model; None while it does not, or is not ready."""
        n_asked, _ = progress.asked.get(client.url, (0, 0.0))
        progress.asked[client.url] = (n_asked + 1, monotonic() + ASK_AGAIN_S[min(n_asked, len(ASK_AGAIN_S) - 1)])
        try:
            offer = ask(client, self.model_digest, route.shape_key.text)
        except HybridError as exc:
            route.note = f"{exc.code}: {exc}"
            return None
        if offer.state == "unknown":
            route.note = (
                "the gateway does not hold this model (bytes and file name count); push it with `hybrid models push`"
            )
            progress.unknown_at.add(client.url)
            self._on_unknown(client)
            return None
        progress.unknown_at.discard(client.url)
        if offer.state != "ready":
            route.note = "the gateway is preparing this model and shape"
            return None
        tails = {tail.id: tail.tail_s for tail in offer.cuts}
        return Holding(client, offer.whole_s, tails, offer.codecs, offer.splits)


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


def _device_is_doubtful(route: Route) -> bool:
    """Whether the device is believed to be unusually slow or fast, and nothing was measured on it for a while."""
    age_s = monotonic() - route.scheduler.device_heard_s
    return age_s > DEVICE_STALE_S and not 1 / DEVICE_DOUBT_RATIO < route.device_speed_ratio < DEVICE_DOUBT_RATIO
