"""Tries a session in batches: whether each row keeps its own result, and whether rows together cost less than alone.

Design: that rows stay apart is proved from the graph (`hybrid/graph/row_proof.py`) before anything is tried; the trial
holds the engine to it, on copies of a real request, rolled and scaled, and on rows of the trial's own at several
magnitudes, whose integers lie within the request's. Batches are held against single runs on all engine threads at once,
since that is what they replace.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Final, Literal

import msgspec
import numpy as np

from hybrid.errors import EngineFailed, HybridError
from hybrid.graph.row_proof import PROOF_VERSION
from hybrid.serving.engines.pool import EnginePool
from hybrid.serving.engines.quiet_timing import wait_for_idle
from hybrid.serving.engines.row_batch import stacked, unstacked
from hybrid.serving.engines.session import EngineSession

BATCHES: Final = (1, 2, 4, 8)
PAYS_RATIO: Final = 0.85
"""A batch pays when a row in it costs at most this share of one alone."""

TOLERANCE: Final = 1e-4
"""Largest difference between a row alone and in a batch, as a share of the output's largest value (DESIGN §4)."""

TRIAL_VERSION: Final = f"{PROOF_VERSION}.1"
"""Raise it when a trial looks at more: verdicts that were kept with another one are not believed."""

_MAGNITUDES: Final = (0.01, 1.0, 30.0)
_N_VARIED: Final = 4
_MIN_ROUNDS: Final = 3
_MAX_ROUNDS: Final = 12
_BUDGET_S: Final = 2.0
_PATIENCE_S: Final = 0.03
"""Trials are made because requests crowd: an idle moment may never come, and the ratio counts, not the seconds."""

_LONG_S: Final = 2.0
_ENOUGH_RATIO: Final = 1.05

Feeds = Mapping[str, np.ndarray]
Outcome = Literal["pays", "costs", "mixes"]


class BatchTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What batches of one session cost on one machine.

    Attributes:
        machine: what the seconds hold for.
        version: of proof and trial, `TRIAL_VERSION` when they were made.
        outcome: `pays`; `costs` where a row is not clearly cheaper in a batch; `mixes` where it cannot run in one.
        reason: in words, for an operator.
        alone_s: seconds a row costs in single runs, with all engine threads at work.
        seconds: of one run, by rows.
        max_rows: the smallest batch that is about as cheap a row as the cheapest; 1 where none pays.
    """

    machine: str
    outcome: Outcome
    reason: str
    version: str = ""
    alone_s: float = 0.0
    seconds: dict[int, float] = {}
    max_rows: int = 1


def read_batch_times(path: Path, machine: str) -> BatchTimes | None:
    """Times that were kept for this machine, or None."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=BatchTimes)
    except (OSError, msgspec.DecodeError):
        return None
    is_whole = bool(found.seconds) and min(found.seconds) >= 1 and found.max_rows <= max(found.seconds)
    if (found.machine, found.version) != (machine, TRIAL_VERSION) or (found.outcome == "pays" and not is_whole):
        return None
    return found


