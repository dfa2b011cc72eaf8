"""Deferred inference: computed here in the background, once in effect; the outcome is kept until its box has it.

Design: an attempt is written down before it begins, so that a request which ends this process does so three times at
most; the outcome is written once, by its key. One request at a time and boxes in turn: it must not slow those who wait.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cloud_gateway.fleet.intake.ingest import Ingest
from cloud_gateway.fleet.intake.store import count, remove
from hybrid.errors import (
    BadMessage,
    DeadlinePassed,
    EngineFailed,
    HybridError,
    Overloaded,
    StorageError,
    Warming,
)
from hybrid.fleet.messages import Outcome, OutcomesAnswer, OutcomesCall
from hybrid.fleet.packed import pack_response, unpack_request
from hybrid.wire.message import InferRequest, InferResponse

Infer = Callable[[InferRequest, float], Awaitable[InferResponse]]

MOST_ATTEMPTS: Final = 3
MOST_WAIT_S: Final = 300.0
MOST_POLLS: Final = 4096
MOST_POLLS_OF_A_BOX: Final = 32
"""One is enough; those of links that broke unnoticed wait beside it for a while."""
ANSWER_BYTES: Final = 4 << 20
_INLINE_BYTES: Final = 256 << 10
_COMPUTE_S: Final = 600.0
_AGAIN_S: Final = 2.0
_LATER: Final = (Overloaded, Warming, StorageError)
_MOST_RECEIVED: Final = 4096
_log = logging.getLogger("hybrid.gateway.outcomes")


@dataclass(frozen=True, slots=True)
class _Deferral:
    item_id: int
    box_id: str
    epoch: str
    stream: str
    seq: int
    n_attempts: int
    blob: str
    body: bytes


class Deferrals:
    """Deferred requests of all boxes.

    Args:
        ingest: stores them as they come.
        infer: computes one; the gateway's own executor.
    """

    def __init__(self, ingest: Ingest, infer: Infer) -> None:
        self._store = ingest.store
        self._infer = infer
        self._came = asyncio.Event()
        self._polls: dict[str, list[asyncio.Event]] = {}
        self._n_polls = 0
        self._turns: Counter[str] = Counter()
        self._is_releasing = False
        ingest.on_deferred = self._came.set

    # Computing.

    async def run(self) -> None:
        """Compute what waits, until cancelled."""
        while True:
            self._came.clear()
            try:
                chosen = await self._next()
                if chosen is None:
                    await self._came.wait()
                elif await self._compute(chosen):
                    self._wake(chosen.box_id)
                else:
                    await asyncio.sleep(_AGAIN_S)
            except HybridError as exc:
                _log.warning("deferred.waits error=%s", exc)
                await asyncio.sleep(_AGAIN_S)

    async def _next(self) -> _Deferral | None:
        work = asyncio.ensure_future(asyncio.to_thread(self._choose))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            if not work.cancelled() and work.exception() is None and (chosen := work.result()) is not None:
                await self._not_begun(chosen)
            raise

    async def _not_begun(self, deferral: _Deferral) -> None:
        """This gateway stops in good order: that is no attempt which ended it."""
        with suppress(HybridError):
            await asyncio.shield(asyncio.to_thread(self._take_back, deferral))

    async def _compute(self, deferral: _Deferral) -> bool:
        """Compute one and keep the outcome; False where it has to wait."""
        content, code, detail = b"", "", ""
        if deferral.n_attempts > MOST_ATTEMPTS:
            code = EngineFailed.code
            detail = f"the gateway ended {MOST_ATTEMPTS} times while it computed this request"
        else:
            try:
                content = await self._answer(deferral)
            except asyncio.CancelledError:
                await self._not_begun(deferral)
                raise
            except _LATER as exc:
                _log.info("deferred.later box=%s seq=%d code=%s", deferral.box_id, deferral.seq, exc.code)
                await asyncio.to_thread(self._take_back, deferral)
                return False
            except HybridError as exc:
                code, detail = exc.code, str(exc)[:500]
        await asyncio.to_thread(self._keep, deferral, content, code, detail)
        return True

    async def _answer(self, deferral: _Deferral) -> bytes:
        body = deferral.body
        if deferral.blob:
            body = await asyncio.to_thread(self._store.blobs.read, deferral.box_id, deferral.blob)
        request = await asyncio.to_thread(unpack_request, body)
        try:
            async with asyncio.timeout(_COMPUTE_S):
                response = await self._infer(request, 0.0)
        except HybridError:
            raise
        except TimeoutError as exc:
            raise DeadlinePassed(f"the gateway did not compute it within {_COMPUTE_S:.0f} s") from exc
        except Exception as exc:
            _log.exception("deferred.failed box=%s seq=%d", deferral.box_id, deferral.seq)
            raise EngineFailed("the gateway failed while it computed; its log says why") from exc
        return await asyncio.to_thread(pack_response, response)

    def _choose(self) -> _Deferral | None:
        """The oldest of the box whose last turn is the longest ago; its attempt is written down."""
        with self._store.database.reading() as db:
            oldest = db.execute("SELECT box, min(item_id) FROM deferral WHERE is_done = 0 GROUP BY box").fetchall()
        if not oldest:
            self._turns.clear()
            return None
        box_id, item_id = min(oldest, key=lambda row: (self._turns[row[0]], row[1]))
        self._turns[box_id] = max(self._turns.values(), default=0) + 1
        with self._store.database.writing() as db:
            db.execute("UPDATE deferral SET n_attempts = n_attempts + 1 WHERE item_id = ?", (item_id,))
            row = db.execute(
                "SELECT deferral.item_id, deferral.box, deferral.epoch, deferral.stream, deferral.seq, n_attempts,"
                " item.blob, item.body FROM deferral JOIN item ON item.id = deferral.item_id WHERE item_id = ?",
                (item_id,),
            ).fetchone()
        return _Deferral(*row)

    def _take_back(self, deferral: _Deferral) -> None:
        with self._store.database.writing() as db:
            db.execute("UPDATE deferral SET n_attempts = n_attempts - 1 WHERE item_id = ?", (deferral.item_id,))

    def _keep(self, deferral: _Deferral, content: bytes, code: str, detail: str) -> None:
        """The outcome in the request's place; the request itself is not needed any more."""
        blob = ""
        if len(content) > _INLINE_BYTES:
            blob = sha256(content).hexdigest()
            self._store.blobs.put(deferral.box_id, blob, content)
        with self._store.database.writing() as db:
            if blob and self._store.blobs.size(deferral.box_id, blob) < 0:  # the same reply was forgotten just now
                self._store.blobs.put(deferral.box_id, blob, content)
            db.execute(
                "UPDATE deferral SET is_done = 1, code = ?, detail = ?, n_bytes = ?, blob = ?, body = ?"
                " WHERE item_id = ? AND is_done = 0",
                (code, detail, len(content), blob, b"" if blob else content, deferral.item_id),
            )
            row = db.execute("SELECT n_bytes FROM item WHERE id = ?", (deferral.item_id,)).fetchone()
            if row is not None:
                remove(db, deferral.box_id, "deferred", deferral.item_id, row[0])
                count(db, deferral.box_id, "deferred", 1, len(content))
        if deferral.blob and deferral.blob != blob:
            self._store.forget_blobs([(deferral.box_id, deferral.blob)])

    # Telling.

    async def outcomes(self, box_id: str, call: OutcomesCall) -> OutcomesAnswer:
        """Outcomes of a box's deferred requests, oldest first; waits for one where there is none.

        Raises:
            Overloaded: too many wait.
            BadMessage, StorageError.
        """
        if not 0 <= call.wait_s <= MOST_WAIT_S or len(call.received) > _MOST_RECEIVED:
            raise BadMessage(f"wait_s {call.wait_s} with {len(call.received)} received: 0 to {MOST_WAIT_S:.0f} s")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + call.wait_s
        if call.received:
            await asyncio.to_thread(self._forget, box_id, call)
        event = asyncio.Event()
        while True:
            event.clear()
            found = await asyncio.to_thread(self._done, box_id, call.epoch)
            if found or loop.time() >= until_s or self._is_releasing:
                return OutcomesAnswer(outcomes=tuple(found))
            if self._n_polls >= MOST_POLLS or len(self._polls.get(box_id, ())) >= MOST_POLLS_OF_A_BOX:
                raise Overloaded("too many boxes wait for outcomes; come back later", retry_after_s=30.0)
            self._polls.setdefault(box_id, []).append(event)
            self._n_polls += 1
            try:
                async with asyncio.timeout_at(until_s):
                    await event.wait()
            except TimeoutError:
                pass
            finally:
                self._n_polls -= 1
                self._polls[box_id].remove(event)
                if not self._polls[box_id]:
                    del self._polls[box_id]

    def release(self) -> None:
        """The gateway stops: let waiting polls go."""
        self._is_releasing = True
        for box_id in self._polls:
            self._wake(box_id)

    def _wake(self, box_id: str) -> None:
        for event in self._polls.get(box_id, ()):
            event.set()

    def _done(self, box_id: str, epoch: str) -> list[Outcome]:
        with self._store.database.reading() as db:
            rows = db.execute(
                "SELECT stream, seq, code, detail, n_bytes, blob, body FROM deferral"
                " WHERE box = ? AND epoch = ? AND is_done = 1 ORDER BY item_id LIMIT 256",
                (box_id, epoch),
            ).fetchall()
        found: list[Outcome] = []
        total_bytes = 0
        for stream, seq, code, detail, n_bytes, blob, body in rows:
            if blob and self._store.blobs.size(box_id, blob) < 0:  # one lost reply must not keep back the others
                lost = "the gateway's disk lost the outcome; send the request again"
                found.append(Outcome(stream=stream, seq=seq, code=StorageError.code, detail=lost))
                continue
            if blob and n_bytes > ANSWER_BYTES:
                found.append(Outcome(stream=stream, seq=seq, blob_sha256=blob, code=code, detail=detail))
                continue
            if found and total_bytes + n_bytes > ANSWER_BYTES:
                break
            total_bytes += n_bytes
            content = self._store.blobs.read(box_id, blob) if blob else bytes(body)
            found.append(Outcome(stream=stream, seq=seq, body=content, code=code, detail=detail))
        return found

    def _forget(self, box_id: str, call: OutcomesCall) -> None:
        unnamed: list[tuple[str, str]] = []
        with self._store.database.writing() as db:
            for stream, seq in call.received:
                row = db.execute(
                    "DELETE FROM deferral WHERE box = ? AND epoch = ? AND stream = ? AND seq = ? AND is_done = 1"
                    " RETURNING n_bytes, blob",
                    (box_id, call.epoch, stream, seq),
                ).fetchone()
                if row is not None:
                    count(db, box_id, "deferred", -1, -row[0])
                    if row[1]:
                        unnamed.append((box_id, row[1]))
        self._store.forget_blobs(unnamed)
