"""The gateway service: builds its parts, serves until it is told to stop, and takes them down in order."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar

from aiohttp import web

from cloud_gateway.attachment_routes import add_attachment_routes
from cloud_gateway.attachment_store import AttachmentStore
from cloud_gateway.blobs import BlobStore
from cloud_gateway.chunk_routes import add_chunk_routes
from cloud_gateway.chunk_service import ChunkService
from cloud_gateway.config import GatewayConfig
from cloud_gateway.engine_metrics import EngineMetrics
from cloud_gateway.engine_settings import batch_settings, degraded, executor_settings
from cloud_gateway.fleet.service import Fleet, add_no_fleet
from cloud_gateway.metrics import GatewayCollector, exposition
from cloud_gateway.registry import Registry
from cloud_gateway.uploads import add_routes as add_upload_routes
from hybrid.cli.output import event, note
from hybrid.discovery.announce import Announcer
from hybrid.hosting.auth import Tokens, ensure_admin_token
from hybrid.hosting.data_folder import DataFolder
from hybrid.hosting.front_door import IDENTITY, FrontDoor, require
from hybrid.hosting.identity import Identity
from hybrid.hosting.listener import Listener, ListenerSettings
from hybrid.hosting.proof_route import add_proof_route
from hybrid.hosting.renewal import LiveCertificate
from hybrid.hosting.request_meter import RequestMeter
from hybrid.hosting.stop_signal import StopSignal
from hybrid.hosting.tls import ServerCertificate, ensure_certificate, load_certificate
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.engines.batch_shelf import BatchShelf
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.rest.body import BodyLimits
from hybrid.serving.rest.routes import add_routes as add_inference_routes
from hybrid.serving.rest.service import EXTENSIONS, InferenceService
from hybrid.serving.rest.shared_memory import SharedMemoryRegions
from hybrid.serving.split.channel import Infer, SplitChannel
from hybrid.serving.split.channel import add_routes as add_channel_routes
from hybrid.serving.split.prepare import add_prepare_route
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import TailShelf
from hybrid.wire.message import InferRequest, InferResponse

_log = logging.getLogger("hybrid.gateway")

_DRAIN_POLL_S = 0.02
_asking: ContextVar[Identity] = ContextVar("asking")


class Gateway:
    """One gateway; `serve` runs it from start to end.

    Attributes:
        url: where it serves, known once it does.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._loaded = False
        self._stopping = False
        self._announcer: Announcer | None = None
        self._fleet: Fleet | None = None
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
        folder = stack.enter_context(await asyncio.to_thread(_held, config))
        stop = stack.enter_context(StopSignal())
        tokens = None if config.no_auth else await asyncio.to_thread(_tokens, config)
        if tokens is not None:
            stack.callback(tokens.close)
        blobs = await asyncio.to_thread(BlobStore, folder.path)
        registry = await asyncio.to_thread(Registry, folder.path, blobs)
        stack.callback(registry.close)
        if tokens is not None:
            self._fleet = await asyncio.to_thread(Fleet, folder.path, tokens)
            stack.callback(self._fleet.close)
        engine = await asyncio.to_thread(executor_settings, config)
        executor = await stack.enter_async_context(Executor(engine))
        models = LoadedModels(registry, executor)
        door = FrontDoor(tokens, RequestMeter())
        app = web.Application(middlewares=[door.handle], client_max_size=config.max_body_bytes)
        regions = SharedMemoryRegions() if config.allow_shared_memory else None
        if regions is not None:
            stack.callback(regions.close)
        shelf = TailShelf(executor, config.data / "prepared")
        batches = BatchShelf(executor, shelf.prepared_of, config.data / "prepared", batch_settings(config))
        service = self._service(models, executor, batches, regions)
        add_inference_routes(app, service)
        split = SplitService(executor, models, shelf, service.statistics, service.bodies)
        add_prepare_route(app, service, split)
        channels = add_channel_routes(app, _checked(split, tokens), _admit_channel, bodies=service.bodies)
        self._add_models(app, registry, blobs, models, executor)
        add_attachment_routes(app, registry, AttachmentStore(folder.path), require, service.bodies)
        certificate = LiveCertificate(await asyncio.to_thread(_certificate, config)) if config.speaks_tls else None
        self._add_trust(app, tokens, executor, certificate)
        listener = Listener(
            app,
            ListenerSettings(
                header_timeout_s=config.header_timeout_s,
                keepalive_s=config.keepalive_s,
                max_connections=config.max_connections,
            ),
        )
        self._add_metrics(app, door, service, EngineMetrics(executor, batches, service.bodies), listener)
        await listener.start(config.host, config.port, certificate.context if certificate else None)
        stack.push_async_callback(listener.finish)
        self.url = _url(config, listener.port)
        stack.push_async_callback(self._withdraw)
        if certificate is not None:
            executor.spawn(self._show(certificate, listener.port), name="certificate")
        executor.spawn(self._load(models), name="load-models")
        self._say_ready()
        await stop.first.wait()
        listener.close()
        await self._drain(lambda: door.n_active + channels.n_streams + listener.n_answering, channels, door, stop)

    def _say_ready(self) -> None:
        config = self._config
        event({"ready": self.url}, f"ready {self.url}", json=False)
        if not config.no_auth:
            note(f"next: export HYBRID_GATEWAY={self.url} HYBRID_TOKEN=$(cat {config.data / 'admin.token'})")
        _log.info("gateway.ready url=%s data=%s auth=%s", self.url, config.data, not config.no_auth)

    async def _drain(
        self, n_active: Callable[[], int], channels: SplitChannel, door: FrontDoor, stop: StopSignal
    ) -> None:
        """Refuse new work, let running work end, for `drain_s` at most; a second signal ends the wait."""
        self._stopping = True
        door.is_draining = True
        _log.info("gateway.draining n_active=%d", n_active())
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(channels.drain(self._config.drain_s))
            try:
                async with asyncio.timeout(self._config.drain_s):
                    while n_active() and not stop.second.is_set():  # noqa: ASYNC110 (counters, seen for seconds)
                        await asyncio.sleep(_DRAIN_POLL_S)
            except TimeoutError:
                _log.warning("gateway.drain_cut n_active=%d", n_active())
            leaving.cancel()
        _log.info("gateway.stopped n_active=%d", n_active())

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
            degraded=lambda: degraded(provider, {session.provider for _, session in executor.sessions.sessions()}),
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

    def _add_metrics(
        self,
        app: web.Application,
        door: FrontDoor,
        service: InferenceService,
        engine: EngineMetrics,
        listener: Listener,
    ) -> None:
        collector = GatewayCollector(
            meter=door.meter,
            board=service.statistics,
            engine=engine,
            models=service.models,
            is_ready=service.is_ready,
            n_connections=lambda: listener.n_connections,
        )

        async def metrics(request: web.Request) -> web.Response:
            require(request, "read")
            return web.Response(body=exposition(collector), headers={"Content-Type": "text/plain; version=0.0.4"})

        app.router.add_get("/metrics", metrics)

    async def _announce(self, port: int, certificate: ServerCertificate) -> None:
        config = self._config
        if config.no_announce or config.is_loopback:
            return  # nobody else can reach it
        self._announcer = Announcer(
            name=config.name or socket.gethostname(),
            port=port,
            tls=True,
            properties={
                "version": _version(),
                "fp": certificate.certificate_sha256,
                "id": certificate.spki_sha256.hex()[:16],
            },
            host=config.host,
        )
        await self._announcer.start()

    async def _withdraw(self) -> None:
        if self._announcer is not None:
            announcer, self._announcer = self._announcer, None
            await announcer.close()

    async def _show(self, certificate: LiveCertificate, port: int) -> None:
        """Announce the certificate that there is, and each one that takes its place."""

        async def renewed() -> None:
            await self._withdraw()
            await self._announce(port, certificate.current)

        try:
            await renewed()
            await certificate.follow(renewed)
        except Exception:  # noqa: BLE001 (who cannot be found is still served)
            _log.exception("gateway.not_announced")


def _admit_channel(request: web.Request) -> None:
    """Admit a channel or a posted message; tasks that serve it inherit who asked."""
    require(request, "infer")
    _asking.set(request[IDENTITY])


def _checked(split: SplitService, tokens: Tokens | None) -> Infer:
    """The split service behind a look at the asker's token: a revoked one ends on open channels too."""
    if tokens is None:
        return split.infer

    async def infer(request: InferRequest, receive_s: float) -> InferResponse:
        tokens.check(_asking.get())
        return await split.infer(request, receive_s)

    return infer


def _held(config: GatewayConfig) -> DataFolder:
    return DataFolder(config.data)


def _tokens(config: GatewayConfig) -> Tokens:
    tokens = Tokens(config.data)
    ensure_admin_token(config.data, tokens)
    tokens.watch()
    return tokens


def _certificate(config: GatewayConfig) -> ServerCertificate:
    if config.tls_cert is not None and config.tls_key is not None:
        return load_certificate(config.tls_cert, config.tls_key)
    return ensure_certificate(config.data)


def _url(config: GatewayConfig, port: int) -> str:
    scheme = "https" if config.speaks_tls else "http"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{port}"


def _version() -> str:
    from hybrid import __version__

    return __version__
