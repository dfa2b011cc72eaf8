"""The agent service: builds its parts, serves, keeps them running, and takes them down in order."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from aiohttp import web

from edge_agent.config import AgentConfig
from edge_agent.fleet_side import FleetSide
from edge_agent.learning.routes import add_personal_route
from edge_agent.living.living import Living
from edge_agent.mending import Mending
from edge_agent.models.elsewhere import relaying
from edge_agent.models.handing_on import add_handing_on
from edge_agent.models.local import LocalModels
from edge_agent.models.onward import Onward
from edge_agent.models.room import ModelRoom, open_room
from edge_agent.outbox.routes import Parts as OutboxCalls
from edge_agent.outbox.routes import add_outbox_routes, deferring
from edge_agent.problem_log import ProblemLog
from edge_agent.reloading import Reloading
from edge_agent.samples.routes import Parts as SampleCalls
from edge_agent.samples.routes import add_sample_routes
from edge_agent.samples.store import Arrays
from edge_agent.status import Standing, add_status_route
from edge_agent.tending import Tending
from edge_agent.timing.bench import TimingBench
from edge_agent.timing.routes import add_timing_routes
from edge_agent.whereabouts import Address, forget_address, note_address
from hybrid.cli.output import event, note
from hybrid.hosting.data_folder import DataFolder
from hybrid.hosting.foundation import listener_settings
from hybrid.hosting.front_door import FrontDoor, require
from hybrid.hosting.listener import Listener
from hybrid.hosting.proof_route import add_proof_route
from hybrid.hosting.renewal import LiveCertificate
from hybrid.hosting.request_meter import RequestMeter
from hybrid.hosting.stop_signal import StopSignal
from hybrid.hosting.systemd import Notifier
from hybrid.schedule.options import Objective, Options
from hybrid.serving.admission import admit_channel, checked
from hybrid.serving.announcement import Announcement
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.departure import drain
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.rest.body import BodyLimits
from hybrid.serving.rest.routes import add_routes as add_inference_routes
from hybrid.serving.rest.service import EXTENSIONS, InferenceService
from hybrid.serving.rest.shared_memory import SharedMemoryRegions
from hybrid.serving.split.channel import add_routes as add_channel_routes
from hybrid.serving.split.decoders import Decoders
from hybrid.serving.split.prepare import add_prepare_route
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import TailShelf

if TYPE_CHECKING:
    from edge_agent.metrics import BoxMetrics

_log = logging.getLogger("hybrid.agent")

N_THREADS: Final = 64
BEGIN_S: Final = 60.0
"""The longest that the ready line waits for installed models to be checked and opened."""


class _Inside(NamedTuple):
    """All that knows nothing of the network."""

    room: ModelRoom
    fleet: FleetSide
    local: LocalModels
    tending: Tending
    standing: Standing
    log: ProblemLog


class Agent:
    """One agent; `serve` runs it from start to end.

    Attributes:
        url: where it serves, known once it does.
    """

    def __init__(
        self,
        config: AgentConfig,
        read_again: Callable[[], AgentConfig] | None = None,
        set_log_level: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make an agent.

        Args:
            config: its settings.
            read_again: reads them again, for SIGHUP; raises `ValueError`.
            set_log_level: changes how much is logged.
        """
        self._config = config
        self._read_again = read_again or (lambda: config)
        self._set_log_level = set_log_level
        self.url = ""

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            Conflict: the port or the data folder is taken.
            StorageError: the data folder, tokens or certificate cannot be used.
        """
        # Runs beside a gateway wait in these threads for their turn; the outbox and the disk must find one free.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(N_THREADS, thread_name_prefix="agent"))
        async with AsyncExitStack() as stack:
            await self._serve(stack)

    async def _serve(self, stack: AsyncExitStack) -> None:
        config = self._config
        stack.enter_context(await asyncio.to_thread(DataFolder, config.data, "agent"))
        stop = stack.enter_context(StopSignal())
        mending = Mending(config)
        tokens = None if config.is_open else await asyncio.to_thread(mending.tokens)
        if tokens is not None:
            stack.callback(tokens.close)
        inside = await self._inside(stack, mending)
        service = self._service(stack, inside)
        calls = OutboxCalls(
            outbox=inside.fleet.outbox,
            deferred=inside.fleet.deferred,
            admit=require,
            bodies=service.bodies,
            may_leave=self._may_leave,
        )
        door = FrontDoor(tokens, RequestMeter())
        answering = inside.room.answering
        defer = deferring(calls, lambda name, _: answering.named(name) is not None or onward.is_reachable)
        relay = relaying(lambda: onward, answering, require, service.limits, service.bodies)
        app = web.Application(middlewares=[door.handle, defer, relay], client_max_size=config.max_body_bytes)
        onward = self._add_inference(app, service, inside)
        stack.push_async_callback(asyncio.to_thread, onward.close)
        channels = add_channel_routes(app, checked(onward.infer, tokens), admit_channel, bodies=service.bodies)
        add_outbox_routes(app, calls)
        add_handing_on(app, answering, require)
        _add_samples(app, inside, service)
        add_status_route(app, inside.standing)
        certificate = LiveCertificate(await asyncio.to_thread(mending.certificate)) if config.speaks_tls else None
        if certificate is not None and tokens is not None:
            add_proof_route(app, tokens, lambda: certificate.current.spki_sha256)
        listener = Listener(app, listener_settings(config))
        _add_metrics(app, door, service, inside.standing, listener)
        await listener.start(config.host, config.port, certificate.context if certificate else None)
        stack.push_async_callback(listener.finish)
        self.url = inside.standing.url = config.url(listener.port)
        self._announce(stack, inside, certificate, listener.port)
        living = self._add_living(inside, certificate)
        async with asyncio.TaskGroup() as group:
            parts = group.create_task(inside.tending.run(), name="parts")
            await _begin(inside, stop)
            inside.standing.is_serving = True
            await self._say_ready(stack, certificate)
            living.ready(inside.standing.summary())
            inside.log.look()
            await stop.first.wait()
            inside.standing.is_serving = False
            await living.stopping()
            await drain(door, listener, channels, stop, config.drain_s)
            await inside.fleet.stop()
            parts.cancel()

    async def _inside(self, stack: AsyncExitStack, mending: Mending) -> _Inside:
        """All that knows nothing of the network."""
        config = self._config
        room = await open_room(stack, config, _options(config))
        fleet = await asyncio.to_thread(FleetSide, config, room, f"hybrid-agent {_version()}")
        room.compute.neighbourhood = fleet.neighbourhood
        local = LocalModels(config.local_models, room.host)
        tending = Tending(fleet.parts, Random())  # noqa: S311 (pauses)
        standing = Standing(
            config.data, room, tending, lambda: (*mending.problems(), *local.problems(), *room.problems())
        )
        standing.gateway = lambda: fleet.gateway_url
        fleet.health, fleet.figures = standing.health, standing.figures
        return _Inside(room, fleet, local, tending, standing, ProblemLog(standing.problems))

    def _announce(self, stack: AsyncExitStack, inside: _Inside, certificate: LiveCertificate | None, port: int) -> None:
        """Let devices nearby find this box."""
        if certificate is None:
            return
        certificate.hears_hangup = False  # the agent hears it, and asks
        announcement = Announcement(self._config, {"version": _version(), "tier": "box"})
        stack.push_async_callback(announcement.withdraw)
        inside.room.executor.spawn(announcement.follow(certificate, port), name="certificate")

    def _add_living(self, inside: _Inside, certificate: LiveCertificate | None) -> Living:
        """What the machine is told of this service, and what it may ask: signs of life, SIGHUP."""
        fleet, tending, standing = inside.fleet, inside.tending, inside.standing

        async def change(config: AgentConfig) -> None:
            self._config = config
            self._set_log_level(config.log_level)
            fleet.reload(config)
            inside.room.compute.change(_options(config))
            await inside.local.change(config.local_models)
            if certificate is not None:
                certificate.ask()

        living = Living(
            Notifier(),
            fleet.guard,
            hangs=standing.hangs,
            summary=standing.summary,
            resumed=fleet.install.resume,
            look=inside.log.look,
        )
        tending.add(living)
        tending.add(Reloading(self._config, self._read_again, change, (living.reloading, living.reloaded)))
        return living

    def _add_inference(self, app: web.Application, service: InferenceService, inside: _Inside) -> Onward:
        """The protocol for any client, and what devices ask for."""
        room = inside.room
        add_inference_routes(app, service)
        shelf = TailShelf(room.executor, self._config.data / "prepared")
        decoders = Decoders(room.executor, room.answering.splits, service.bodies)
        split = SplitService(
            room.executor,
            room.models,
            shelf,
            service.statistics,
            service.bodies,
            compute=room.compute,
            decoders=decoders,
        )
        onward = Onward(split, shelf, room, inside.fleet.neighbourhood, self._may_leave)
        inside.standing.onward = lambda: onward.counts
        add_prepare_route(app, service, onward.prepare)
        add_timing_routes(app, TimingBench(self._config.data, room.compute.on_asked), require)
        return onward

    def _may_leave(self) -> bool:
        return not self._config.keep_inputs_here

    def _service(self, stack: AsyncExitStack, inside: _Inside) -> InferenceService:
        config, room, fleet = self._config, inside.room, inside.fleet

        def offered(model: ServedModel, inputs: Arrays, outputs: Arrays, *, is_hard: bool) -> None:
            version = room.answering.named(model.name)
            if version is not None and version.samples != "off":
                digest, variant = version.model_digest, version.variant
                if room.answering.copy_of(model.model_digest) is not None:
                    outputs = {}  # enough of them say what the personal layers are, and samples may leave
                fleet.samples.offer(model.name, digest, variant, inputs=inputs, outputs=outputs, is_hard=is_hard)

        def served(model: ServedModel, inputs: Arrays, outputs: Arrays, _: float) -> None:
            offered(model, inputs, outputs, is_hard=False)

        room.compute.on_hard = partial(offered, is_hard=True)
        regions = SharedMemoryRegions() if config.allow_shared_memory else None
        if regions is not None:
            stack.callback(regions.close)
        return InferenceService(
            name="hybrid",
            version=_version(),
            models=room.models,
            executor=room.executor,
            require=require,
            is_ready=inside.standing.is_ready,
            limits=BodyLimits(
                max_body_bytes=config.max_body_bytes,
                max_header_bytes=config.max_json_bytes,
                idle_s=config.body_timeout_s,
            ),
            bodies=BodyBudget(config.body_memory_bytes),
            degraded=room.degraded,
            regions=regions,
            extensions=EXTENSIONS if regions is None else (*EXTENSIONS, "system_shared_memory"),
            compute=room.compute,
            served=served,
        )

    async def _say_ready(self, stack: AsyncExitStack, certificate: LiveCertificate | None) -> None:
        config = self._config
        address = Address(
            url=self.url,
            pid=os.getpid(),
            certificate_sha256=certificate.current.certificate_sha256 if certificate is not None else "",
            is_open=config.is_open,
        )
        await asyncio.to_thread(note_address, Path(config.data), address)
        stack.callback(forget_address, Path(config.data))
        event({"ready": self.url}, f"ready {self.url}", json=False)
        if not config.is_open:
            url = config.named_url(int(self.url.rpartition(":")[2]))
            note(f"next: export HYBRID_GATEWAY={url} HYBRID_TOKEN=$(cat {config.data / 'admin.token'})")
        _log.info("agent.ready url=%s data=%s open=%s", self.url, config.data, config.is_open)


async def _begin(inside: _Inside, stop: StopSignal) -> None:
    """Wait until all that can answer does, but not for ever, and not past a request to stop."""
    async with asyncio.TaskGroup() as group:
        begun = [group.create_task(inside.local.begin()), group.create_task(_whole(inside.fleet.install.begun))]
        stopped = group.create_task(stop.first.wait())
        done = group.create_task(asyncio.wait(begun, timeout=BEGIN_S))
        await asyncio.wait([done, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in (*begun, stopped, done):
            task.cancel()


async def _whole(begun: asyncio.Event) -> None:
    await begun.wait()


def _add_samples(app: web.Application, inside: _Inside, service: InferenceService) -> None:
    def digest_of(name: str) -> tuple[str, str] | None:
        version = inside.room.answering.named(name)
        return None if version is None else (version.model_digest, version.variant)

    samples = inside.fleet.samples
    add_personal_route(app, inside.fleet.personal, require)
    add_sample_routes(app, SampleCalls(samples=samples, admit=require, digest_of=digest_of, bodies=service.bodies))


def _add_metrics(
    app: web.Application, door: FrontDoor, service: InferenceService, standing: Standing, listener: Listener
) -> None:
    """`GET /metrics`; what writes it is loaded when it is asked for the first time."""
    made: list[BoxMetrics] = []

    async def metrics(request: web.Request) -> web.Response:
        from edge_agent.metrics import BoxMetrics

        require(request, "read")
        if not made:
            made.append(BoxMetrics(door.meter, service, standing, lambda: listener.n_connections))
        return made[0].response()

    app.router.add_get("/metrics", metrics)


def _options(config: AgentConfig) -> Options:
    return Options(
        objective=cast("Objective", config.objective),
        placement=config.placement,
        raw_input_may_leave=not config.keep_inputs_here,
        max_uplink_bytes_per_s=config.max_uplink_bytes_per_s or None,
    )


def _version() -> str:
    from hybrid import __version__

    return __version__
