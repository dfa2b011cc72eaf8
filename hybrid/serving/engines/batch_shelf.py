"""Finds out in the background which sessions pay in batches, and lets them.

Design: nothing is tried before requests were seen to wait for one another, since only then a batch could form; each
session is tried once a machine, the verdict is kept beside the tails' times, and an operator can read it. The very
graph that will run batches is proved to keep rows apart, for requests of exactly these shapes, whenever its session is
opened; a kept verdict saves the measuring alone. Batches run in a second session: of the prepared graph, bound and
folded, with its leading dimension opened.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
import numpy as np
import onnx

from devices.tflite_magic import is_lite
from hybrid.errors import HybridError, ModelUnsupported
from hybrid.graph.model_file import load_proto
from hybrid.graph.open_rows import open_rows
from hybrid.graph.row_proof import measured_sizes, prove_rows
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.extract import segment_model
from hybrid.partition.prepared import Prepared, prepare
from hybrid.partition.store import write_whole
from hybrid.serving.engines.background import Background
from hybrid.serving.engines.batch_trial import (
    TRIAL_VERSION,
    BatchTimes,
    judged,
    outputs_equal,
    read_batch_times,
    rows_differ,
    rows_of,
    time_batches,
    varied,
)
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import open_engine
from hybrid.serving.engines.quiet_timing import machine_text, write_record
from hybrid.serving.engines.row_batch import Join, RowBatch, stacked
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.engines.session_cache import Opening, SessionKey

_log = logging.getLogger("hybrid.serving")

T = TypeVar("T")

BatchMode = Literal["auto", "off", "always"]
PreparedOf = Callable[[tuple[str, ...]], Prepared | None]
Feeds = Mapping[str, np.ndarray]

ROWS: Final = "rows"
SEGMENT: Final = "segment"
MAX_VERDICTS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """How requests may share runs.

    Attributes:
        mode: `auto` where it was measured to pay; `off`; `always` wherever rows stay apart, for trials.
        max_hold_s: the longest wait for company; 0 never waits.
    """

    mode: BatchMode = "off"
    max_hold_s: float = 0.002


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one session's batches.

    Attributes:
        key: model digest, and shape id and cut id for a tail.
        state: `trying`, or the trial's outcome.
        joins: cut ids of deeper tails whose rows these catch up with.
    """

    key: tuple[str, ...]
    state: Literal["trying", "pays", "costs", "mixes"]
    reason: str = ""
    max_rows: int = 1
    row_ms: dict[int, float] = {}
    joins: tuple[str, ...] = ()


