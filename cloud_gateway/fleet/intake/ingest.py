"""What boxes bring: checked, stored for good before it is acknowledged, and handed to whom it concerns.

Design: calls that come while a commit runs share the next one, so that a thousand boxes cost a few syncs. Reports are
handed on from the store, in order, at least once: their reader remembers the highest id that it took.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloud_gateway.fleet.intake.blobs import BlobShelf, FleetBlobs
from cloud_gateway.fleet.intake.store import IngestLimits, IngestStore, Stored, remove
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, HybridError, Overloaded, TooLarge, VersionUnsupported
from hybrid.fleet.messages import PROTOCOL, IngestAnswer, IngestCall, Installed, Item

Report = tuple[str, Installed, int, float]
"""Box, report, the item's id (it rises), and when it was made, seconds since 1970 by the gateway's clock."""
OnReports = Callable[[Sequence[Report]], Awaitable[None]]

MOST_WAITING: Final = 256
_GROUP_CALLS: Final = 64
_GROUP_BYTES: Final = 16 << 20
_SUPPORTED_BACK: Final = 2
_AGAIN_S: Final = 5.0
_REPORTS_AT_ONCE: Final = 256
_log = logging.getLogger("hybrid.gateway.ingest")


@dataclass(slots=True)
class _Waiting:
    box_id: str
    call: IngestCall
    n_bytes: int
    answer: asyncio.Future[IngestAnswer]


class Ingest:
    """The gateway's end of all outboxes.

    Attributes:
        store: the database; its methods block.
        on_reports: gets reports once they are stored, in their order; set before `run`.
        on_deferred: is told that deferred requests came.
        on_quota: is told of a box that may leave no more of a kind: box, kind.
    """

    def __init__(
        self,
        folder: Path,
        *,
        blobs: BlobShelf | None = None,
        limits: IngestLimits | None = None,
        wall_s: Callable[[], float] = time.time,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        """Open or make `FOLDER/ingest.db`; blocking.

        Raises:
            DiskFull, StorageError: it cannot be used.
        """
        self.limits = limits or IngestLimits()
        self.store = IngestStore(folder, blobs or FleetBlobs(folder), self.limits, wall_s=wall_s, connect=connect)
        self.on_reports: OnReports | None = None
        self.on_deferred: Callable[[], None] = _ignore
        self.on_quota: Callable[[str, str], None] = _ignore_quota
        self._waiting: list[_Waiting] = []
        self._writing = asyncio.Lock()
        self._reports = asyncio.Event()

    async def ingest(self, box_id: str, call: IngestCall) -> IngestAnswer:
        """Store what a box brought; all that the answer acknowledges is on the disk.

        Raises:
            VersionUnsupported: the box is too old or too new.
            BadMessage, TooLarge: no call that a sound box makes; nothing was stored.
            Overloaded: too many wait for the disk.
            DiskFull, StorageError: nothing was stored.
        """
        n_bytes = self._check(call)
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded("more boxes bring things than the disk takes; come back later", retry_after_s=5.0)
        waiting = _Waiting(box_id, call, n_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            async with self._writing:
                if not waiting.answer.done():
                    await self._store_group()
            return await waiting.answer
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)  # its box left before it was stored

    async def _store_group(self) -> None:
        group: list[_Waiting] = []
        while self._waiting and len(group) < _GROUP_CALLS and sum(one.n_bytes for one in group) < _GROUP_BYTES:
            group.append(self._waiting.pop(0))
        work = asyncio.ensure_future(
            asyncio.to_thread(self.store.store, [(waiting.box_id, waiting.call) for waiting in group])
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))  # the others of the group get their answers
            raise
        except Exception:  # noqa: BLE001, S110 (each of the group gets it below)
            pass
        finally:
            if work.done():
                self._answer(group, work)

    def _answer(self, group: list[_Waiting], work: "asyncio.Future[list[Stored]]") -> None:
        error = work.exception()
        if error is not None and not isinstance(error, HybridError):
            _log.error("ingest.failed", exc_info=error)
            error = HybridError("the gateway failed while it stored; its log says why")
        results: list[Stored | None] = [None] * len(group) if error is not None else [*work.result()]
        for waiting, stored in zip(group, results, strict=True):
            if waiting.answer.done():
                continue
            if stored is None:
                waiting.answer.set_exception(error or HybridError("nothing was stored"))
                waiting.answer.exception()  # seen: its box may have left
                continue
            waiting.answer.set_result(stored.answer)
            self._tell(waiting.box_id, stored)

    def _tell(self, box_id: str, stored: Stored) -> None:
        if "report" in stored.kinds:
            self._reports.set()
        if "deferred" in stored.kinds:
            self.on_deferred()
        for kind in stored.quota:
            _log.warning("ingest.quota box=%s kind=%s", box_id, kind)
            self.on_quota(box_id, kind)
        if stored.answer.stale_epoch:
            _log.warning("ingest.stale_epoch box=%s", box_id)

    def _check(self, call: IngestCall) -> int:
        if not PROTOCOL - _SUPPORTED_BACK <= call.protocol <= PROTOCOL + _SUPPORTED_BACK:
            raise VersionUnsupported(
                f"the box speaks version {call.protocol} of the fleet's calls, this gateway {PROTOCOL}; upgrade one",
                mine=PROTOCOL,
                theirs=call.protocol,
            )
        if not 1 <= len(call.epoch) <= 64 or not call.epoch.isalnum():
            raise BadMessage(f"epoch {call.epoch[:80]!r}: hex digits are wanted")
        n_bytes = sum(len(item.body) for item in call.items)
        if len(call.items) > self.limits.n_call_items or n_bytes > self.limits.n_call_bytes:
            raise TooLarge(
                f"{len(call.items)} items with {n_bytes} bytes: {self.limits.n_call_items} items with"
                f" {self.limits.n_call_bytes} bytes are allowed in one call"
            )
        for item in call.items:
            _check_item(item, call.epoch, self.limits.n_body_bytes)
        return n_bytes

    # Handing on.

    async def run(self) -> None:
        """Hand reports on until cancelled."""
        while True:
            self._reports.clear()
            try:
                more = await self._hand_on()
            except HybridError as exc:
                _log.warning("ingest.reports_wait error=%s", exc)
                await asyncio.sleep(_AGAIN_S)
                continue
            if not more:
                await self._reports.wait()

    async def _hand_on(self) -> bool:
        """Hand on the oldest reports; whether there were any."""
        rows = await asyncio.to_thread(self._oldest_reports)
        if not rows or self.on_reports is None:
            return False
        reports: list[Report] = []
        for item_id, box_id, made_s, body, _ in rows:
            report = _report(body)
            if report is None:
                _log.warning("ingest.no_report box=%s item=%d n_bytes=%d", box_id, item_id, len(body))
            else:
                reports.append((box_id, report, item_id, made_s))
        await self.on_reports(reports)
        await asyncio.to_thread(self._forget_reports, rows)
        return True

    def _oldest_reports(self) -> list[tuple[int, str, float, bytes, int]]:
        with self.store.database.reading() as db:
            rows = db.execute(
                "SELECT id, box, coalesce(made_s, received_s), body, n_bytes FROM item WHERE kind = 'report'"
                " ORDER BY id LIMIT ?",
                (_REPORTS_AT_ONCE,),
            ).fetchall()
        return [(row[0], row[1], row[2], bytes(row[3]), row[4]) for row in rows]

    def _forget_reports(self, rows: list[tuple[int, str, float, bytes, int]]) -> None:
        with self.store.database.writing() as db:
            for item_id, box_id, _, _, n_bytes in rows:
                remove(db, box_id, "report", item_id, n_bytes)

    def close(self) -> None:
        """Close the database."""
        self.store.database.close()


def _check_item(item: Item, epoch: str, n_body_bytes: int) -> None:
    if item.seq < 0 or not 0 <= item.skipped <= item.seq or item.seq >= 1 << 62:
        raise BadMessage(f"stream {item.stream[:80]!r}: seq {item.seq} with {item.skipped} skipped cannot be")
    if not 1 <= len(item.stream) <= 200 or item.stream.partition("/")[0] != item.kind or not item.stream.isprintable():
        raise BadMessage(f"stream {item.stream[:80]!r} of kind {item.kind}: KIND or KIND/SUFFIX is wanted")
    if len(item.body) > n_body_bytes:
        raise TooLarge(f"an item of {len(item.body)} bytes: larger ones than {n_body_bytes} bytes are blobs")
    if item.origin is not None:
        former, seq = item.origin
        if former == epoch or not 1 <= len(former) <= 64 or not 0 <= seq < 1 << 62:
            raise BadMessage(f"origin {former[:80]!r} with {seq} cannot be")
    check_digest(item.digest)
    if item.blob_sha256:
        check_digest(item.blob_sha256)


def _report(body: bytes) -> Installed | None:
    try:
        return msgspec.msgpack.decode(body, type=Installed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _ignore() -> None:
    """Nobody wants to know."""


def _ignore_quota(box_id: str, kind: str) -> None:
    """Nobody wants to know."""
