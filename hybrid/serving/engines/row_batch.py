"""Rows of several requests in one run: which may share it, how long it takes, and whether waiting for company pays.

Design: everything here was measured on this machine (`batch_trial.py`) before it is used; what was not measured, or
did not pay, has no `RowBatch` and runs alone.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np

from compression.tensor import TensorSpec
from hybrid.errors import EngineFailed

Lane = tuple[object, ...]
"""What makes runs joinable: the outputs wanted and the shapes behind the leading dimension."""


class RowSession(Protocol):
    """A session as batches see it."""

    n_users: int
    n_runs: int

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What goes in, by name."""
        ...

    @property
    def output_names(self) -> list[str]:
        """What comes out."""
        ...

    @property
    def batch(self) -> "RowBatch | None":
        """How its requests share a run."""
        ...

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, options: Any = None
    ) -> list[np.ndarray]:
        """Compute outputs. Raises `EngineFailed`."""
        ...


class RowJob(Protocol):
    """A waiting request as batches see it."""

    @property
    def lane(self) -> Lane | None:
        """What it may run with."""
        ...

    @property
    def outputs(self) -> Sequence[str] | None:
        """What it wants; all when None."""
        ...

    @property
    def session(self) -> RowSession:
        """Where it would run alone."""
        ...


_BUSY_RATIO: Final = 0.7
"""Above this use of the engine, waiting for company keeps the queue short; below, it only delays."""

_GAP_SHARE: Final = 0.1
_USELESS_HOLDS: Final = 8
_TRY_AGAIN: Final = 64


