"""The box's HTTP call about what it learned: personal layers that a person wants no more."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from edge_agent.learning.personal import Personal
from edge_agent.whereabouts import ROUNDS_PATH
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.identity import Right

PERSONAL: Final = ROUNDS_PATH + "/{what}/personal"


def add_personal_route(app: web.Application, personal: Personal, admit: Callable[[web.Request, Right], None]) -> None:
    """Serve it to administrators, and to programs of the machine where no tokens are asked for."""

    async def forget(request: web.Request) -> web.Response:
        admit(request, "admin")
        campaigns = await personal.forget(request.match_info["what"])
        return json_reply({"forgotten": list(campaigns)})

    app.router.add_delete(PERSONAL, forget)
