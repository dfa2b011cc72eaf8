"""Taking an update in: everything that is looked at before it counts, and the row that makes it count."""

import asyncio
import hashlib
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from cloud_gateway.fleet.intake.blobs import BlobShelf
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.course.papers import TaskNames
from cloud_gateway.rounds.kept.commits import Commits
from cloud_gateway.rounds.kept.spool import Spool
from cloud_gateway.rounds.kept.store import Received, ReceivedRow, put_received
from hybrid.errors import BadMessage, Conflict, Overloaded
from hybrid.federated.aggregation.gates import Offer, Rejection
from hybrid.federated.aggregation.rules import norm
from hybrid.federated.messages import UpdateAnswer, UpdateCall

ROW_BYTES: Final = 64 << 10
"""A content up to this size lies in the database, so that one sync keeps it and its row."""
_INLINE_ELEMENTS: Final = 1 << 16
"""Decoding so many takes less than a change of threads."""
_MOST_SAMPLES: Final = 10**9
CLIP_SLACK: Final = 1e-3


class Judged(NamedTuple):
    """What the gates said of an update: its norm, or at which one it failed and why; norms of its parts."""

    norm: float
    gate: str = ""
    reason: str = ""
    norms: Mapping[str, float] = {}


class Taking:
    """Takes updates in for the desk. Belongs to the event loop."""

    def __init__(self, spool: Spool, blobs: BlobShelf, names: TaskNames) -> None:
        self._spool = spool
        self._blobs = blobs
        self._names = names
        self._n_judged = 0

    @property
    def commits(self) -> Commits:
        """What writes rows."""
        return self._spool.commits

    def is_first(self, course: Course, box_id: str, call: UpdateCall) -> bool:
        """Whether this is the one update of a lease that was given."""
        if course.has_ended or call.step not in course.known_steps or box_id in course.writing:
            return False
        is_known = (call.step, box_id) in course.received
        return not is_known and self._names.is_right(call.task, course.id, call.step, box_id, "train")

    async def known(self, course: Course | None, box_id: str, call: UpdateCall) -> UpdateAnswer | None:
        """What was said about this update before.

        Raises:
            Conflict: another content came under the same task.
        """
        row = course.received.get((call.step, box_id)) if course is not None else None
        if row is None and (course is None or call.step not in course.known_steps):
            row = await asyncio.to_thread(self._spool.store.known, call.campaign, call.step, box_id)
        if row is None:
            return None
        if row.body.sha256 != digest_of(call):
            if course is not None:
                course.outcomes["conflict"] += 1
            raise Conflict("another update came for this task before; it stays, and this one does not count")
        if row.outcome == "rejected":
            return UpdateAnswer(state="rejected", gate=row.body.gate, reason=row.body.reason)
        return UpdateAnswer(state="accepted")

    async def take(self, course: Course, box_id: str, call: UpdateCall) -> UpdateAnswer:
        """Judge an update that was not seen before, and keep what became of it.

        Raises:
            NotFound: its content was to be brought before.
            Overloaded: the same box brings the same at this moment.
            DiskFull, StorageError: nothing was kept: the box brings it again.
        """
        if call.step not in course.known_steps or not self._names.is_right(
            call.task, course.id, call.step, box_id, "train"
        ):
            if course.staleness(call.step) > course.order.aggregation.max_staleness:
                course.outcomes["stale"] += 1
                return UpdateAnswer(state="stale", reason=f"the newest step is {course.row.step}")
            course.outcomes["rejected:lease"] += 1
            return UpdateAnswer(state="rejected", gate="lease", reason="this box has no such task")
        if box_id in course.writing:
            raise Overloaded("the same update is being written", retry_after_s=1.0)
        course.writing.add(box_id)
        try:
            return await self._judged(course, box_id, call)
        finally:
            course.writing.discard(box_id)

    async def _judged(self, course: Course, box_id: str, call: UpdateCall) -> UpdateAnswer:
        content = await self._content(box_id, call)
        judged = await self._judge(course, box_id, call, content)
        lease = course.leases.get(box_id)
        privacy = course.order.privacy
        is_uniform = course.order.aggregation.weights == "uniform"
        row = ReceivedRow(
            id=0,
            step=call.step,
            box_id=box_id,
            round=course.round.number,
            outcome="rejected" if judged.gate else "accepted",
            body=Received(
                sha256=hashlib.sha256(content).hexdigest(),
                n_bytes=len(content),
                n_samples=1 if is_uniform else call.n_samples,
                norm=0.0 if privacy.noise > 0 else judged.norm,
                norms=dict(judged.norms),
                staleness=course.staleness(call.step),
                bit=(1 if call.is_below_clip else -1) if privacy.is_adaptive else 0,
                loss_before=0.0 if privacy.noise > 0 else _finite(call.loss_before),
                train_s=_finite(call.train_s),
                n_bytes_down=lease.n_bytes_down if lease is not None else 0,
                gate=judged.gate,
                reason=judged.reason,
            ),
        )
        kept = await self._keep(course, row, content)
        course.note(kept)
        if judged.gate:
            return UpdateAnswer(state="rejected", gate=judged.gate, reason=judged.reason)
        return UpdateAnswer(state="accepted")

    async def _keep(self, course: Course, row: ReceivedRow, content: bytes) -> ReceivedRow:
        """Bring a row onto the disk, with its content where it counts."""
        counts = row.outcome == "accepted"
        if counts and len(content) > ROW_BYTES:
            await asyncio.to_thread(self._spool.put, course.id, row.step, row.box_id, content)
        inline = content if counts and len(content) <= ROW_BYTES else None
        row_id = await self._spool.commits.write(lambda db: put_received(db, course.id, row, inline))
        return ReceivedRow(
            id=row_id, step=row.step, box_id=row.box_id, round=row.round, outcome=row.outcome, body=row.body
        )

    async def _content(self, box_id: str, call: UpdateCall) -> bytes:
        if call.content or not call.n_bytes:
            return call.content
        return await asyncio.to_thread(self._blobs.read, box_id, call.sha256)

    async def _judge(self, course: Course, box_id: str, call: UpdateCall, content: bytes) -> Judged:
        """The gates, cheap ones first."""
        plain = _plain(course, box_id, call, content)
        if plain is not None:
            return plain
        layout = course.update_layout
        try:
            if layout.n_elements > _INLINE_ELEMENTS:
                vector = await asyncio.to_thread(course.up.decode, content, layout)
                length = await asyncio.to_thread(norm, vector)
            else:
                vector = course.up.decode(content, layout)
                length = norm(vector)
        except BadMessage as exc:
            return _rejected(course.gates.refuse("shape", str(exc)))
        return self._gate(course, box_id, call.step, vector, length)

    def _gate(self, course: Course, box_id: str, step: int, vector: np.ndarray, length: float) -> Judged:
        clip = course.clip_at(step)
        if course.order.privacy.noise > 0:  # a gate that looks at others' updates would break the bound
            if not np.isfinite(length):
                return _rejected(course.gates.refuse("finite", "an element is not finite"))
            if length > clip * (1.0 + CLIP_SLACK):
                return _rejected(course.gates.refuse("norm", f"the norm {length:.3g} is over the clip norm {clip:.3g}"))
            return Judged(length)
        self._n_judged += 1
        verdict = course.gates.judge(
            Offer(device=box_id, task=str(self._n_judged), base_version=course.row.step),
            vector,
            course.update_layout,
            versions={course.row.step: 0},
            now_s=0.0,
            base_norm=course.base_norm,
            parts=course.parts,
        )
        return _rejected(verdict) if isinstance(verdict, Rejection) else Judged(length, norms=verdict.norms)


