"""The shared memory extensions over HTTP: system regions where they are allowed, no CUDA regions."""

from typing import Final

import msgspec
from aiohttp import web

from hybrid.errors import BadMessage, Forbidden
from hybrid.hosting.http_replies import json_reply
from hybrid.serving.rest.repository import decoded
from hybrid.serving.rest.service import InferenceService
from hybrid.serving.rest.shared_memory import SharedMemoryRegions


class RegisterCall(msgspec.Struct, frozen=True):
    """Body of `POST /v2/systemsharedmemory/region/{region}/register`."""

    key: str
    byte_size: int
    offset: int = 0


_register_call: Final = msgspec.json.Decoder(RegisterCall)


class SharedMemoryHandlers:
    """Status for readers; registering for whoever may infer, on a service that allows it at all."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def status(self, request: web.Request) -> web.Response:
        """`GET /v2/systemsharedmemory[/region/{region}]/status`: the registered regions; none where not allowed."""
        self._service.require(request, "read")
        regions = self._service.regions
        name = request.match_info.get("region", "")
        if regions is None:
            return json_reply([])
        return json_reply(
            [
                {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
                for region in regions.regions(name)
            ]
        )

    async def register(self, request: web.Request) -> web.Response:
        """`POST …/region/{region}/register`."""
        self._service.require(request, "infer")
        regions = self._allowed()
        call = await decoded(request, _register_call, self._service)
        regions.register(request.match_info["region"], call.key, call.offset, call.byte_size)
        return json_reply({})

    async def unregister(self, request: web.Request) -> web.Response:
        """`POST …[/region/{region}]/unregister`: one region, or all."""
        self._service.require(request, "infer")
        regions = self._allowed()
        name = request.match_info.get("region")
        if name is None:
            regions.close()
        else:
            regions.unregister(name)
        return json_reply({})

    async def cuda_status(self, request: web.Request) -> web.Response:
        """`GET /v2/cudasharedmemory[/region/{region}]/status`: there are never any."""
        self._service.require(request, "read")
        return json_reply([])

    async def cuda_register(self, request: web.Request) -> web.Response:
        """`POST …/region/{region}/register`: refused."""
        self._service.require(request, "infer")
        raise BadMessage("CUDA shared memory is not supported; send the tensors or use system shared memory")

    async def cuda_unregister(self, request: web.Request) -> web.Response:
        """`POST …[/region/{region}]/unregister`: nothing was registered, so nothing is left."""
        self._service.require(request, "infer")
        return json_reply({})

    def _allowed(self) -> SharedMemoryRegions:
        if self._service.regions is None:
            raise Forbidden("shared memory is off; start the service on loopback with --allow-shared-memory")
        return self._service.regions
