"""The gateway's fleet, whole: its parts built, their routes added, their work run."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client.core import Metric

from cloud_gateway.fleet.admission.admin_routes import add_admin_routes
from cloud_gateway.fleet.admission.authority import authority_key
from cloud_gateway.fleet.admission.desk import FleetDesk
from cloud_gateway.fleet.admission.routes import add_fleet_routes
from cloud_gateway.fleet.admission.store import open_store
from cloud_gateway.fleet.intake.admin_routes import add_item_routes
from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.fleet.intake.ingest import Ingest
from cloud_gateway.fleet.intake.listing import Listing
from cloud_gateway.fleet.intake.outcomes import Deferrals, Infer
from cloud_gateway.fleet.intake.routes import add_ingest_routes
from cloud_gateway.fleet.intake.sweep import Sweep
from cloud_gateway.fleet.steering.metrics import fleet_families
from cloud_gateway.fleet.steering.neighbours import Neighbours, Versions
from cloud_gateway.fleet.steering.routes import add_steering_routes
from cloud_gateway.fleet.steering.steering import Steering
from hybrid.errors import Forbidden, HybridError
from hybrid.hosting.auth import Tokens
from hybrid.hosting.front_door import IDENTITY
from hybrid.hosting.identity import Identity
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.fleet_paths import FLEET

FOLDER: Final = "fleet"
_BEGUN_ANEW: Final = (
    "the database of what boxes brought was damaged: it lies beside as ingest.db.corrupt-TIME; boxes go on from here"
)
RESTORED: Final = (
    "the registry of boxes was damaged and came back from its copy: boxes, tokens and revocations of the last minute "
    "before may be missing; look at them (the damaged file lies beside it)"
)
_AGAIN_S: Final = 5.0
_log = logging.getLogger("hybrid.gateway.fleet")


class Fleet:
    """Everything of a fleet that one gateway holds, in `DATA/fleet`.

    Attributes:
        desk: who the boxes are.
        steering: what they should be, and how they are.
        ingest: what they bring.
        blobs: the same in pieces.
    """

    def __init__(
        self,
        data: Path,
        tokens: Tokens,
        versions: Versions,
        *,
        wall_s: Callable[[], float] = time.time,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        """Opens its files; blocking.

        Args:
            data: the gateway's folder.
            tokens: the gateway's, which know boxes' access tokens from now on.
            versions: the registry of models.
            wall_s: seconds since 1970.
            connect: makes connections to the databases, in place of SQLite on this machine's disk.

        Raises:
            DiskFull, StorageError: they cannot be used.
        """
        folder = data / FOLDER
        self._wall_s = wall_s
        self._running: list[Callable[[], Awaitable[None]]] = []
        self._database, copy, was_restored = open_store(folder, connect)
        try:
            self.desk = FleetDesk(self._database, authority_key(folder), wall_s=wall_s)
            self.steering = self._steering(folder, versions, wall_s, connect)
            self.blobs = FleetBlobs(folder)
            self.ingest = Ingest(folder, blobs=self.blobs, wall_s=wall_s, connect=connect)
        except BaseException:
            self._database.close()
            raise
        tokens.lender = self.desk.access_tokens
        if was_restored:
            self.desk.alarms.raise_alarm("registry_restored", "", RESTORED)
        if connect is None:
            self.desk.changed = copy.changed
            self._running.append(copy.run)
        self._deferrals: Deferrals | None = None
        if self.ingest.store.was_begun_anew:
            self.desk.alarms.raise_alarm("ingest_begun_anew", "", _BEGUN_ANEW)
        self.ingest.on_reports = self.steering.take_reports
        self.ingest.on_quota = self._tell_of_quota
        self._running += [self.ingest.run, Sweep(self.ingest.store, self.blobs).run]

    def _steering(
        self,
        folder: Path,
        versions: Versions,
        wall_s: Callable[[], float],
        connect: Callable[[Path], sqlite3.Connection] | None,
    ) -> Steering:
        """Assignments and rollouts, told of every box that was heard of or changed."""
        around = Neighbours(
            boxes=self.desk.boxes,
            versions=versions,
            raise_alarm=self.desk.alarms.raise_alarm,
            trust=self.desk.trust.newest,
        )
        steering = Steering(folder / "rollouts.db", around, now_s=wall_s, connect=connect)
        self.desk.seen = steering.seen
        self.desk.boxes.on_change(steering.box_changed)
        self._running.append(steering.run)
        return steering

    def add_routes(self, app: web.Application, spki_sha256: Callable[[], bytes]) -> None:
        """Serve the fleet's calls.

        Args:
            app: the gateway's application.
            spki_sha256: of the certificate that is served with now; gives nothing on plain HTTP.
        """
        add_fleet_routes(app, self.desk, spki_sha256)
        add_admin_routes(app, self.desk)

        def note(who: str, what: str, box_id: str, detail: str) -> None:
            self.desk.audit.note(who, what, box_id=box_id, detail=detail)

        add_steering_routes(app, self.steering, check_epoch=self.desk.check_epoch, boxes=self.desk.boxes, note=note)

    def add_ingest(self, app: web.Application, infer: Infer, bodies: BodyBudget) -> None:
        """Serve what boxes bring and fetch.

        Args:
            app: the gateway's application.
            infer: computes deferred requests.
            bodies: memory of all requests.
        """
        self._deferrals = Deferrals(self.ingest, infer)
        add_item_routes(app, Listing(self.ingest.store), lambda text: self.desk.boxes.named(text).id)
        add_ingest_routes(app, self.ingest, self._deferrals, self.blobs, box_of=self.box_of, bodies=bodies)
        self._running.append(self._deferrals.run)

    def _tell_of_quota(self, box_id: str, kind: str) -> None:
        text = f"it brings more {kind} than this gateway keeps for one box; look at them, remove what is done with"
        asyncio.get_running_loop().run_in_executor(None, self._raise_quota, box_id, text)

    def _raise_quota(self, box_id: str, text: str) -> None:
        try:
            self.desk.alarms.raise_alarm("ingest_quota", box_id, text)
        except HybridError as exc:
            _log.warning("fleet.alarm_not_kept kind=ingest_quota box=%s error=%s", box_id, exc)

    def families(self) -> Iterator[Metric]:
        """Its metrics, as they stand now."""
        return fleet_families(self.steering, self.desk.alarms.n_open, self._wall_s())

    def box_of(self, request: web.Request) -> str:
        """The id of the admitted box that sent a request.

        Raises:
            Forbidden: it is no box. NotAdmitted: it was quarantined or revoked meanwhile.
        """
        return self.desk.box(request[IDENTITY]).id

    def box_in_epoch(self, identity: Identity, epoch: str | None) -> str:
        """The id of an admitted box, in the epoch that its call says; None where it says none. Raises as `box_of`."""
        return self.desk.box(identity).id if epoch is None else self.desk.check_epoch(identity, epoch).id

    async def run(self) -> None:
        """Do what goes on beside the calls, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in self._running:
                group.create_task(_kept_going(work))

    async def release(self, within_s: float) -> None:
        """The gateway stops: let waiting calls go, spread over some time."""
        if self._deferrals is not None:
            self._deferrals.release()
        await self.steering.release(within_s)

    def close(self) -> None:
        """Close the files, each whatever the others do."""
        with ExitStack() as parts:
            parts.callback(self._database.close)
            parts.callback(self.ingest.close)
            parts.callback(self.steering.close)


def add_no_fleet(app: web.Application) -> None:
    """Say to whoever asks for a fleet on a gateway without authentication why there is none."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        del request
        raise Forbidden(
            "a gateway with --no-auth has no fleet: it could not tell one box from another",
            advice="Start the gateway without --no-auth.",
        )

    app.router.add_route("*", FLEET + "/{tail:.*}", refuse)


async def _kept_going(work: Callable[[], Awaitable[None]]) -> None:
    """A fault of one part ends neither the others nor inference, nor that part for good."""
    while True:
        try:
            await work()
            return
        except Exception:  # noqa: BLE001 (whatever it is, it is tried again)
            _log.exception("fleet.part_failed")
            await asyncio.sleep(_AGAIN_S)
