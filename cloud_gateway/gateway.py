"""The gateway service: builds its parts, serves until it is told to stop, and takes them down in order."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from aiohttp import web
from prometheus_client.core import Metric

from cloud_gateway.attachment_routes import add_attachment_routes
from cloud_gateway.attachment_store import AttachmentStore
from cloud_gateway.blobs import BlobStore
from cloud_gateway.chunk_routes import add_chunk_routes
from cloud_gateway.chunk_service import ChunkService
from cloud_gateway.config import GatewayConfig
from cloud_gateway.fleet.service import Fleet, add_no_fleet
from cloud_gateway.registry import Registry
from cloud_gateway.rounds.neighbours import Neighbours
from cloud_gateway.rounds.service import Rounds
from cloud_gateway.uploads import add_routes as add_upload_routes
from hybrid.cli.output import event, note
from hybrid.hosting.auth import Tokens
from hybrid.hosting.data_folder import DataFolder
from hybrid.hosting.foundation import certificate_of, listener_settings, open_tokens
from hybrid.hosting.front_door import FrontDoor, require
from hybrid.hosting.listener import Listener
from hybrid.hosting.proof_route import add_proof_route
from hybrid.hosting.renewal import LiveCertificate
from hybrid.hosting.request_meter import RequestMeter
from hybrid.hosting.stop_signal import StopSignal
from hybrid.hosting.systemd import Notifier
from hybrid.serving.admission import admit_channel, checked
from hybrid.serving.announcement import Announcement
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.departure import drain
from hybrid.serving.engine_metrics import EngineMetrics
from hybrid.serving.engine_settings import degraded, executor_settings
from hybrid.serving.engines.batch_shelf import BatchMode, BatchSettings, BatchShelf
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.metrics import ServiceCollector, add_metrics_route
from hybrid.serving.rest.body import BodyLimits
from hybrid.serving.rest.routes import add_routes as add_inference_routes
from hybrid.serving.rest.service import EXTENSIONS, InferenceService
from hybrid.serving.rest.shared_memory import SharedMemoryRegions
from hybrid.serving.split.channel import SplitChannel
from hybrid.serving.split.channel import add_routes as add_channel_routes
from hybrid.serving.split.decoders import Decoders
from hybrid.serving.split.prepare import add_prepare_route
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import TailShelf

_log = logging.getLogger("hybrid.gateway")


class Gateway:
    """One gateway; `serve` runs it from start to end.

    Attributes:
        url: where it serves, known once it does.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._notifier = Notifier()
        self._loaded = False
        self._stopping = False
        self._fleet: Fleet | None = None
        self._rounds: Rounds | None = None
        self.url = ""

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            Conflict: the port or the data folder is taken.
            StorageError: the data folder, tokens or certificate cannot be used.
        """
        async with AsyncExitStack() as stack:
            await self._serve(stack)

    async def _serve(self, stack: AsyncExitStack) -> None:
        config = self._config
        folder = stack.enter_context(await asyncio.to_thread(DataFolder, config.data))
        stop = stack.enter_context(StopSignal())
        tokens = None if config.no_auth else await asyncio.to_thread(open_tokens, config)
        if tokens is not None:
            stack.callback(tokens.close)
        blobs = await asyncio.to_thread(BlobStore, folder.path)
        registry = await asyncio.to_thread(Registry, folder.path, blobs)
        stack.callback(registry.close)
        if tokens is not None:
            await self._open_fleet(stack, folder.path, tokens, registry, blobs)
        engine = await asyncio.to_thread(executor_settings, config)
        executor = await stack.enter_async_context(Executor(engine))
        models = LoadedModels(registry, executor)
        door = FrontDoor(tokens, RequestMeter())
        app = web.Application(middlewares=[door.handle], client_max_size=config.max_body_bytes)
        regions = _regions(config, stack)
        shelf = TailShelf(executor, config.data / "prepared")
        batches = BatchShelf(executor, shelf.prepared_of, config.data / "prepared", _batch_settings(config))
        service = self._service(models, executor, batches, regions)
        add_inference_routes(app, service)
        decoders = Decoders(executor, registry.splits, service.bodies)
        split = SplitService(executor, models, shelf, service.statistics, service.bodies, decoders=decoders)
        channels = self._add_split(app, split, service, tokens)
        self._add_models(app, registry, blobs, models, executor)
        add_attachment_routes(app, registry, AttachmentStore(folder.path), require, service.bodies)
        certificate = LiveCertificate(await asyncio.to_thread(certificate_of, config)) if config.speaks_tls else None
        self._add_trust(app, tokens, executor, certificate)
        self._add_rounds(app, service, models, executor)
        listener = Listener(app, listener_settings(config))
        add_metrics_route(
            app,
            ServiceCollector(
                meter=door.meter,
                service=service,
                engine=EngineMetrics(executor, batches, service.bodies),
                n_connections=lambda: listener.n_connections,
                more=self._families,
            ),
        )
        await listener.start(config.host, config.port, certificate.context if certificate else None)
        stack.push_async_callback(listener.finish)
        self.url = config.url(listener.port)
        if certificate is not None:
            announcement = Announcement(config, {"version": _version()})
            stack.push_async_callback(announcement.withdraw)
            executor.spawn(announcement.follow(certificate, listener.port), name="certificate")
        executor.spawn(self._load(models), name="load-models")
        executor.spawn(self._notifier.keep_alive(), name="watchdog")
        self._say_ready()
        await stop.first.wait()
        self._leave(executor)
        await drain(door, listener, channels, stop, config.drain_s)

    async def _open_fleet(
        self, stack: AsyncExitStack, data: Path, tokens: Tokens, registry: Registry, blobs: BlobStore
    ) -> None:
        """Boxes, and what they learn."""
        self._fleet = fleet = await asyncio.to_thread(Fleet, data, tokens, registry)
        stack.callback(fleet.close)
        around = Neighbours(
            library=registry,
            files=blobs,
            boxes=fleet.desk.boxes,
            blobs=fleet.blobs,
            raise_alarm=fleet.desk.alarms.raise_alarm,
            lift_alarm=fleet.desk.alarms.lift,
            steering=fleet.steering,
            is_delegated=fleet.desk.trust.is_rounds_key,
            root_sha256=fleet.desk.trust.root_sha256,
        )
        self._rounds = await asyncio.to_thread(Rounds, data, around)
        stack.callback(self._rounds.close)

    def _leave(self, executor: Executor) -> None:
        """Say that this gateway is not ready any more, and let boxes' waiting calls go."""
        self._stopping = True
        self._notifier.stopping()
        if self._fleet is not None:
            executor.spawn(self._fleet.release(self._config.drain_s / 2.0), name="release-boxes")
        if self._rounds is not None:
            executor.spawn(self._rounds.release(self._config.drain_s / 2.0), name="release-rounds")

    def _say_ready(self) -> None:
        config = self._config
        event({"ready": self.url}, f"ready {self.url}", json=False)
        self._notifier.ready(f"serves on {self.url}")
        if not config.no_auth:
            url = config.named_url(int(self.url.rpartition(":")[2]))
            note(f"next: export HYBRID_GATEWAY={url} HYBRID_TOKEN=$(cat {config.data / 'admin.token'})")
        _log.info("gateway.ready url=%s data=%s auth=%s", self.url, config.data, not config.no_auth)

    def _add_split(
        self, app: web.Application, split: SplitService, service: InferenceService, tokens: Tokens | None
    ) -> SplitChannel:
        """What devices ask for whole models and tails, now (over channels) or when there is time (deferred)."""
        add_prepare_route(app, service, split.prepare)
        if self._fleet is not None:
            self._fleet.add_ingest(app, split.infer, service.bodies)
        return add_channel_routes(app, checked(split.infer, tokens), admit_channel, bodies=service.bodies)

    def _add_trust(
        self, app: web.Application, tokens: Tokens | None, executor: Executor, certificate: LiveCertificate | None
    ) -> None:
        """What devices and boxes ask before they show themselves, and all that boxes ask then."""
        if certificate is not None and tokens is not None:
            add_proof_route(app, tokens, lambda: certificate.current.spki_sha256)
        if self._fleet is None:
            add_no_fleet(app)
            return
        self._fleet.add_routes(app, lambda: certificate.current.spki_sha256 if certificate is not None else b"")
        executor.spawn(self._fleet.run(), name="fleet")

    def _add_rounds(
        self, app: web.Application, service: InferenceService, models: LoadedModels, executor: Executor
    ) -> None:
        """What boxes and people ask of campaigns."""
        if self._rounds is None or self._fleet is None:
            return
        desk = self._fleet.desk

        def note(who: str, what: str, detail: str) -> None:
            desk.audit.note(who, what, detail=detail)

        self._rounds.add_routes(app, box_of=self._fleet.box_in_epoch, bodies=service.bodies, note=note)
        self._rounds.committed = lambda name: executor.spawn(models.refresh(name), name=f"refresh-{name}")
        executor.spawn(self._rounds.run(), name="rounds")

    def _families(self) -> Iterator[Metric]:
        """Metrics of the fleet and its campaigns, where there is one."""
        if self._fleet is not None:
            yield from self._fleet.families()
        if self._rounds is not None:
            yield from self._rounds.families()

    async def _load(self, models: LoadedModels) -> None:
        try:
            await models.load_wanted()
        finally:
            self._loaded = True

    def _service(
        self, models: LoadedModels, executor: Executor, batches: BatchShelf, regions: SharedMemoryRegions | None
    ) -> InferenceService:
        config = self._config
        provider = executor.settings.engine.provider
        return InferenceService(
            name="hybrid",
            version=_version(),
            models=models,
            executor=executor,
            require=require,
            is_ready=lambda: self._loaded and not self._stopping and not models.n_loading,
            limits=BodyLimits(
                max_body_bytes=config.max_body_bytes,
                max_header_bytes=config.max_json_bytes,
                idle_s=config.body_timeout_s,
            ),
            bodies=BodyBudget(config.body_memory_bytes),
            batching=batches.of_model,
            degraded=lambda: degraded(provider, [session for _, session in executor.sessions.sessions()]),
            regions=regions,
            extensions=EXTENSIONS if regions is None else (*EXTENSIONS, "system_shared_memory"),
        )

    def _add_models(
        self, app: web.Application, registry: Registry, blobs: BlobStore, models: LoadedModels, executor: Executor
    ) -> None:
        """The calls by which models come and go."""
        add_upload_routes(
            app,
            registry,
            blobs,
            require,
            committed=lambda name: executor.spawn(models.refresh(name), name=f"refresh-{name}"),
        )
        add_chunk_routes(app, ChunkService(registry.find_blob, self._config.data / "chunks"), require)


def _regions(config: GatewayConfig, stack: AsyncExitStack) -> SharedMemoryRegions | None:
    """What clients on this machine may share memory through, where they may."""
    if not config.allow_shared_memory:
        return None
    regions = SharedMemoryRegions()
    stack.callback(regions.close)
    return regions


def _batch_settings(config: GatewayConfig) -> BatchSettings:
    """Whether and how requests share runs."""
    return BatchSettings(mode=cast("BatchMode", config.batching), max_hold_s=config.batch_delay_s)


def _version() -> str:
    from hybrid import __version__

    return __version__
