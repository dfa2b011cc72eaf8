"""Health, metadata, readiness, configuration and statistics over HTTP."""

from typing import Final

import msgspec
from aiohttp import web

from compression.tensor import BYTES, TensorSpec
from hybrid.errors import NotFound
from hybrid.hosting.http_replies import json_reply
from hybrid.serving.engines.loaded_models import IndexEntry, LoadedModel
from hybrid.serving.engines.statistics import ModelStatistics, StatisticsBoard
from hybrid.serving.rest.service import InferenceService

PLATFORM: Final = "onnxruntime_onnx"
"""What Triton calls this platform; clients know it by that name."""


class TensorMetadata(msgspec.Struct, frozen=True):
    """One input or output in a model's metadata; -1 is a size known only at run time."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """The reply of `GET /v2/models/{name}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(msgspec.Struct, frozen=True):
    """One input or output in a model's configuration, in Triton's words."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(msgspec.Struct, frozen=True):
    """The reply of `GET /v2/models/{name}/config`; `max_batch_size` 0: shapes hold every dimension."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]


class ModelHandlers:
    """The reading handlers of the inference protocol."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def live(self, _: web.Request) -> web.Response:
        """`GET /v2/health/live`: the process answers."""
        return json_reply({"live": True})

    async def ready(self, _: web.Request) -> web.Response:
        """`GET /v2/health/ready`: whether requests are taken now; 503 while models load or the service drains."""
        is_ready = self._service.is_ready()
        answer: dict[str, object] = {"live": True, "ready": is_ready}
        degraded = self._service.degraded()
        if degraded:
            answer["degraded"] = degraded
        return json_reply(answer, status=200 if is_ready else 503)

    async def server(self, _: web.Request) -> web.Response:
        """`GET /v2`: who answers, and which extensions it really has."""
        service = self._service
        return json_reply({"name": service.name, "version": service.version, "extensions": service.extensions})

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v2/models`: names of all models held, as KServe's server lists them."""
        self._service.require(request, "read")
        entries = await self._service.models.index()
        return json_reply({"models": list(dict.fromkeys(entry.name for entry in entries))})

    async def model_ready(self, request: web.Request) -> web.Response:
        """`GET /v2/models/{name}[/versions/{version}]/ready`: 200, 503 while it cannot answer, 404 when unknown."""
        self._service.require(request, "read")
        name, version = _named(request)
        if self._service.models.opened(name, version) is not None:
            return json_reply({"name": name, "ready": True})
        reason = await self._service.models.reason(name, version)
        return json_reply({"name": name, "ready": False, "error": reason}, status=503)

    async def metadata(self, request: web.Request) -> web.Response:
        """`GET /v2/models/{name}[/versions/{version}]`: inputs, outputs and versions."""
        self._service.require(request, "read")
        loaded = await self._loaded(request)
        versions = [entry.version for entry in await self._service.models.index() if entry.name == loaded.model.name]
        return json_reply(
            ModelMetadata(
                loaded.model.name,
                versions,
                PLATFORM,
                [_metadata(spec) for spec in loaded.signature.inputs],
                [_metadata(spec) for spec in loaded.signature.outputs],
            )
        )

    async def config(self, request: web.Request) -> web.Response:
        """`GET /v2/models/{name}[/versions/{version}]/config`, in the form of Triton's model configuration."""
        self._service.require(request, "read")
        loaded = await self._loaded(request)
        return json_reply(
            ModelConfig(
                loaded.model.name,
                PLATFORM,
                "onnxruntime",
                0,
                [_config(spec) for spec in loaded.signature.inputs],
                [_config(spec) for spec in loaded.signature.outputs],
            )
        )

    async def statistics(self, request: web.Request) -> web.Response:
        """`GET /v2/models/stats` and `/v2/models/{name}[/versions/{version}]/stats`: nanosecond counters."""
        self._service.require(request, "read")
        board = self._service.statistics
        name, version = _named(request)
        entries = [
            self._shown(board, entry)
            for entry in await self._service.models.index()
            if name in ("", entry.name) and version in ("", entry.version) and entry.state == "READY"
        ]
        if name and not entries:
            raise NotFound(f"model {name!r} {version} is not loaded, so it has no statistics")
        return json_reply({"model_stats": entries})

    def _shown(self, board: StatisticsBoard, entry: IndexEntry) -> ModelStatistics:
        shown = board.of(entry.name, entry.version).shown()
        loaded = self._service.models.opened(entry.name, entry.version)
        if loaded is not None:
            shown.hybrid_batching = [*self._service.batching(loaded.model.model_digest)]
        return shown

    async def _loaded(self, request: web.Request) -> LoadedModel:
        name, version = _named(request)
        return self._service.models.opened(name, version) or await self._service.models.open(name, version)


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info.get("name", ""), request.match_info.get("version", "")


def _metadata(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, spec.dtype, _sizes(spec))


def _config(spec: TensorSpec) -> TensorConfig:
    kind = "TYPE_STRING" if spec.dtype == BYTES else f"TYPE_{spec.dtype}"
    return TensorConfig(spec.name, kind, _sizes(spec))


def _sizes(spec: TensorSpec) -> list[int]:
    return [-1 if size is None else size for size in spec.shape]