def seeded(feeds: Feeds, seed: int, magnitude: float) -> dict[str, np.ndarray]:
    """Another request of the same shapes, drawn anew; integers and strings from what the request has."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, array in feeds.items():
        if array.dtype.kind == "f":
            found[name] = (magnitude * rng.standard_normal(array.shape)).astype(array.dtype)
        elif array.dtype.kind in "iu" and array.size:
            found[name] = rng.integers(array.min(), array.max(), array.shape, array.dtype, endpoint=True)
        else:
            found[name] = rng.permuted(array) if array.size else array
    return found


def varied(feeds: Feeds, number: int) -> dict[str, np.ndarray]:
    """Another request of the same shapes: values rolled along the last axis, floats also scaled."""
    found: dict[str, np.ndarray] = {}
    for name, array in feeds.items():
        rolled = np.roll(array, number, axis=-1) if array.ndim else array
        if array.dtype.kind == "f":
            rolled = (rolled * np.asarray(1.0 + 0.75 * number, array.dtype)).astype(array.dtype)
        found[name] = np.ascontiguousarray(rolled)
    return found


def rows_differ(single: EngineSession, many: EngineSession, feeds: Feeds, n_rows: int) -> str:
    """Why rows of a batch are not what they are alone; empty where they are.

    Args:
        single: runs one request.
        many: runs any number of rows.
        feeds: one request with `n_rows` rows.
    """
    mine = [varied(feeds, number) for number in range(_N_VARIED)]
    drawn = [seeded(feeds, seed, magnitude) for seed, magnitude in enumerate(_MAGNITUDES)]
    try:
        alone = [(request, single.run(request, many.output_names)) for request in mine]
        return _differ(many, alone, n_rows) or _differ(many, _that_run(single, many, drawn), n_rows)
    except HybridError as exc:
        return str(exc)


def _that_run(
    single: EngineSession, many: EngineSession, requests: Sequence[Feeds]
) -> list[tuple[Feeds, list[np.ndarray]]]:
    """Those that the model takes by themselves, with what it gives: drawn values may be none of its."""
    found = []
    for request in requests:
        try:
            found.append((request, single.run(request, many.output_names)))
        except EngineFailed:
            continue
    return found


def _differ(many: EngineSession, alone: Sequence[tuple[Feeds, list[np.ndarray]]], n_rows: int) -> str:
    if not alone:
        return ""
    batch = stacked([request for request, _ in alone])
    together = unstacked(many.run(batch, many.output_names), [n_rows] * len(alone))
    for (_, mine), theirs in zip(alone, together, strict=True):
        for name, a, b in zip(many.output_names, mine, theirs, strict=True):
            if not outputs_equal(a, b):
                return f"output {name!r} of a row differs between a batch and a run of its own"
    return ""


def time_batches(
    single: EngineSession, many: EngineSession, feeds: Feeds, n_rows: int, pool: EnginePool
) -> tuple[float, dict[int, float]]:
    """Seconds a row costs alone with all threads at work, and seconds of runs by their rows; medians over rounds.

    Every round measures all of them once, so that whatever else the machine does falls on all. Larger batches are left
    out after the first round where two in a row gain nothing, or a run takes long.

    Raises:
        EngineFailed: a run failed.
    """
    requests = {k: stacked([varied(feeds, number) for number in range(k)]) for k in BATCHES}
    sizes = list(BATCHES)
    alone: list[float] = []
    runs: dict[int, list[float]] = {k: [] for k in BATCHES}
    single.run(feeds)
    started_s = time.perf_counter()
    while len(alone) < _MIN_ROUNDS or (len(alone) < _MAX_ROUNDS and time.perf_counter() - started_s < _BUDGET_S):
        alone.append(_alone_s(single, feeds, pool))
        n_useless = 0
        for k in list(sizes):
            if not runs[k]:
                many.run(requests[k])  # the first run of a size takes memory
            runs[k].append(_once_s(many, requests[k], pool))
            n_useless = 0 if runs[k][-1] < PAYS_RATIO * k * alone[-1] else n_useless + 1
            if len(alone) == 1 and (n_useless >= 3 or runs[k][-1] > _LONG_S):
                sizes = sizes[: sizes.index(k) + 1]
                break
    return float(np.median(alone)) / n_rows, {k * n_rows: float(np.median(runs[k])) for k in sizes}


def judged(machine: str, alone_s: float, seconds: Mapping[int, float], *, always: bool = False) -> BatchTimes:
    """The verdict on measured times.

    Args:
        machine: what they hold for.
        alone_s: seconds of a row alone.
        seconds: of runs, by rows.
        always: batch also where it costs; for trials.
    """
    rows_s = {n: run_s / n for n, run_s in seconds.items()}
    best = min(rows_s, key=lambda n: rows_s[n])
    enough = next(n for n in sorted(rows_s) if rows_s[n] <= _ENOUGH_RATIO * rows_s[best])
    ratio = rows_s[best] / alone_s if alone_s else 1.0
    pays = ratio <= PAYS_RATIO and enough > min(rows_s)
    said = f"a row costs {1e3 * alone_s:.3g} ms alone and {1e3 * rows_s[best]:.3g} ms in the best batch ({best} rows)"
    if pays or always:
        max_rows = enough if pays else max(rows_s)
        return BatchTimes(
            machine=machine,
            version=TRIAL_VERSION,
            outcome="pays",
            reason=said,
            alone_s=alone_s,
            seconds=dict(seconds),
            max_rows=max_rows,
        )
    return BatchTimes(
        machine=machine,
        version=TRIAL_VERSION,
        outcome="costs",
        reason=said,
        alone_s=alone_s,
        seconds=dict(seconds),
    )


def outputs_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two runs gave the same: integers exactly, floats within `TOLERANCE` of the largest value."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    finite = a[np.isfinite(a)]
    scale = max(1e-6, float(np.max(np.abs(finite)))) if finite.size else 1.0
    return bool(np.allclose(a, b, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True))


def _once_s(session: EngineSession, feeds: Feeds, pool: EnginePool) -> float:
    wait_for_idle(pool, _PATIENCE_S)
    started_s = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - started_s


def _alone_s(session: EngineSession, feeds: Feeds, pool: EnginePool) -> float:
    """Seconds a single run costs: the less of one by itself, and of as many at once as there are engine threads."""
    one_s = min(_once_s(session, feeds, pool) for _ in range(2))
    if pool.n_threads == 1:
        return one_s
    threads = [Thread(target=_run_often, args=(session, feeds, 2)) for _ in range(pool.n_threads)]
    wait_for_idle(pool, _PATIENCE_S)
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(one_s, (time.perf_counter() - started_s) / (2 * pool.n_threads))


def _run_often(session: EngineSession, feeds: Feeds, n_runs: int) -> None:
    for _ in range(n_runs):
        session.run(feeds)


def rows_of(feeds: Feeds, names: Sequence[str]) -> int:
    """The number of rows that all of these inputs have in front; 0 where they have none in common."""
    found = {feeds[name].shape[0] if feeds[name].ndim else 0 for name in names}
    return found.pop() if len(found) == 1 else 0
