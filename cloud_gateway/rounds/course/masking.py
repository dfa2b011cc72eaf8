"""The masked rounds of one campaign: what boxes bring, when a stage closes, and the sum in the end.

Design: `hybrid.federated.secure` decides, this keeps time, disk and waiting calls. One lock: an entry is on the disk
before the next one is looked at, so that nothing is built on what a power cut could take back. Where the disk refuses,
the round in memory is dropped and read again.
"""

import asyncio
import logging
import math
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.course.papers import TaskNames
from cloud_gateway.rounds.kept.masked_rows import ROW_BYTES, MaskedRows
from cloud_gateway.rounds.kept.spool import Spool
from hybrid.errors import CampaignImpossible, Conflict, CorruptContent
from hybrid.federated.messages import SecureAnswer, SecureCall
from hybrid.federated.secure.bounds import MAX_DEVICES
from hybrid.federated.secure.device_list import DeviceList, opened_by_own_root
from hybrid.federated.secure.gateway import MaskedRound
from hybrid.federated.secure.invitation import Invitation
from hybrid.federated.secure.quantized import Sum
from hybrid.federated.secure.ring import packed_size, ring_bits
from hybrid.federated.secure.task import LEAST_DEVICES, SecureTask
from hybrid.federated.secure.unmask import unmasked