def _plain(course: Course, box_id: str, call: UpdateCall, content: bytes) -> Judged | None:
    """The gates that need no look at the vector; None where they let it through."""
    if len(content) != call.n_bytes or call.sha256 not in ("", hashlib.sha256(content).hexdigest()):
        return Judged(0.0, "shape", f"{len(content)} bytes came that are not the {call.n_bytes} announced")
    if box_id in course.counted:
        return Judged(0.0, "duplicate", "an update of this box counts in this round already")
    if call.form != course.up.name:
        return Judged(0.0, "shape", f"an update of form {call.form[:40]!r} came, {course.up.name} is wanted")
    if not 1 <= call.n_samples <= _MOST_SAMPLES:
        return Judged(0.0, "shape", f"an update of {call.n_samples} samples")
    if call.control:
        wanted = "behind the weights, in the content" if course.order.aggregation.scaffold else "not wanted here"
        return Judged(0.0, "shape", f"{len(call.control)} bytes of a control variate came apart, which are {wanted}")
    if not (math.isfinite(call.loss_before) and math.isfinite(call.loss_after)):
        told = f"a loss of {call.loss_before:g} before training and {call.loss_after:g} after: both are to be finite"
        return Judged(0.0, "finite", told)
    return None


def digest_of(call: UpdateCall) -> str:
    """SHA-256 of an update's content, as it is or as the box says it."""
    return hashlib.sha256(call.content).hexdigest() if call.content else call.sha256


def _rejected(rejection: Rejection) -> Judged:
    return Judged(0.0, rejection.gate, rejection.reason)


def _finite(value: float) -> float:
    return value if np.isfinite(value) and 0.0 <= value < 1e12 else 0.0
