"""The model repository extension over HTTP: index, load, unload."""

from typing import Final, TypeVar

import msgspec
from aiohttp import web

from hybrid.errors import BadMessage
from hybrid.hosting.http_replies import json_reply
from hybrid.serving.rest.body import Body
from hybrid.serving.rest.service import InferenceService


class IndexCall(msgspec.Struct, frozen=True):
    """Body of `POST /v2/repository/index`; tritonclient sends none."""

    ready: bool = False


class LoadParameters(msgspec.Struct, frozen=True):
    """Parameters of load and unload; `config` would override Triton's model configuration."""

    config: str | None = None
    unload_dependents: bool = False


class LoadCall(msgspec.Struct, frozen=True):
    """Body of load and unload."""

    parameters: LoadParameters = LoadParameters()


T = TypeVar("T")

_index_call: Final = msgspec.json.Decoder(IndexCall)
_load_call: Final = msgspec.json.Decoder(LoadCall)


class RepositoryHandlers:
    """Index for readers, load and unload for administrators."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def index(self, request: web.Request) -> web.Response:
        """`POST /v2/repository/index`: every version with its state and, when it is not READY, the reason."""
        self._service.require(request, "read")
        call = await decoded(request, _index_call, self._service)
        entries = await self._service.models.index()
        return json_reply([entry for entry in entries if entry.state == "READY" or not call.ready])

    async def load(self, request: web.Request) -> web.Response:
        """`POST /v2/repository/models/{name}/load`: open the newest version; answers once it is ready."""
        self._service.require(request, "admin")
        call = await decoded(request, _load_call, self._service)
        if call.parameters.config is not None:
            raise BadMessage("a configuration cannot be given at load; the model's own signature is used")
        await self._service.models.load(request.match_info["name"])
        return json_reply({})

    async def unload(self, request: web.Request) -> web.Response:
        """`POST /v2/repository/models/{name}/unload`: all its versions; running requests end first."""
        self._service.require(request, "admin")
        await decoded(request, _load_call, self._service)
        await self._service.models.unload(request.match_info["name"])
        return json_reply({})


async def decoded(request: web.Request, decoder: msgspec.json.Decoder[T], service: InferenceService) -> T:
    """The typed JSON body of a control call; no body is an empty object.

    Raises:
        BadMessage: not JSON of that form.
    """
    body = await Body(request, service.limits).json()
    try:
        return decoder.decode(body or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise BadMessage(f"the body is not what this call takes: {exc}") from exc