class BatchShelf:
    """The trials of one executor, and their verdicts.

    Args:
        executor: whose pool tells what waits, and whose sessions are tried.
        prepared_of: the prepared graph of a family (model digest, shape id), where there is one.
        cache: folder of prepared graphs and of kept verdicts.
        settings: how requests may share runs.

    Attributes:
        verdicts: by session key.
    """

    def __init__(self, executor: Executor, prepared_of: PreparedOf, cache: Path, settings: BatchSettings) -> None:
        self.verdicts: dict[SessionKey, Verdict] = {}
        self.settings = settings
        self._executor = executor
        self._prepared_of = prepared_of
        self._cache = cache
        self._work = Background("batch-trial", n_threads=1)
        self._tried_joins: set[tuple[SessionKey, SessionKey]] = set()
        self._loop = asyncio.get_running_loop()
        engine = executor.settings.engine
        self._machine = machine_text(engine.n_intra_threads, engine.provider.name, executor.pool.n_threads)
        if settings.mode != "off":
            executor.pool.on_crowd = self._crowded

    def of_model(self, model_digest: str) -> list[Verdict]:
        """What is known of a model and its tails."""
        return [verdict for key, verdict in self.verdicts.items() if key[0] == model_digest]

    def _crowded(self, session: EngineSession, neighbour: EngineSession | None, feeds: Feeds) -> None:
        """On an engine thread: take a copy of one request's tensors and look into it on the loop."""
        kept = {name: array.copy() for name, array in feeds.items()}
        try:
            self._loop.call_soon_threadsafe(self._consider, session, neighbour, kept)
        except RuntimeError:  # the loop is closed
            return

    def _consider(self, session: EngineSession, neighbour: EngineSession | None, feeds: Feeds) -> None:
        keys = {known: key for key, known in self._executor.sessions.sessions()}
        key = keys.get(session)
        if key is None or (key in self.verdicts and self.verdicts[key].state == "trying"):
            return
        if neighbour is not None:
            deeper = keys.get(neighbour)
            if deeper is not None and len(key) > 2 and len(deeper) > 2:
                self._executor.spawn(self._try_join(key, session, deeper, neighbour, feeds), name="batch-join")
        if session.batch is None and not self._is_settled(key):
            self._note(Verdict(key=key, state="trying", reason="being measured"))
            self._executor.spawn(self._try(key, session, feeds), name="batch-trial")

    def _is_settled(self, key: SessionKey) -> bool:
        verdict = self.verdicts.get(key)
        return verdict is not None and verdict.state in ("costs", "mixes")

    def _note(self, verdict: Verdict) -> None:
        self.verdicts[verdict.key] = verdict
        while len(self.verdicts) > MAX_VERDICTS:
            del self.verdicts[next(iter(self.verdicts))]
        _log.info("batch.%s key=%s reason=%s", verdict.state, "/".join(verdict.key), verdict.reason)

    # -- a session in batches ---------------------------------------------------------------------------------------

    async def _try(self, key: SessionKey, session: EngineSession, feeds: Feeds) -> None:
        try:
            times, batch = await self._tried(key, session, feeds)
        except HybridError as exc:
            self._note(Verdict(key=key, state="mixes", reason=str(exc)))
            return
        except Exception:  # noqa: BLE001 (a fault of ours must not end the service's task group)
            _log.exception("batch.failed key=%s", "/".join(key))
            self._note(Verdict(key=key, state="mixes", reason="the trial failed; the gateway's log says why"))
            return
        session.batch = batch
        row_ms = {n: round(1e3 * run_s / n, 4) for n, run_s in times.seconds.items()}
        row_ms[0] = round(1e3 * times.alone_s, 4)
        self._note(Verdict(key=key, state=times.outcome, reason=times.reason, max_rows=times.max_rows, row_ms=row_ms))

    async def _tried(self, key: SessionKey, session: EngineSession, feeds: Feeds) -> tuple[BatchTimes, RowBatch | None]:
        n_rows = rows_of(feeds, list(session.inputs))
        if not n_rows:
            raise ModelUnsupported("its inputs have no common number of rows in front")
        path = self._path(key, ShapeKey.of(feeds).id)
        times = await self._work.run(lambda: read_batch_times(path, self._machine))
        if times is not None and times.outcome != "pays" and self.settings.mode == "auto":
            return times, None
        many = await self._many(key, session, feeds)
        try:
            reason = await self._work.run(lambda: rows_differ(session, many, feeds, n_rows))
            if reason:
                times = BatchTimes(machine=self._machine, version=TRIAL_VERSION, outcome="mixes", reason=reason)
            elif times is None or self.settings.mode == "always":
                pool = self._executor.pool
                alone_s, seconds = await self._work.run(lambda: time_batches(session, many, feeds, n_rows, pool))
                times = judged(self._machine, alone_s, seconds, always=self.settings.mode == "always")
        finally:
            if (times is None or times.outcome != "pays") and many is not session:
                self._executor.sessions.drop_key(_rows_key(key, feeds))
        kept = times
        if self.settings.mode == "auto":
            await self._work.run(lambda: write_record(path, kept))
        return kept, self._batch(many, kept, feeds) if kept.outcome == "pays" else None

    def _batch(self, many: EngineSession, times: BatchTimes, feeds: Feeds) -> RowBatch:
        return RowBatch(
            many,
            times.seconds,
            alone_s=times.alone_s,
            max_rows=times.max_rows,
            max_hold_s=self.settings.max_hold_s,
            shapes={name: array.shape for name, array in feeds.items()},
        )

    async def _many(self, key: SessionKey, session: EngineSession, feeds: Feeds) -> EngineSession:
        """A session like this one for any number of rows, of a graph that is proved to keep them apart.

        Raises:
            ModelUnsupported: no proof.
        """
        if self._executor.settings.engine.provider.name == "torch":
            raise ModelUnsupported("torch runs a conversion of the graph, and rows are proved apart in the graph alone")
        if is_lite(session.path):
            raise ModelUnsupported(
                "rows are proved apart in ONNX graphs alone; a TensorFlow Lite model runs one by one"
            )
        prepared = await self._prepared(key, session, feeds)
        source = session.path if session.family is not None else prepared.graph_path
        target = source.with_name(f"{ROWS}-{source.name}")
        return await self._executor.sessions.get_or_open(
            _rows_key(key, feeds), lambda: self._look(load_proto(source), target, feeds)
        )

    async def _prepared(self, key: SessionKey, session: EngineSession, feeds: Feeds) -> Prepared:
        if session.family is not None:
            found = self._prepared_of(session.family)
            if found is None:
                raise ModelUnsupported("its prepared graph has left; it comes back with the next preparation")
            return found
        shape_key = ShapeKey.of(feeds)
        return await self._work.run(lambda: prepare(session.path, key[0], shape_key, self._cache))

    def _look(self, bound: onnx.ModelProto, target: Path, feeds: Feeds) -> Opening:
        """Open the graph's rows, and write it down once they are proved to stay apart."""
        opened = open_rows(bound, measured_sizes(bound, target.parent, feeds))
        prove_rows(opened, target.parent, feeds)
        data = opened.SerializeToString(deterministic=True)
        if not target.exists() or target.read_bytes() != data:
            write_whole(target, data)
        facts = facts_of(target)
        return Opening(facts.n_bytes, lambda: open_engine(target, self._executor.settings.engine, facts))

    def _path(self, key: SessionKey, shape_id: str) -> Path:
        name = "-".join((key[0][:16], key[1] if len(key) > 1 else shape_id, key[2] if len(key) > 2 else "whole"))
        return self._cache / "batches" / f"{name}.json"

    # -- rows of a shallow cut that catch up with those of a deeper one ---------------------------------------------

    async def _try_join(
        self, key: SessionKey, shallow: EngineSession, deeper_key: SessionKey, deeper: EngineSession, feeds: Feeds
    ) -> None:
        try:
            pair = (key, deeper_key)
            if pair in self._tried_joins or shallow.batch is None or deeper.batch is None or shallow.family is None:
                return
            prepared = await self._prepared(key, shallow, feeds)
            ids = [cut.id for cut in prepared.table.cuts]
            if ids.index(key[2]) > ids.index(deeper_key[2]):
                return  # it is seen from the other side too
            self._tried_joins.add(pair)
            join = await self._tried_join(key, shallow, deeper_key, deeper, feeds)
        except HybridError as exc:
            _log.info("batch.no_join key=%s deeper=%s reason=%s", "/".join(key), deeper_key[-1], exc)
            return
        except Exception:  # noqa: BLE001 (a fault of ours must not end the service's task group)
            _log.exception("batch.failed key=%s", "/".join(key))
            return
        # One shallow and one deeper request are the least that could meet; the queue looks at the real numbers.
        n_most = max(2, deeper.batch.max_rows // 2)
        if self.settings.mode == "always" or join.gain_s(n_most, n_most) > 0:
            shallow.joins[deeper] = join
            verdict = self.verdicts.get(key)
            if verdict is not None:
                self._note(msgspec.structs.replace(verdict, joins=(*verdict.joins, deeper_key[-1])))

    async def _tried_join(
        self, key: SessionKey, shallow: EngineSession, deeper_key: SessionKey, deeper: EngineSession, feeds: Feeds
    ) -> Join:
        prepared = await self._prepared(key, shallow, feeds)
        cuts = prepared.table.get(key[2]), prepared.table.get(deeper_key[2])
        source = prepared.folder / f"{SEGMENT}-{key[2]}-{deeper_key[2]}.onnx"

        def look() -> Opening:
            return self._look(segment_model(load_proto(prepared.graph_path), *cuts), source, feeds)

        segment = await self._executor.sessions.get_or_open((*key, SEGMENT, deeper_key[2]), look)
        n_rows = rows_of(feeds, list(shallow.inputs))
        pool = self._executor.pool
        _, seconds = await self._work.run(lambda: time_batches(segment, segment, feeds, n_rows, pool))
        join = Join(
            shallow,
            deeper,
            RowBatch(segment, seconds, alone_s=0.0, max_rows=max(seconds), max_hold_s=0.0),
            always=self.settings.mode == "always",
        )
        await self._work.run(lambda: _check_join(join, feeds))
        return join


def _rows_key(key: SessionKey, feeds: Feeds) -> SessionKey:
    """What the session for any number of rows is kept by: its proof holds for these shapes alone."""
    return (*key, ROWS, ShapeKey.of(feeds).id)


def _check_join(join: Join, feeds: Feeds) -> None:
    """See that the segment and the deeper tail give what the shallow tail gives."""
    requests = [varied(feeds, number) for number in range(2)]
    together = stacked(requests)
    batch = join.shallow.batch
    assert batch is not None
    wanted = batch.session.run(together)
    found = join.deeper_batch.session.run(join.caught_up(together, None), batch.session.output_names)
    if not all(map(outputs_equal, wanted, found)):
        raise ModelUnsupported("a row through the segment differs from the shallow tail's")
