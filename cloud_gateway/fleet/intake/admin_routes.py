"""What an administrator asks of the things that boxes brought: lists, contents in pieces, removal."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from cloud_gateway.fleet.admission.routes import body_of
from cloud_gateway.fleet.intake.listing import Amount, Listing, StoredThing
from cloud_gateway.uploads import answering
from hybrid.errors import BadMessage
from hybrid.hosting.front_door import require
from hybrid.hosting.http_replies import json_reply
from hybrid.transport.fleet_paths import FLEET

ITEMS_PATH: Final = f"{FLEET}/items"
PIECE_BYTES: Final = 4 << 20


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """Items, and how much is kept in all."""

    items: tuple[StoredThing, ...]
    amounts: tuple[Amount, ...] = ()


class RemoveWish(msgspec.Struct, frozen=True, kw_only=True):
    """Items of a kind up to an id, of one box or (empty) of all."""

    kind: str
    up_to: int
    box: str = ""


def add_item_routes(app: web.Application, listing: Listing, box_named: Callable[[str], str]) -> None:
    """Serve the calls.

    Args:
        app: the gateway's application.
        listing: answers them.
        box_named: the id of a box by its name or id, or it raises `NotFound`.
    """

    async def show(request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        asked = request.query
        box = box_named(asked["box"]) if asked.get("box") else ""
        after, limit = _whole(asked.get("after", "0")), _whole(asked.get("limit", "1000"))
        found = await asyncio.to_thread(
            lambda: listing.list(asked.get("kind", "result"), box=box, after=after, limit=limit)
        )
        amounts = await asyncio.to_thread(listing.amounts)
        return json_reply(ItemList(items=tuple(found), amounts=tuple(amounts)))

    async def content(request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        offset = _whole(request.query.get("offset", "0"))
        item_id = _whole(request.match_info["id"])
        piece = await asyncio.to_thread(lambda: listing.content(item_id, offset=offset, n_bytes=PIECE_BYTES))
        return web.Response(body=piece, content_type="application/octet-stream")

    async def remove(request: web.Request) -> web.StreamResponse:
        require(request, "admin")
        wish = await body_of(request, RemoveWish)
        box = box_named(wish.box) if wish.box else ""
        return json_reply({"n_removed": await asyncio.to_thread(listing.remove, wish.kind, wish.up_to, box=box)})

    app.router.add_get(ITEMS_PATH, answering(show))
    app.router.add_get(ITEMS_PATH + "/{id}", answering(content))
    app.router.add_post(ITEMS_PATH + "/remove", answering(remove))


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadMessage(f"{text[:40]!r}: a whole number is wanted")
    return int(text)