class RowBatch:
    """How requests of one session share a run.

    Attributes:
        session: takes any number of rows; the session itself where its leading dimension is open.
        seconds: measured seconds of one run by its rows, ascending.
        alone_s: seconds a row costs without batches, with all engine threads at work; what a batch must beat.
        max_rows: the largest batch that was measured to pay.
        max_hold_s: the longest wait for company.
        shapes: of each input, where requests of exactly these alone may share a run.
        n_held, n_met: how often a request waited for company, and how often some came.
    """

    __slots__ = (
        "_gap_s", "_last_s", "_n_useless", "alone_s", "max_hold_s", "max_rows", "n_held", "n_met", "seconds", "session",
        "shapes",
    )  # fmt: skip

    def __init__(
        self,
        session: RowSession,
        seconds: Mapping[int, float],
        *,
        alone_s: float,
        max_rows: int,
        max_hold_s: float,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.session = session
        self.shapes = shapes
        self.seconds = dict(sorted(seconds.items()))
        self.alone_s = alone_s
        self.max_rows = max_rows
        self.max_hold_s = max_hold_s
        self.n_held = 0
        self.n_met = 0
        self._n_useless = 0
        self._gap_s = 1.0
        self._last_s = -1.0

    def lane_of(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None) -> tuple[Lane, int] | None:
        """Which runs these feeds may share, and their rows; None where they must run alone."""
        n_rows = 0
        shapes: list[tuple[int, ...]] = []
        for name, spec in self.session.inputs.items():
            shape = feeds[name].shape
            if not shape or shape[0] < 1 or (n_rows and shape[0] != n_rows):
                return None
            if self.shapes is not None and self.shapes[name] != shape:
                return None
            if any(mine not in (None, theirs) for mine, theirs in zip(spec.shape[1:], shape[1:], strict=True)):
                return None
            n_rows = shape[0]
            shapes.append(shape[1:])
        if n_rows >= self.max_rows:
            return None
        return (tuple(shapes), None if outputs is None else tuple(outputs)), n_rows

    def run_s(self, n_rows: int) -> float:
        """Expected seconds of a run with so many rows: linear between measured points, and beyond them."""
        points = list(self.seconds.items())
        for (low, low_s), (high, high_s) in pairwise(points):
            if n_rows <= high:
                return max(0.0, low_s + (high_s - low_s) * (n_rows - low) / (high - low))
        rows, run_s = points[-1]
        return run_s * n_rows / rows

    def came(self, now_s: float) -> None:
        """Note an arrival; their rate decides about waiting."""
        if self._last_s >= 0.0:
            self._gap_s += _GAP_SHARE * (min(now_s - self._last_s, 1.0) - self._gap_s)
        self._last_s = now_s

    def hold_s(self, n_rows: int, n_threads: int) -> float:
        """How long a request should wait for company while a thread is free: 0 unless rows come faster than they go.

        With gap seconds between arrivals, batches of k keep up when seconds(k) / k is below `_BUSY_RATIO` × gap ×
        threads. The smallest such k is awaited, no longer than `max_hold_s`, and not at all after holds in vain.
        """
        room_s = _BUSY_RATIO * self._gap_s * n_threads
        if n_rows >= self.max_rows or self.run_s(n_rows) / n_rows <= room_s:
            return 0.0
        if self._n_useless >= _USELESS_HOLDS:
            self._n_useless += 1
            if self._n_useless % _TRY_AGAIN:
                return 0.0
        wanted = next((k for k, run_s in self.seconds.items() if k > n_rows and run_s / k <= room_s), self.max_rows)
        return min(self.max_hold_s, (wanted - n_rows) * self._gap_s)

    def held(self, *, met: bool) -> None:
        """What a hold brought. After some in vain only every so often one is tried again."""
        self.n_held += 1
        self.n_met += met
        self._n_useless = 0 if met else self._n_useless + 1


class Join:
    """How rows at a shallow cut catch up with those at a deeper one: through the segment between the cuts.

    Attributes:
        segment: takes the shallow cut's tensors, gives the deeper one's.
        shallow: the session of the shallow cut's tail, in batches.
        deeper: the session of the deeper cut's tail; its batch runs the rest of all rows.
    """

    __slots__ = ("_always", "_segment", "deeper", "segment", "shallow")

    def __init__(self, shallow: RowSession, deeper: RowSession, segment: RowBatch, *, always: bool = False) -> None:
        self.shallow = shallow
        self.deeper = deeper
        self.segment = segment.session
        self._segment = segment
        self._always = always

    @property
    def deeper_batch(self) -> RowBatch:
        """How rows at the deeper cut run together. Raises `EngineFailed` when they do no more."""
        batch = self.deeper.batch
        if batch is None:
            raise EngineFailed("the deeper tail left memory; ask again")
        return batch

    def caught_up(self, feeds: Mapping[str, np.ndarray], options: Any) -> dict[str, np.ndarray]:
        """The deeper cut's tensors of these rows: computed by the segment, or handed on where both cuts have them.

        Raises:
            EngineFailed: the segment failed or was terminated.
        """
        names = self.segment.output_names
        computed = dict(zip(names, self.segment.run(feeds, names, options), strict=True))
        return {name: computed[name] if name in computed else feeds[name] for name in self.deeper.inputs}

    def takes(self, shallow: RowJob, deeper: RowJob) -> bool:
        """Whether these two want the same outputs."""
        return (
            shallow.lane is not None
            and deeper.lane is not None
            and (shallow.outputs or shallow.session.output_names) == (deeper.outputs or deeper.session.output_names)
        )

    def segment_s(self, n_rows: int) -> float:
        """Expected seconds for the rows that catch up."""
        return self._segment.run_s(n_rows)

    def run_s(self, n_shallow: int, n_deeper: int) -> float:
        """Expected seconds of both steps."""
        batch = self.deeper.batch
        return 0.0 if batch is None else self.segment_s(n_shallow) + batch.run_s(n_shallow + n_deeper)

    def gain_s(self, n_shallow: int, n_deeper: int) -> float:
        """Engine seconds that the join saves against two batches, negative where it costs; 0 where it cannot be.

        Rows at the deeper cut that find no room do not join.
        """
        mine, theirs = self.shallow.batch, self.deeper.batch
        if mine is None or theirs is None or not n_deeper or n_shallow >= theirs.max_rows:
            return 0.0
        n_deeper = min(n_deeper, theirs.max_rows - n_shallow)
        if self._always:
            return 1.0
        return mine.run_s(n_shallow) + theirs.run_s(n_deeper) - self.run_s(n_shallow, n_deeper)


def stacked(all_feeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The feeds of several requests as one, row after row."""
    return {name: np.concatenate([feeds[name] for feeds in all_feeds]) for name in all_feeds[0]}


def unstacked(outputs: Sequence[np.ndarray], n_rows: Sequence[int]) -> list[list[np.ndarray]]:
    """Each request's rows of the outputs, copied: one slow reader must not keep the whole batch in memory.

    Raises:
        EngineFailed: an output has other rows than went in.
    """
    total = sum(n_rows)
    for array in outputs:
        if not array.shape or array.shape[0] != total:
            raise EngineFailed(f"a batch of {total} rows gave an output of shape {list(array.shape)}")
    found: list[list[np.ndarray]] = []
    start = 0
    for n in n_rows:
        found.append([array[start : start + n].copy() for array in outputs])
        start += n
    return found
