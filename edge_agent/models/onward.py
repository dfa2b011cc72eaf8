"""Passes on what devices ask and this box does not compute: tails done sooner beyond, models that only others have.

Design: whole requests for models of this box are planned by the box's own session of that model. A tail cannot be: its
tensors are a device's, so the message travels on as it came, with what is left of its deadline and marked as passed on,
which keeps boxes from passing a request round in a circle. Whatever fails on the way on, this box computes if it can.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

from edge_agent.models.room import ModelRoom
from hybrid.errors import DeadlinePassed, Forbidden, GatewayUnreachable, HybridError, NotFound, Overloaded, Warming
from hybrid.graph.shape_key import ShapeKey
from hybrid.serving.split.decoders import is_split
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import CutTime, PreparedReply, TailShelf
from hybrid.wire.message import InferRequest, InferResponse

if TYPE_CHECKING:  # loaded when somebody can be asked
    from hybrid.route.holding import Holding
    from hybrid.scouting.gateways import Gateways
    from hybrid.session.connected import Neighbourhood
    from hybrid.transport.client import GatewayClient

_log = logging.getLogger("hybrid.agent.onward")

ASK_AGAIN_S: Final = {"ready": 300.0, "preparing": 1.0, "unknown": 30.0, "failed": 1.0}
GAIN_RATIO: Final = 0.9
"""The way on must take less than this share of the time here."""

MOST_S: Final = 60.0
REPLY_BYTES: Final = 4096
"""What a reply is believed to have before one was seen."""

MAX_KNOWN: Final = 256


@dataclass(slots=True)
class _Known:
    """What the gateway says of a model and shape key.

    Attributes:
        state: of its last answer.
        holding: its cuts and their seconds; None while it does not hold the model.
        again_s: monotonic time before which it is not asked again.
        task: asks now.
        reply_bytes: of its last reply.
        whole_s: seconds of the whole model there.
    """

    state: str = "preparing"
    holding: "Holding | None" = None
    again_s: float = 0.0
    task: asyncio.Task[None] | None = None
    reply_bytes: int = REPLY_BYTES


@dataclass(slots=True)
class OnwardCounts:
    """What became of devices' requests.

    Attributes:
        n_here: computed here, or planned by the model's own session.
        n_passed_on: answered by the gateway.
        n_came_back: passed on in vain, and computed here.
    """

    n_here: int = 0
    n_passed_on: int = 0
    n_came_back: int = 0


@dataclass(slots=True)
class _Link:
    """Gateways under one identity."""

    neighbourhood: "Neighbourhood"
    gateways: "Gateways"
    known: dict[tuple[str, str], _Known] = field(default_factory=dict)


class Onward:
    """Between devices and the box's own service for their messages.

    Args:
        split: the box's own.
        shelf: its tails.
        room: its models.
        neighbourhood: who may be asked now; None for nobody.
        may_leave: whether inputs may leave this box; what a head made of them may in any case.

    Attributes:
        counts: of requests.
    """

    def __init__(
        self,
        split: SplitService,
        shelf: TailShelf,
        room: ModelRoom,
        neighbourhood: "Callable[[], Neighbourhood | None]",
        may_leave: Callable[[], bool] = lambda: True,
    ) -> None:
        self._split = split
        self._may_leave = may_leave
        self._shelf = shelf
        self._room = room
        self._neighbourhood = neighbourhood
        self._link: _Link | None = None
        self.counts = OnwardCounts()

    async def infer(self, request: InferRequest, receive_s: float = 0.0) -> InferResponse:
        """Answer one message here or beyond; raises as `SplitService.infer` does."""
        started_s = perf_counter()
        may_go = request.hops == 0 and bool(request.model_digest) and (bool(request.cut) or self._may_leave())
        link = self._current() if may_go else None
        known = self._known(link, request.model_digest, request.shape_key) if link is not None else None
        tried: HybridError | None = None
        if known is not None and known.holding is not None and self._is_better_there(request, known, receive_s):
            try:
                return await self._pass_on(request, known, receive_s)
            except DeadlinePassed:
                raise
            except HybridError as exc:
                _log.info("onward.failed code=%s", exc.code)
                tried = exc
                self.counts.n_came_back += 1
        try:
            response = await self._split.infer(request, receive_s + perf_counter() - started_s)
        except NotFound as exc:
            raise tried or exc from exc
        except Warming:
            if tried is not None or known is None or known.holding is None:
                raise
            return await self._pass_on(request, known, receive_s + perf_counter() - started_s)
        self.counts.n_here += 1
        return replace(response, receive_s=receive_s)

    async def prepare(self, model_digest: str, shape_key: str) -> PreparedReply:
        """What this box has, or else what its gateway has; raises as `SplitService.prepare` does."""
        link = self._current()
        known = self._known(link, model_digest, shape_key) if link is not None else None
        reply = await self._split.prepare(model_digest, shape_key)
        if reply.state != "unknown" or known is None:
            return reply
        if known.task is not None and known.holding is None:
            await asyncio.wait([known.task], timeout=1.0)
        holding = known.holding
        if holding is None:
            return PreparedReply(state="preparing") if known.state in ("preparing", "failed") else reply
        # Seconds beyond: what the way there costs stands in the queue of each reply.
        cuts = [CutTime(id=cut, tail_s=tail_s) for cut, tail_s in holding.tails.items()]
        state: Literal["ready", "preparing"] = "ready" if known.state == "ready" else "preparing"
        return PreparedReply(
            state=state,
            cuts=cuts,
            whole_s=holding.whole_s,
            codecs=tuple(holding.codecs),
            splits=tuple(holding.splits),
        )

    @property
    def is_reachable(self) -> bool:
        """Whether a gateway is connected now; looks for one from the first question on."""
        link = self._current()
        return link is not None and bool(link.gateways.ready)

    async def reached(self, timeout_s: float = 1.0) -> bool:
        """Whether a gateway is connected; waits a moment for one that is being connected to."""
        if self.is_reachable or self._link is None:
            return self.is_reachable
        connecting = [client for client in self._link.gateways.clients if client.state == "connecting"]
        if connecting:
            await asyncio.to_thread(connecting[0].wait_settled, timeout_s)
        return self.is_reachable

    async def beyond(self, request: InferRequest) -> InferResponse:
        """The gateway's answer to a request by name for a model that this box does not hold.

        Raises:
            GatewayUnreachable: no gateway is connected. Whatever it answers.
        """
        if not self._may_leave():
            raise Forbidden(
                f"model {request.model_name[:80]!r} is not on this box, and inputs do not leave it (--keep-inputs-here)"
            )
        link = self._current()
        ready = link.gateways.ready if link is not None else ()
        if not ready:
            raise GatewayUnreachable("this box has no gateway now")
        return await self._sent(ready[0], request, 0.0)

    def close(self) -> None:
        """Give the connections back. Blocking."""
        link, self._link = self._link, None
        if link is not None:
            link.gateways.close()

    # -- who is there, and what it has

    def _current(self) -> _Link | None:
        neighbourhood = self._neighbourhood()
        link = self._link
        if link is not None and link.neighbourhood == neighbourhood:
            return link
        self._link = None
        if link is not None:
            self._room.executor.spawn(asyncio.to_thread(link.gateways.close), name="onward-close")
        if neighbourhood is None:
            return None
        from hybrid.scouting.gateways import Gateways

        gateways = Gateways(neighbourhood.token)
        try:
            gateways.begin(neighbourhood.urls, on_change=self._look_again)
        except HybridError as exc:
            _log.warning("onward.no_gateway error=%s", exc)
            return None
        self._link = _Link(neighbourhood, gateways)
        return self._link

    def _look_again(self) -> None:
        """A gateway came or went (told on any thread): what failed is asked again at the next request."""
        link = self._link
        for known in list(link.known.values()) if link is not None else ():
            if known.holding is None:
                known.again_s = 0.0

    def _known(self, link: _Link, model_digest: str, shape_key: str) -> _Known:
        key = (model_digest, shape_key)
        known = link.known.get(key)
        if known is None:
            if len(link.known) >= MAX_KNOWN:
                del link.known[next(iter(link.known))]
            known = link.known[key] = _Known()
        if known.task is None and monotonic() >= known.again_s and shape_key:
            known.task = self._room.executor.spawn(self._ask(link, known, key), name="onward-ask")
        return known

    async def _ask(self, link: _Link, known: _Known, key: tuple[str, str]) -> None:
        from hybrid.route.holding import Holding
        from hybrid.scouting.offer import ask

        try:
            ready = link.gateways.ready
            if not ready:
                known.state = "failed"
                return
            offer = await asyncio.to_thread(ask, ready[0], *key)
            known.state = offer.state
            known.holding = None
            if offer.state != "unknown":
                tails = {tail.id: tail.tail_s for tail in offer.cuts}
                known.holding = Holding(ready[0], offer.whole_s, tails, offer.codecs, offer.splits)
        except HybridError as exc:
            _log.info("onward.no_offer code=%s", exc.code)
            known.state = "failed"
        finally:
            known.again_s = monotonic() + ASK_AGAIN_S.get(known.state, 5.0)
            known.task = None

    # -- one request

    def _is_better_there(self, request: InferRequest, known: _Known, receive_s: float) -> bool:
        holding, now_s = known.holding, monotonic()
        assert holding is not None
        view = holding.view(now_s)
        if view is None or not _is_decoded_by(holding, request):
            return False
        is_here = self._room.answering.of_digest(request.model_digest) is not None
        there_s = self._there_s(request, known, view)
        if there_s is None:
            return not is_here
        if request.deadline_s is not None and there_s > request.deadline_s - receive_s:
            return False
        if not is_here:
            return True
        here_s = self._here_s(request)
        return here_s is not None and there_s < GAIN_RATIO * here_s

    def _there_s(self, request: InferRequest, known: _Known, view: Any) -> float | None:
        """Expected seconds at the gateway, the way included; None where that is not known."""
        holding = known.holding
        assert holding is not None
        tail_s = holding.tails.get(request.cut) if request.cut else holding.whole_s
        n_bytes = sum(len(tensor.payload) for tensor in request.inputs)
        network_s = view.link.transfer_s(n_bytes, known.reply_bytes)
        return None if tail_s is None or network_s is None else network_s + view.queue_s + tail_s

    def _here_s(self, request: InferRequest) -> float | None:
        """Expected seconds of a tail here; None where the model's own session plans, or nothing is known."""
        if not request.cut:
            return None
        tail_s = self._shelf.known_s(request.model_digest, ShapeKey.parse(request.shape_key).id, request.cut)
        return None if tail_s is None else self._room.executor.pool.expected_wait_s + tail_s

    async def _pass_on(self, request: InferRequest, known: _Known, receive_s: float) -> InferResponse:
        assert known.holding is not None
        try:
            response = await self._sent(known.holding.client, request, receive_s)
        except HybridError:
            known.again_s = 0.0  # it may have lost the model or the cut: asked anew
            raise
        known.reply_bytes = sum(len(tensor.payload) for tensor in response.outputs)
        return response

    async def _sent(self, client: "GatewayClient", request: InferRequest, receive_s: float) -> InferResponse:
        """The gateway's answer to a message, with what the way there cost in its queue."""
        from hybrid.route.holding import is_gateways_fault
        from hybrid.session.patience import stall_s

        started_s = perf_counter()
        left_s = None if request.deadline_s is None else request.deadline_s - receive_s
        if left_s is not None and left_s <= 0:
            raise DeadlinePassed("the deadline passed while the request was on its way; allow more time")
        onward = replace(request, hops=request.hops + 1, deadline_s=left_s)
        client.standing.breaker.sent(monotonic())
        try:
            future = client.infer(onward, stall_s=stall_s(client), timeout_s=left_s or MOST_S)
            response = await asyncio.wrap_future(future)
        except HybridError as exc:
            if is_gateways_fault(exc) and not isinstance(exc, DeadlinePassed):
                after_s = exc.fields.get("retry_after_s") if isinstance(exc, Overloaded) else None
                client.standing.failed(monotonic(), after_s)
            raise
        client.standing.succeeded(response.queue_s, monotonic())
        self.counts.n_passed_on += 1
        elapsed_s = perf_counter() - started_s
        return replace(
            response,
            receive_s=receive_s,
            queue_s=max(0.0, elapsed_s - response.compute_s),
            via=client.url,
        )


def _is_decoded_by(holding: "Holding", request: InferRequest) -> bool:
    """Whether the gateway decodes what a request's tensors came as."""
    if request.split and request.split not in holding.splits:
        return False
    codecs = {tensor.codec for tensor in request.inputs if not (request.split and is_split(tensor))}
    return codecs <= {"none", *holding.codecs}
