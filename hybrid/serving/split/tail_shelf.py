"""Tails ready to run: graphs prepared per shape key, sessions built once, their times measured.

Design: whatever takes longer than a lookup happens in the background, one job at a time; a request that needs it is
told `Warming` at once, for the device computes the answer itself meanwhile.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from compression.codecs import catalog
from devices.errors import DeviceError
from hybrid.errors import EngineFailed, HybridError, Overloaded, PlanError, Warming
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare
from hybrid.partition.store import keep_newest
from hybrid.serving.engines.background import Background
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.model_facts import ModelFacts, facts_of
from hybrid.serving.engines.opening import open_engine
from hybrid.serving.engines.quiet_timing import (
    TailTimes,
    head_tensors,
    machine_text,
    read_times,
    synthetic_feeds,
    time_session,
    write_record,
)
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.engines.session_cache import Opening

_log = logging.getLogger("hybrid.serving")

FAILURE_KEPT_S: Final = 60.0
"""A preparation that failed is not tried again for so long; who asks meanwhile gets its error."""

MAX_PREPARING: Final = 16
WARMING_RETRY_S: Final = 0.5


class CutTime(msgspec.Struct, frozen=True, kw_only=True):
    """A cut of this side's table; `tail_s` is None where it was not worth timing or could not be timed."""

    id: str
    tail_s: float | None = None


class PreparedReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `POST /v2/hybrid/prepare`.

    Attributes:
        state: `unknown` when the model is not here, `preparing` until everything is timed.
        cuts: every cut of this gateway's table that has a tail.
        whole_s: seconds of the whole model.
        codecs: names of those that this gateway decodes.
        splits: digests of those splits of the model's artifacts whose decoders it holds for these shapes.
    """

    state: Literal["ready", "preparing", "unknown"]
    cuts: list[CutTime] = []
    whole_s: float | None = None
    note: str | None = None
    codecs: tuple[str, ...] = msgspec.field(default_factory=catalog.decodable)
    splits: tuple[str, ...] = ()


@dataclass(slots=True)
class _Shelf:
    """What is known of one (model, shape key)."""

    model: ServedModel
    shape_key: ShapeKey
    prepared: Prepared | None = None
    tails_s: dict[str, float] = field(default_factory=dict)
    whole_s: float | None = None
    is_timed: bool = False
    error: HybridError | None = None
    failed_s: float = 0.0
    task: asyncio.Task[None] | None = None


class TailShelf:
    """The prepared graphs and tails of an executor.

    Args:
        executor: keeps the sessions and owns the background work.
        cache: folder for prepared graphs and measured times.
        max_keys: shape keys kept for one model, in memory and on the disk; the least used ones leave, but none while
            it is being prepared.
    """

    def __init__(self, executor: Executor, cache: Path, *, max_keys: int = 8) -> None:
        self._executor = executor
        self._cache = cache
        self._max_keys = max_keys
        self._work = Background("preparing", n_threads=1)
        self._shelves: OrderedDict[tuple[str, str], _Shelf] = OrderedDict()
        engine = executor.settings.engine
        self._machine = machine_text(engine.n_intra_threads, engine.provider.name, executor.settings.n_threads)

    def tail(self, model: ServedModel, shape_key: ShapeKey, cut_id: str) -> tuple[EngineSession, Cut]:
        """The session of a tail and its cut, from memory.

        Raises:
            Warming: it is being prepared or opened; ask again after `retry_after_s`.
            UnknownCut: not in this gateway's table.
            PlanError: the output cut has no tail.
            HybridError: the preparation failed, or the session could not be opened.
        """
        shelf = self._shelf(model, shape_key)
        prepared = shelf.prepared
        if prepared is None:
            raise _warming("this model and shape are being prepared")
        cut = prepared.table.get(cut_id)
        if cut.kind == "output":
            raise PlanError("the output cut leaves nothing to compute; choose another cut", cut=cut_id)
        if cut.kind == "input" and prepared.table.keeps_state:
            raise PlanError(
                "the model remembers something between runs, all of them the device's; run it there, or cut it deeper",
                cut=cut_id,
            )
        key = (model.model_digest, shape_key.id, cut_id)
        session = self._executor.sessions.get(key)
        if session is None:
            failure = self._executor.sessions.failure(key)
            if failure is not None:
                raise failure
            self._executor.sessions.start(key, lambda: self._look(prepared, cut_id))
            raise _warming(f"the tail of cut {cut_id} is being opened")
        return session, cut

    def reply(self, model: ServedModel, shape_key: ShapeKey) -> PreparedReply:
        """What is ready now; begins what is not.

        Raises:
            HybridError: the preparation failed.
        """
        shelf = self._shelf(model, shape_key)
        if shelf.prepared is None:
            return PreparedReply(state="preparing")
        table = shelf.prepared.table
        cuts = [CutTime(id=cut.id, tail_s=shelf.tails_s.get(cut.id)) for cut in table.cuts if cut.kind != "output"]
        state: Literal["ready", "preparing"] = "ready" if shelf.is_timed else "preparing"
        return PreparedReply(state=state, cuts=cuts, whole_s=shelf.whole_s, note=table.note)

    def known_s(self, model_digest: str, shape_id: str, cut_id: str) -> float | None:
        """Measured seconds of a tail that is ready here; None where it is not, or was not timed."""
        shelf = self._shelves.get((model_digest, shape_id))
        return None if shelf is None else shelf.tails_s.get(cut_id)

    def prepared_of(self, family: tuple[str, ...]) -> Prepared | None:
        """The prepared graph of a (model digest, shape id), None where it is not kept."""
        shelf = self._shelves.get((family[0], family[1]))
        return None if shelf is None else shelf.prepared

    def _shelf(self, model: ServedModel, shape_key: ShapeKey) -> _Shelf:
        key = (model.model_digest, shape_key.id)
        shelf = self._shelves.get(key)
        if shelf is not None and shelf.error is not None:
            if time.monotonic() - shelf.failed_s < FAILURE_KEPT_S:
                raise shelf.error
            shelf = None
        if shelf is None:
            shelf = self._begin(key, _Shelf(model, shape_key))
        self._shelves.move_to_end(key)
        return shelf

    def _begin(self, key: tuple[str, str], shelf: _Shelf) -> _Shelf:
        n_preparing = sum(other.task is not None and not other.task.done() for other in self._shelves.values())
        if n_preparing >= MAX_PREPARING:
            raise Overloaded(f"{n_preparing} models and shapes are being prepared; try again later", retry_after_s=5)
        self._make_room(key)
        self._shelves[key] = shelf
        shelf.task = self._executor.spawn(self._fill(shelf), name=f"prepare-{'/'.join(key)}")
        return shelf

    def _make_room(self, key: tuple[str, str]) -> None:
        """Let the least used shelves of this model go; work in progress is never evicted, for its thread goes on."""
        others = [known for known in self._shelves if known[0] == key[0] and known != key]
        n_surplus = len(others) + 1 - self._max_keys
        if n_surplus <= 0:
            return
        idle = [known for known in others if (task := self._shelves[known].task) is None or task.done()]
        if len(idle) < n_surplus:
            n_preparing = len(others) - len(idle)
            raise Overloaded(f"{n_preparing} shapes of this model are being prepared; try again later", retry_after_s=5)
        for known in idle[:n_surplus]:
            del self._shelves[known]

    async def _fill(self, shelf: _Shelf) -> None:
        model, shape_key = shelf.model, shelf.shape_key
        try:
            shelf.prepared = await self._work.run(
                lambda: prepare(model.path, model.model_digest, shape_key, self._cache)
            )
            await self._work.run(lambda: self._prune(model.model_digest))
            await self._measure(shelf, shelf.prepared)
        except HybridError as exc:
            self._fail(shelf, exc)
        except Exception:  # noqa: BLE001 (a fault of ours must not end the service's task group)
            _log.exception("tails.failed model=%s", model.model_digest[:16])
            self._fail(shelf, EngineFailed("this model and shape could not be prepared; the gateway's log says why"))

    def _fail(self, shelf: _Shelf, error: HybridError) -> None:
        _log.warning("tails.failed model=%s error=%s", shelf.model.model_digest[:16], error)
        if shelf.prepared is None:
            shelf.error, shelf.failed_s = error, time.monotonic()
        shelf.is_timed = True  # what could be timed is; the cuts work all the same

    async def _measure(self, shelf: _Shelf, prepared: Prepared) -> None:
        path = self._times_path(prepared)
        known = await self._work.run(lambda: read_times(path, self._machine))
        if known is not None:
            shelf.whole_s, shelf.tails_s, shelf.is_timed = known.whole_s, dict(known.tails), True
            return
        whole = await self._executor.open_whole(shelf.model)
        feeds = await self._work.run(lambda: synthetic_feeds(whole.inputs, shelf.shape_key))
        pool = self._executor.pool
        shelf.whole_s = await self._work.run(lambda: time_session(whole, feeds, pool))
        for cut_id in prepared.table.pareto:
            cut = prepared.table.get(cut_id)
            if cut.kind == "input":
                shelf.tails_s[cut_id] = shelf.whole_s
            elif cut.kind == "interior":
                await self._measure_tail(shelf, prepared, cut)
        times = TailTimes(machine=self._machine, whole_s=shelf.whole_s, tails=shelf.tails_s)
        await self._work.run(lambda: write_record(path, times))
        shelf.is_timed = True
        _log.info("tails.timed model=%s n_tails=%d", prepared.model_digest[:16], len(shelf.tails_s))

    async def _measure_tail(self, shelf: _Shelf, prepared: Prepared, cut: Cut) -> None:
        key = (prepared.model_digest, prepared.shape_key.id, cut.id)
        names = [spec.name for spec in cut.tensors]
        pool = self._executor.pool
        try:
            whole = await self._executor.open_whole(shelf.model)
            feeds = await self._work.run(lambda: synthetic_feeds(whole.inputs, shelf.shape_key))
            crossing = await self._work.run(lambda: head_tensors(prepared.head_path(cut.id), names, feeds))
            session = await self._executor.sessions.get_or_open(key, lambda: self._look(prepared, cut.id))
            shelf.tails_s[cut.id] = await self._work.run(lambda: time_session(session, crossing, pool))
        except (HybridError, DeviceError) as exc:
            _log.warning("tail.untimed cut=%s error=%s", cut.id, exc)

    def _look(self, prepared: Prepared, cut_id: str) -> Opening:
        path = prepared.tail_path(cut_id)
        facts = facts_of(path)
        return Opening(facts.n_bytes, lambda: self._open(prepared, path, facts))

    def _open(self, prepared: Prepared, path: Path, facts: ModelFacts) -> EngineSession:
        session = open_engine(path, self._executor.settings.engine, facts)
        session.family = (prepared.model_digest, prepared.shape_key.id)
        return session

    def _times_path(self, prepared: Prepared) -> Path:
        return self._cache / "times" / f"{prepared.model_digest[:16]}-{prepared.shape_key.id}.json"

    def _prune(self, model_digest: str) -> None:
        """Remove the prepared folders of this model that were made longest ago, beyond the limit."""
        kept = {shelf.prepared.folder for shelf in list(self._shelves.values()) if shelf.prepared is not None}
        keep_newest(self._cache / model_digest[:16], self._max_keys, kept)


def _warming(text: str) -> Warming:
    return Warming(f"{text}; compute locally and ask again in a moment", retry_after_s=WARMING_RETRY_S)
