"""The calls of people about campaigns over HTTP; each handler only reads, asks, and writes."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from aiohttp import web

from cloud_gateway.fleet.admission.routes import body_of
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.evaluation import MOST_BYTES, EvaluationSets
from cloud_gateway.rounds.home.exports import Exports
from cloud_gateway.rounds.messages import CampaignWish, PromoteWish, RoundsKey
from cloud_gateway.rounds.public import Public
from cloud_gateway.uploads import answering, check_body, read_body
from hybrid.errors import BadMessage, NotFound, StorageError
from hybrid.hosting.front_door import IDENTITY, require
from hybrid.hosting.http_replies import json_reply
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.rounds_paths import CAMPAIGNS_PATH, KEY_PATH, SETS_PATH

MAX_WISH_BYTES: Final = 4 << 20
_LONGEST_S: Final = 300.0
Note = Callable[[str, str, str], None]
_log = logging.getLogger("hybrid.gateway.rounds")


class Orders(Protocol):
    """What people order: the service."""

    public: Public
    sets: EvaluationSets
    exports: Exports
    key: RoundsKey

    async def create(self, wish: CampaignWish, who: str) -> Course:
        """Begin a campaign."""
        ...

    async def order(self, what: str, campaign: str) -> None:
        """Pause, resume or stop one."""
        ...

    async def promote(self, campaign: str, wish: PromoteWish) -> None:
        """Make a step a version."""
        ...


def add_admin_routes(app: web.Application, rounds: Orders, *, bodies: BodyBudget, note: Note) -> None:
    """Serve them.

    Args:
        app: gets the routes.
        rounds: answers.
        bodies: memory of all requests.
        note: keeps who did what: takes a token's id, a word and details; blocks.
    """
    calls = _Calls(rounds, bodies, note)
    one = CAMPAIGNS_PATH + "/{campaign}"
    app.router.add_get(CAMPAIGNS_PATH, answering(calls.campaigns))
    app.router.add_post(CAMPAIGNS_PATH, answering(calls.create))
    app.router.add_get(one, answering(calls.show))
    app.router.add_get(one + "/report", answering(calls.report))
    app.router.add_get(one + "/export", answering(calls.export))
    app.router.add_post(one + "/{order}", answering(calls.order))
    app.router.add_put(SETS_PATH, answering(calls.put_set))
    app.router.add_get(KEY_PATH, answering(calls.key))


class _Calls:
    def __init__(self, rounds: Orders, bodies: BodyBudget, note: Note) -> None:
        self._rounds = rounds
        self._bodies = bodies
        self._note = note

    async def campaigns(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        return json_reply(await self._rounds.public.listed())

    async def create(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        course = await self._rounds.create(await body_of(request, CampaignWish, MAX_WISH_BYTES), who)
        await self._kept(who, "campaign_created", f"{course.id} {course.order.model}:{course.order.version}")
        return json_reply(await self._rounds.public.shown(course.id))

    async def show(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        since, wait_s = _whole(request, "since", -1), min(float(_whole(request, "wait_s", 0)), _LONGEST_S)
        found = await self._rounds.public.shown(request.match_info["campaign"], since=since, wait_s=wait_s)
        return json_reply(found)

    async def report(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        return json_reply(await self._rounds.public.report(request.match_info["campaign"]))

    async def export(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        step = _whole(request, "step", -1) if "step" in request.query else None
        found = await self._rounds.exports.part(request.match_info["campaign"], step, _whole(request, "first", 0))
        return json_reply(found)

    async def order(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        campaign, what = request.match_info["campaign"], request.match_info["order"]
        if what == "promote":
            wish = await body_of(request, PromoteWish)
            if wish.policy == "none":
                raise BadMessage("a step is promoted as candidate or rollout, not as none")
            await self._rounds.promote(campaign, wish)
        elif what in ("pause", "resume", "stop"):
            await self._rounds.order(what, campaign)
        else:
            raise NotFound(f"{what[:40]!r} is no order; give pause, resume, stop or promote")
        await self._kept(who, f"campaign_{what}", campaign)
        return json_reply(await self._rounds.public.shown(campaign))

    async def put_set(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        check_body(request, MOST_BYTES)
        n_bytes = request.content_length or 0
        self._bodies.take(n_bytes)
        try:
            return json_reply(await asyncio.to_thread(self._rounds.sets.put, await read_body(request)))
        finally:
            self._bodies.give(n_bytes)

    async def key(self, request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        return json_reply(self._rounds.key)

    async def _kept(self, who: str, what: str, detail: str) -> None:
        try:
            await asyncio.to_thread(self._note, who, what, detail)
        except StorageError as exc:  # what was ordered is done, and is told so
            _log.error("rounds.order_not_noted who=%s what=%s detail=%s error=%s", who, what, detail, exc)


def _admin(request: web.Request) -> str:
    """Who asks, once it is an administrator."""
    require(request, "admin")
    return str(request[IDENTITY].token_id)


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 16):
        raise BadMessage(f"{name}={text[:20]!r} is no whole number")
    return int(text)
