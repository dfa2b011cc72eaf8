"""What an administrator asks of a fleet over HTTP: tokens, boxes, alarms, the trust bundle."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from cloud_gateway.fleet.admission.boxes import Box
from cloud_gateway.fleet.admission.desk import FleetDesk
from cloud_gateway.fleet.admission.enrolment import EnrolmentRecord, EnrolmentWish
from cloud_gateway.fleet.admission.routes import body_of
from cloud_gateway.uploads import answering, check_body, read_body
from hybrid.errors import BadMessage
from hybrid.fleet.trust_bundle import MAX_BUNDLE_BYTES
from hybrid.hosting.front_door import IDENTITY, require
from hybrid.hosting.http_replies import json_reply
from hybrid.transport.fleet_paths import ADMIN_ALARMS_PATH, ADMIN_BOXES_PATH, ADMIN_TOKENS_PATH, ADMIN_TRUST_PATH


class Rename(msgspec.Struct, frozen=True, kw_only=True):
    """What a box shall be called."""

    name: str


class Revoke(msgspec.Struct, frozen=True, kw_only=True):
    """Why a box is let out."""

    reason: str = ""


def add_admin_routes(app: web.Application, desk: FleetDesk) -> None:
    """Serve the administrator's calls."""
    calls = _Calls(desk)
    one = ADMIN_BOXES_PATH + "/{box}"
    app.router.add_post(ADMIN_TOKENS_PATH, answering(calls.make_token))
    app.router.add_get(ADMIN_TOKENS_PATH, answering(calls.list_tokens))
    app.router.add_post(ADMIN_TOKENS_PATH + "/{id}/revoke", answering(calls.revoke_token))
    app.router.add_get(ADMIN_BOXES_PATH, answering(calls.list_boxes))
    app.router.add_get(one, answering(calls.show_box))
    app.router.add_post(one + "/admit", answering(calls.admit))
    app.router.add_post(one + "/revoke", answering(calls.revoke))
    app.router.add_post(one + "/rename", answering(calls.rename))
    app.router.add_get(ADMIN_ALARMS_PATH, answering(calls.list_alarms))
    app.router.add_post(ADMIN_ALARMS_PATH + "/{id}/ack", answering(calls.acknowledge))
    app.router.add_get(ADMIN_TRUST_PATH, answering(calls.show_trust))
    app.router.add_post(ADMIN_TRUST_PATH, answering(calls.set_trust))


class _Calls:
    def __init__(self, desk: FleetDesk) -> None:
        self._desk = desk

    async def make_token(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        wish = await body_of(request, EnrolmentWish)
        token = await asyncio.to_thread(self._desk.make_token, wish, who)
        return json_reply({"id": token.id, "token": token.text}, headers={"Cache-Control": "no-store"})

    async def list_tokens(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        records = await asyncio.to_thread(self._desk.tokens.listed)
        return json_reply({"tokens": [_public_token(record) for record in records]})

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        await asyncio.to_thread(self._desk.revoke_token, request.match_info["id"], who)
        return json_reply({"id": request.match_info["id"], "revoked": True})

    async def list_boxes(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        return json_reply({"boxes": [public_box(box) for box in self._desk.boxes.all()]})

    async def show_box(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        box = self._desk.boxes.named(request.match_info["box"])
        events = await asyncio.to_thread(self._desk.audit.of_box, box.id)
        return json_reply({"box": public_box(box), "events": events})

    async def admit(self, request: web.Request) -> web.StreamResponse:
        return await self._change(request, self._desk.admit)

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        reason = (await body_of(request, Revoke)).reason
        return await self._change(request, lambda box_id, who: self._desk.revoke(box_id, who, reason))

    async def rename(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        name = (await body_of(request, Rename)).name

        def rename(box_id: str, who: str) -> Box:
            box = self._desk.boxes.rename(box_id, name)
            self._desk.audit.note(who, "renamed", box_id=box_id, detail=name)
            return box

        return await self._change(request, rename)

    async def _change(self, request: web.Request, change: Callable[[str, str], Box]) -> web.StreamResponse:
        who = _admin(request)
        box = self._desk.boxes.named(request.match_info["box"])
        return json_reply({"box": public_box(await asyncio.to_thread(change, box.id, who))})

    async def list_alarms(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        with_acked = request.query.get("acked") == "1"
        found = await asyncio.to_thread(lambda: self._desk.alarms.listed(with_acked=with_acked))
        return json_reply({"alarms": found})

    async def acknowledge(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        text = request.match_info["id"]
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise BadMessage(f"{text[:40]!r} is no alarm's number")
        await asyncio.to_thread(self._desk.alarms.acknowledge, int(text), who)
        return json_reply({"id": int(text), "acked": True})

    async def show_trust(self, request: web.Request) -> web.StreamResponse:
        _admin(request)
        return json_reply(self._told_trust())

    async def set_trust(self, request: web.Request) -> web.StreamResponse:
        who = _admin(request)
        check_body(request, 2 * MAX_BUNDLE_BYTES)
        envelope = await read_body(request)
        bundle = await asyncio.to_thread(self._desk.set_trust, envelope, who)
        return json_reply(self._told_trust() | {"sequence": bundle.sequence})

    def _told_trust(self) -> dict[str, Any]:
        bundle, newest = self._desk.trust.bundle(), self._desk.trust.newest()
        if bundle is None or newest is None:
            return {"sequence": None, "root_sha256": None, "keys": []}
        told = {"sequence": bundle.sequence, "root_sha256": bundle.root_sha256.hex(), "keys": bundle.keys}
        return told | {"envelope": base64.b64encode(newest[1]).decode()}


def _admin(request: web.Request) -> str:
    """Who asks, once it is an administrator."""
    require(request, "admin")
    return str(request[IDENTITY].token_id)


def public_box(box: Box) -> dict[str, Any]:
    """A box as people are told of it."""
    kept = {name: getattr(box, name) for name in box.__struct_fields__ if name not in {"key", "pardoned", "since_s"}}
    return kept | {"may_come_back": box.pardoned}


def _public_token(record: EnrolmentRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__ if name != "key"}
