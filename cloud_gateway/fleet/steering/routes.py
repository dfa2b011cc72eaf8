"""State calls of boxes and orders of people over HTTP; each handler only reads, asks `Steering`, and writes."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

import msgspec
from aiohttp import web

from cloud_gateway.fleet.admission.boxes import Box, check_tags
from cloud_gateway.fleet.admission.desk import check_protocol
from cloud_gateway.fleet.admission.routes import body_of
from cloud_gateway.fleet.assignments import Terms, parse_tags
from cloud_gateway.fleet.rollouts.rollout import Plan, check_stages
from cloud_gateway.fleet.steering.desired import BoxView, Rollout
from cloud_gateway.fleet.steering.messages import AssignWish, RolloutList, RolloutWish, TagsWish, UnassignWish
from cloud_gateway.fleet.steering.status import assignment_list, box_row, fleet_status, rollout_view
from cloud_gateway.fleet.steering.steering import Steering
from hybrid.artifact.names import check_word
from hybrid.errors import BadMessage
from hybrid.fleet.messages import StateCall
from hybrid.hosting.front_door import IDENTITY, require
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.identity import Identity
from hybrid.transport.fleet_paths import ADMIN_BOXES_PATH, ASSIGNMENTS_PATH, ROLLOUTS_PATH, STATE_PATH, STATUS_PATH

_MAX_STATE_BYTES: Final = 1 << 20
_MAX_LISTED: Final = 10_000
_MAX_ROLLBACK_BYTES: Final = 16 << 10
_LONGEST_S: Final = 30 * 86400.0


class TagDesk(Protocol):
    """How tags are changed."""

    def named(self, text: str) -> Box:
        """A box by id or name."""
        ...

    def change_tags(self, box_id: str, put: Mapping[str, str], drop: Collection[str]) -> Box:
        """Gives a box some tags and takes others from it."""
        ...


def add_steering_routes(
    app: web.Application,
    steering: Steering,
    *,
    check_epoch: Callable[[Identity, str], Box],
    boxes: TagDesk,
    note: Callable[[str, str, str, str], None],
) -> None:
    """Serve them.

    Args:
        app: the gateway's application.
        steering: answers.
        check_epoch: who asks, once it is an admitted box in its present life.
        boxes: where tags are changed.
        note: keeps who did what: takes a token's id, a word, a box or "", and details; blocks.
    """
    calls = _Calls(steering, check_epoch, boxes, note)
    app.router.add_post(STATE_PATH, calls.state)
    app.router.add_get(ASSIGNMENTS_PATH, calls.assignments)
    app.router.add_post(ASSIGNMENTS_PATH, calls.assign)
    app.router.add_post(ASSIGNMENTS_PATH + "/end", calls.unassign)
    app.router.add_get(ROLLOUTS_PATH, calls.rollouts)
    app.router.add_post(ROLLOUTS_PATH, calls.start)
    app.router.add_get(ROLLOUTS_PATH + "/{id}", calls.show)
    app.router.add_post(ROLLOUTS_PATH + "/{id}/{order}", calls.order)
    app.router.add_get(STATUS_PATH, calls.status)
    app.router.add_post(ADMIN_BOXES_PATH + "/{box}/tags", calls.tag)


class _Calls:
    def __init__(
        self,
        steering: Steering,
        check_epoch: Callable[[Identity, str], Box],
        boxes: TagDesk,
        note: Callable[[str, str, str, str], None],
    ) -> None:
        self._steering = steering
        self._check_epoch = check_epoch
        self._boxes = boxes
        self._note = note

    async def state(self, request: web.Request) -> web.StreamResponse:
        call = await body_of(request, StateCall, _MAX_STATE_BYTES)
        check_protocol(call.protocol)
        box = self._check_epoch(request[IDENTITY], call.epoch)
        return json_reply(await self._steering.state(box.id, call))

    async def assignments(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        return json_reply(assignment_list(self._steering))

    async def assign(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        wish = await body_of(request, AssignWish)
        _check_aim(wish.model, wish.version, wish.selector, wish.terms)
        made = await self._steering.assign(
            wish.model, wish.version or None, wish.selector, wish.terms, who, anew=wish.anew
        )
        await self._kept(who, "assigned", f"{made.label} to {made.selector}")
        return json_reply(made)

    async def unassign(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        wish = await body_of(request, UnassignWish)
        gone = await self._steering.unassign(wish.model, wish.selector)
        await self._kept(who, "unassigned", f"{gone.label} from {gone.selector}")
        return json_reply(gone)

    async def rollouts(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        views = []
        for rollout in list(self._steering.ledger.rollouts.values()):
            views.append(rollout_view(self._steering, rollout))
            await asyncio.sleep(0)  # hundreds of them with thousands of boxes each: others get their turn
        return json_reply(RolloutList(rollouts=tuple(views)))

    async def start(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        rollout = await self._start(await body_of(request, RolloutWish), who)
        await self._kept(who, "rollout_started", f"{rollout.plan.id} {rollout.plan.label} to {rollout.plan.selector}")
        return json_reply(rollout_view(self._steering, rollout))

    async def _start(self, wish: RolloutWish, who: str) -> Rollout:
        return await self._steering.start(_planned(wish, who), queue=wish.queue)

    async def show(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        rollout = self._steering.ledger.find(request.match_info["id"])
        history = await self._steering.history(rollout.plan.id)
        members = await self._steering.members(rollout)
        view = rollout_view(self._steering, rollout, members.values())
        return json_reply(msgspec.structs.replace(view, history=history))

    async def order(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        what = request.match_info["order"]
        rollout = await self._steering.order(what, request.match_info["id"], who)
        await self._kept(who, f"rollout_{what}", rollout.plan.id)
        return json_reply(rollout_view(self._steering, rollout))

    async def status(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        limit = request.query.get("limit", "200")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 9):
            raise BadMessage(f"limit={limit[:20]!r} is no number")
        found = await fleet_status(
            self._steering,
            time.time(),
            selector=parse_tags(request.query.get("tags", "")),
            only_trouble=request.query.get("boxes", "trouble") != "all",
            limit=min(int(limit), _MAX_LISTED),
        )
        return json_reply(found)

    async def tag(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        wish = await body_of(request, TagsWish)
        box = self._boxes.named(request.match_info["box"])
        changed: BoxView = await asyncio.to_thread(self._boxes.change_tags, box.id, wish.put, wish.drop)
        await asyncio.to_thread(self._note, who, "tagged", box.id, str(changed.tags))
        return json_reply(box_row(self._steering, changed, time.time()))

    async def _kept(self, who: str, what: str, detail: str) -> None:
        await asyncio.to_thread(self._note, who, what, "", detail)


def _planned(wish: RolloutWish, who: str) -> Plan:
    """The plan that a wish means, once it is one that can be carried out.

    Raises:
        BadMessage: it is not.
    """
    _check_aim(wish.model, wish.version, wish.selector, wish.terms)
    try:
        stages = check_stages(wish.stages)
    except ValueError as exc:
        raise BadMessage(str(exc)) from exc
    for name, value, least, most in (
        ("soak_s", wish.soak_s, 0.0, _LONGEST_S),
        ("enough_ratio", wish.enough_ratio, 0.0, 1.0),
        ("offline_ratio", wish.offline_ratio, 0.0, 1.0),
        ("max_failed_ratio", wish.max_failed_ratio, 0.0, 1.0),
        ("min_runs", wish.min_runs, 0.0, 1e9),
        ("errors_ratio", wish.tolerance.errors_ratio, 0.0, 1.0),
        ("crashes_ratio", wish.tolerance.crashes_ratio, 0.0, 1.0),
        ("latency_ratio", wish.tolerance.latency_ratio, 0.0, 100.0),
    ):
        _check_range(name, value, least, most)
    return Plan(
        id="",
        model=wish.model,
        version=wish.version,
        artifact_digest="",
        selector=wish.selector,
        stages=stages,
        soak_s=wish.soak_s,
        enough_ratio=wish.enough_ratio,
        offline_ratio=wish.offline_ratio,
        max_failed_ratio=wish.max_failed_ratio,
        tolerance=wish.tolerance,
        min_runs=wish.min_runs,
        terms=wish.terms,
        made_by=who,
    )


def _check_aim(model: str, version: str, selector: dict[str, str], terms: Terms) -> None:
    """What assignments and rollouts have in common.

    Raises:
        BadMessage: a word, a tag or a number that cannot be.
    """
    check_word(model)
    if version:
        check_word(version, "version")
    check_tags(selector)
    _check_range("priority", terms.priority, 0, 9)
    _check_range("report_within_s", terms.report_within_s, 60.0, _LONGEST_S)
    _check_range("trial.n_good", terms.trial.n_good, 1, 1e9)  # none would keep a version that never ran
    _check_range("trial.most_s", terms.trial.most_s, 1.0, _LONGEST_S)
    if terms.rollback is not None and len(terms.rollback[0]) + len(terms.rollback[1]) > _MAX_ROLLBACK_BYTES:
        raise BadMessage(f"a rollback has at most {_MAX_ROLLBACK_BYTES} bytes")


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadMessage(f"{name} is {value:g}; {least:g} to {most:g} is wanted")


def _admin(request: web.Request) -> str:
    """Who asks, once it is an administrator."""
    require(request, "admin")
    return str(request[IDENTITY].token_id)