MOST_WAIT_S: Final = 60.0
MOST_ATTEMPTS: Final = 8
"""In a row: more wait until the round's time is over and it begins anew."""
MOST_INPUT_BYTES: Final = (8 << 20) - (4 << 10)
"""Of a masked input, which travels in one message."""
RANGE_RATIO: Final = 6.0
"""Largest element over the root mean square of a vector as long as the clip."""
_LEVELS: Final = {"int8": 127, "int4": 7, "float32": 32767}
_log = logging.getLogger("hybrid.gateway.rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds that a stage waits for boxes that have not answered.

    Attributes:
        gather_s: for more boxes, once as many are there as the goal wants.
        input_s: for masked inputs, which may be large.
        stage_s: of every other stage.
    """

    gather_s: float = 2.0
    input_s: float = 300.0
    stage_s: float = 60.0


class Masking:
    """The open masked round of a campaign. Belongs to the event loop; construct it in a thread, it reads.

    Attributes:
        sum: of the round, once there is one.
        trouble: why the last attempt at this step failed; empty where none did.
    """

    def __init__(
        self,
        course: Course,
        spool: Spool,
        names: TaskNames,
        *,
        clock_s: Callable[[], float],
        times: StageTimes = StageTimes(),
    ) -> None:
        """Takes up what the journal holds; blocks.

        Args:
            course: of the campaign.
            spool: rows, files and the writer of rows.
            names: of tasks.
            clock_s: a clock that only runs forward.
            times: of stages.

        Raises:
            BadMessage, Forbidden, CorruptContent: the campaign's roster is no device list.
            CampaignImpossible: an update of this model is too large for a masked round.
        """
        self._course, self._names, self._times, self._clock_s = course, names, times, clock_s
        self._commits = spool.commits
        self._rows = MaskedRows(spool, course.id)
        roster = course.order.cohort.roster
        self._list: DeviceList | None = None if roster is None else opened_by_own_root(roster)
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self.sum: Sum | None = None
        self._since_s = clock_s()
        self._is_ahead = self._is_asked = False
        self._round = self._restored()
        self._last_attempt = self._round.task.attempt + MOST_ATTEMPTS - 1
        self.trouble = ""
        self._check_size()

    @property
    def invitation(self) -> bytes:
        """What a task's `secure` holds."""
        roster = self._course.order.cohort.roster
        task = self._round.task
        if task.step != self._course.row.step:  # the next tick begins the round of this step, with these very bytes
            task = self._task(1)
        return Invitation(task=task, device_list=roster or b"").to_bytes()

    @property
    def live_box_ids(self) -> list[str]:
        """Boxes whose updates are in the sum."""
        return [self._round.roster.box_ids[index] for index in sorted(self._round.live)] if self._round.live else []

    @property
    def came(self) -> str:
        """How many boxes came to the attempt that is open, and how many it needs, in words."""
        masked = self._round
        return f"{len(masked.box_ids)} boxes came together and {masked.task.least_devices} are needed"

    @property
    def has_room(self) -> bool:
        """Whether a box that comes now could take part in the attempt that is open."""
        masked = self._round
        return masked.task.step != self._course.row.step or masked.stage == "advertise"

    @property
    def is_under_way(self) -> bool:
        """Whether boxes are on their way to a sum: the round's own deadline waits for them."""
        is_open = self._round.task.step == self._course.row.step
        return is_open and self._round.stage in {"share", "mask", "consent", "unmask", "done"}

    async def answer(self, box_id: str, call: SecureCall) -> SecureAnswer:
        """Take in what a box brings, and say what it must do next; waits for that as long as the box asks.

        Raises:
            Forbidden, ProtocolError, CorruptContent: what it brought is not taken; it may bring a sound one.
            DiskFull, StorageError: it was not kept; the same again later.
        """
        if self._final(box_id, call) is None and call.content and call.attempt == self._round.task.attempt:
            try:
                await self._take(box_id, call.content)
            except Conflict as exc:
                _log.info("rounds.masked_late campaign=%s box=%s why=%s", self._course.id, box_id, exc)
        until_s = self._clock_s() + (min(max(call.wait_s, 0.0), MOST_WAIT_S) if math.isfinite(call.wait_s) else 0.0)
        while True:
            changed = self._changed
            said = self._final(box_id, call) or self._next(box_id, call.attempt)
            left_s = until_s - self._clock_s()
            if said is not None or left_s <= 0:
                return said or SecureAnswer(state="wait")
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await changed.wait()

    async def tick(self, now_s: float) -> bool:
        """Close what is due; whether there is a sum.

        Raises:
            StorageError: nothing changed; it is tried again.
        """
        async with self._lock:
            await self._caught_up()
            if self._round.task.step != self._course.row.step:
                await self._begin(1)
            if self._round.stage == "done" and self.sum is None:
                await self._add_up()
            elif self._round.stage == "excluded":
                await self._again(self._round.reason)
            elif self._is_due(now_s):
                await self._write(self._round.close())
                self._since_s = now_s
                self._wake()
        return self.sum is not None

    async def begin_anew(self, reason: str = "") -> None:
        """The round begins anew, or its sum must not be used: another attempt, whatever became of those before.

        Keys of boxes that have left meanwhile go with the attempt; who waits brings fresh ones at once.

        Raises:
            StorageError: nothing changed.
        """
        async with self._lock:
            await self._caught_up()
            task = self._round.task
            attempt = task.attempt + 1 if task.step == self._course.row.step else 1
            await self._begin(attempt)
            self._last_attempt, self.trouble = attempt + MOST_ATTEMPTS - 1, reason or self.trouble

    def _final(self, box_id: str, call: SecureCall) -> SecureAnswer | None:
        """What is said to a box that takes no part in this round, or no more; None to one that does."""
        course, step = self._course, self._course.row.step
        if course.has_ended:
            return SecureAnswer(state="excluded", reason="the campaign has ended")
        if self._names.is_right(call.task, course.id, step, box_id, "secure"):
            return None
        if step and self._names.is_right(call.task, course.id, step - 1, box_id, "secure"):
            return SecureAnswer(state="done")
        return SecureAnswer(state="excluded", reason="this box has no such task")

    def _next(self, box_id: str, attempt: int) -> SecureAnswer | None:
        """What a box must do now; None while it waits."""
        masked = self._round
        if self._is_ahead or masked.task.step != self._course.row.step:
            self._is_asked = True  # what is not told now is told once the disk has it
            return None
        if attempt < masked.task.attempt:
            return SecureAnswer(state="go-on", stage="again", content=self.invitation)
        if masked.stage == "advertise":
            return None if box_id in masked.box_ids else SecureAnswer(state="go-on", stage="advertise")
        if masked.stage in {"done", "excluded"}:
            return self._ended(box_id)
        if box_id not in masked.box_ids:
            return SecureAnswer(state="excluded", reason="the round went on without this box")
        content = masked.message_for(box_id) if box_id in masked.waits_for else None
        return None if content is None else SecureAnswer(state="go-on", stage=masked.stage, content=content)

    def _ended(self, box_id: str) -> SecureAnswer | None:
        """What is said once an attempt came to its end; None where another one will begin, or the sum is looked at."""
        masked = self._round
        if masked.stage == "excluded":
            is_last = masked.task.attempt >= self._last_attempt
            return SecureAnswer(state="excluded", reason=masked.reason) if is_last else None
        if self.sum is None:
            return None
        is_in = box_id in self.live_box_ids
        return SecureAnswer(state="done" if is_in else "excluded", reason="" if is_in else "the sum is without it")

    def _is_due(self, now_s: float) -> bool:
        masked, course, waited_s = self._round, self._course, now_s - self._since_s
        if masked.stage == "advertise":
            n_boxes = len(masked.box_ids)
            if n_boxes >= course.order.goal:
                return n_boxes >= min(course.most_at_once, MAX_DEVICES) or waited_s >= self._times.gather_s
            return course.is_over(now_s) and masked.is_enough
        if not masked.waits_for or (masked.stage in {"consent", "unmask"} and masked.is_enough):
            return True
        return waited_s >= (self._times.input_s if masked.stage == "mask" else self._times.stage_s)

    async def _take(self, box_id: str, content: bytes) -> None:
        async with self._lock:
            await self._caught_up()
            step, is_input = self._round.task.step, self._round.stage == "mask"
            n_before = len(self._round.box_ids)
            entry = self._round.take(box_id, content)
            if entry is None:
                return
            row: bytes | None = content if is_input else None
            if is_input and len(content) > ROW_BYTES:
                row = None
                await self._kept(asyncio.to_thread(self._rows.put_file, step, box_id, content))
            await self._write(entry, box_id, row)
            if self._round.stage == "advertise" and n_before < self._course.order.goal == len(self._round.box_ids):
                self._since_s = self._clock_s()

    async def _write(self, entry: bytes, box_id: str = "", content: bytes | None = None) -> None:
        """Bring an entry onto the disk."""
        at = (self._round.task.step, self._round.task.attempt)
        await self._kept(self._commits.write(lambda db: self._rows.put(db, at, entry, box_id, content)))

    async def _kept(self, writing: Awaitable[None]) -> None:
        """Wait for the disk; until it has it, the round in memory is ahead of it, and nobody is told of it."""
        self._is_ahead = True
        await writing
        self._is_ahead = False
        if self._is_asked:
            self._wake()

    async def _caught_up(self) -> None:
        """Where the disk refused something, what it holds counts."""
        if self._is_ahead:
            self._round = await asyncio.to_thread(self._restored)
            self._is_ahead = False
            self._wake()

    async def _add_up(self) -> None:
        masked = self._round
        at = masked.task.step, masked.task.attempt
        try:
            self.sum = await asyncio.to_thread(unmasked, masked, lambda box_id: self._rows.masked_input(*at, box_id))
        except CorruptContent as exc:
            self._course.outcomes["rejected:masked"] += 1
            await self._again(str(exc))
        self._wake()

    async def _again(self, reason: str) -> None:
        """The attempt failed: another one with fresh keys, with whoever has not masked an input yet."""
        self.trouble = reason
        if self._round.task.attempt < self._last_attempt:
            _log.warning(
                "rounds.masked_again campaign=%s attempt=%d why=%s", self._course.id, self._round.task.attempt, reason
            )
            await self._begin(self._round.task.attempt + 1)

    async def _begin(self, attempt: int) -> None:
        """Begin an attempt at the campaign's step; rows and files of steps before it go."""
        step, before = self._course.row.step, self._round.task.step

        def write(db: sqlite3.Connection) -> None:
            self._rows.forget(db, step)
            self._rows.put(db, (step, attempt), b"")

        await self._commits.write(write)
        if before != step:
            await asyncio.to_thread(self._rows.forget_files, before, sorted(self._round.box_ids))
            self._last_attempt, self.trouble = MOST_ATTEMPTS, ""
        self._round, self.sum = MaskedRound(self._task(attempt), listed=self._listed), None
        self._since_s = self._clock_s()
        self._wake()

    def _restored(self) -> MaskedRound:
        attempt, entries = self._rows.journal(self._course.row.step)
        return MaskedRound.restored(self._task(max(1, attempt)), entries, listed=self._listed)

    @property
    def _listed(self) -> frozenset[str] | None:
        return None if self._list is None else self._list.box_ids

    def _task(self, attempt: int) -> SecureTask:
        """The same for the same step and attempt, also after a restart."""
        course = self._course
        order, n_elements = course.order, course.layout.n_elements
        clip = course.row.clip or order.privacy.clip
        return SecureTask(
            campaign=course.id,
            step=course.row.step,
            attempt=attempt,
            model=order.model,
            artifact_digest=course.row.base_digest,
            variant=order.variant,
            layout_digest=course.layout.digest,
            n_elements=n_elements,
            clip_norm=clip,
            element_range=clip * min(1.0, RANGE_RATIO / math.sqrt(n_elements)),
            n_levels=_LEVELS.get(order.coding.up, 127),
            has_clip_bit=order.privacy.is_adaptive,
            least_devices=max(LEAST_DEVICES, order.n_least),
            devices_digest="" if self._list is None else self._list.digest,
        )

    def _check_size(self) -> None:
        task, most = self._task(1), min(self._course.most_at_once, MAX_DEVICES)
        n_bytes = packed_size(task.n_masked, ring_bits(task.n_levels, most))
        if n_bytes > MOST_INPUT_BYTES:
            raise CampaignImpossible(
                f"a masked update of {task.n_elements} elements for sums of {most} boxes has {n_bytes} bytes; "
                f"{MOST_INPUT_BYTES} at most: let fewer tensors learn, or order int4 up"
            )

    def _wake(self) -> None:
        self._is_asked = False
        self._changed.set()
        self._changed = asyncio.Event()
