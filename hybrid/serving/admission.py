"""Who may use a channel: asked when it opens, and again with each of its requests."""

from contextvars import ContextVar

from aiohttp import web

from hybrid.hosting.auth import Tokens
from hybrid.hosting.front_door import IDENTITY, require
from hybrid.hosting.identity import Identity
from hybrid.serving.split.channel import Infer
from hybrid.wire.message import InferRequest, InferResponse

_asking: ContextVar[Identity] = ContextVar("asking")


def admit_channel(request: web.Request) -> None:
    """Admit a channel or a posted message; tasks that serve it inherit who asked."""
    require(request, "infer")
    _asking.set(request[IDENTITY])


def checked(infer: Infer, tokens: Tokens | None) -> Infer:
    """Inference behind a look at the asker's token: a revoked one ends on open channels too."""
    if tokens is None:
        return infer

    async def check_and_infer(request: InferRequest, receive_s: float) -> InferResponse:
        tokens.check(_asking.get())
        return await infer(request, receive_s)

    return check_and_infer
