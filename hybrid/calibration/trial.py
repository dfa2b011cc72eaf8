"""Measures what each codec at each cut costs: head, encoding, decoding and tail, on every sample.

Design: one cut after the other, so that one head and one tail are in memory; within a cut all codecs see the same
samples, so that a budget that ends early leaves fewer samples and no codec that was measured on others.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log10
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime

from compression.codecs import catalog
from devices.onnx_engine import open_session
from devices.tflite_magic import is_lite
from hybrid.artifact.splits import SplitFiles
from hybrid.calibration.judge import Answers, Judge, Tally
from hybrid.calibration.record import Cell
from hybrid.calibration.split_trial import Passed, SplitRun, opened_split
from hybrid.partition.crossing import crossed, fed
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.wire.split_coding import carried

Feeds = dict[str, np.ndarray]
INPUT_CUT: Final = ""
"""How the input cut is named in a calibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told how far it is: `total` steps once known, each `stage` by its name, each step as it is done.

    `reached` is told at the end how many cuts there are, how many of them were tried on all samples, and how many of
    these before. `now_s` is the clock to which the budget is held.
    """

    total: Callable[[int], None] = lambda _n: None
    stage: Callable[[str], None] = lambda _name: None
    stepped: Callable[[], None] = lambda: None
    reached: Callable[[int, int, int], None] = lambda _n, _whole, _known: None
    now_s: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is measured.

    Attributes:
        prepared: the model bound to the samples' shape key.
        samples: requests.
        judge: has learned the uncompressed model's answer to each sample.
        codecs: names of the codecs.
        splits: of the model's artifact, for these shapes.
    """

    prepared: Prepared
    samples: Sequence[Feeds]
    judge: Judge
    codecs: Sequence[str]
    splits: Sequence[SplitFiles] = ()


@dataclass(slots=True)
class _Measured:
    """What one codec at one cut has shown so far; `split` is what makes it, where one does."""

    codec: str
    is_lossy: bool
    tally: Tally
    raw_bytes: list[int] = field(default_factory=list)
    n_bytes: list[int] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    signal: float = 0.0
    noise: float = 0.0
    is_carried: bool = False
    split: SplitRun | None = None

    def compare(self, exact: np.ndarray, arrived: np.ndarray) -> None:
        """Takes in how far a tensor is from the uncompressed one."""
        if exact.dtype.kind == "f":
            wide = exact.astype(np.float64)
            self.signal += float(np.square(wide, where=np.isfinite(wide), out=np.zeros_like(wide)).sum())
            gap = np.nan_to_num(wide - arrived, nan=0.0, posinf=0.0, neginf=0.0)
            self.noise += float(np.square(gap).sum())

    def cell(self, cut: str) -> Cell:
        low, high = self.tally.interval if self.is_lossy else (0.0, 0.0)
        drop = self.tally.drop
        return Cell(
            cut=cut,
            codec=self.codec,
            is_lossy=self.is_lossy,
            n=self.tally.n,
            drop=drop,
            drop_low=min(low, drop),
            drop_high=max(high, drop),
            raw_bytes=float(np.mean(self.raw_bytes)),
            n_bytes=float(np.mean(self.n_bytes)),
            encode_s=median(self.encode_s),
            decode_s=median(self.decode_s),
            sqnr_db=10 * log10(self.signal / self.noise) if self.noise and self.signal else None,
            split=self.split.split.digest if self.split is not None else "",
        )


def cuts_of(prepared: Prepared, splits: Sequence[SplitFiles] = ()) -> list[Cut]:
    """The input cut, then the interior Pareto cuts, those with few bytes and a light head first, then those of splits.

    Raises:
        UnknownCut: a split's that this model does not have.
    """
    usual = [prepared.table.cuts[0], *prepared.table.promising]
    known = {cut.id for cut in usual}
    return [*usual, *(prepared.table.get(name) for name in dict.fromkeys(s.cut for s in splits) if name not in known)]


def cell_name(cut: Cut) -> str:
    """How a cut is named in a calibration."""
    return INPUT_CUT if cut.kind == "input" else cut.id


def try_cuts(
    trial: Trial,
    cuts: Sequence[Cut],
    budget_s: float,
    *,
    watch: Watch,
    whole: Callable[[Cut, list[Cell]], None] = lambda _cut, _cells: None,
) -> list[Cell]:
    """The cells of these cuts; a cut that the budget does not reach has none.

    Args:
        trial: what is measured.
        cuts: the most important first.
        budget_s: seconds in all; each cut gets an even share of what is left.
        watch: who is told how far it is.
        whole: told the cells of each cut that was tried on all samples.

    Raises:
        DeviceError: the engine refuses a head or a tail.
        Exception: whatever the engine raises for a sample.
    """
    until_s = watch.now_s() + budget_s
    cells: list[Cell] = []
    for index, cut in enumerate(cuts):
        left_s = until_s - watch.now_s()
        if left_s <= 0:
            break
        watch.stage(f"cut {cell_name(cut) or 'input'}")
        found, is_whole = _try_cut(trial, cut, left_s / (len(cuts) - index), watch)
        cells += found
        if is_whole:
            whole(cut, found)
    return cells


def _try_cut(trial: Trial, cut: Cut, share_s: float, watch: Watch) -> tuple[list[Cell], bool]:
    """The cells of a cut, and whether all samples were tried."""
    until_s = watch.now_s() + share_s
    prepared, judge = trial.prepared, trial.judge
    head = None if cut.kind == "input" else opened(prepared.head_path(cut.id))
    tail = opened(prepared.tail_path(cut.id))
    measured = [_Measured(name, catalog.get(name).lossy, Tally(judge.metric)) for name in trial.codecs]
    for split in [split for split in trial.splits if split.cut == cut.id]:
        run = opened_split(split, cut, opened)
        measured.append(_Measured(split.codec, True, Tally(judge.metric), is_carried=True, split=run))
    n_tried = 0
    for index, feeds in enumerate(trial.samples):
        if index and watch.now_s() >= until_s:
            break
        crossing, kept = crossed(head, cut, feeds)
        before = judge.before(index)
        judged = [(crossing, before)]  # what arrived exactly so before needs no tail: q8 with and without entropy stage
        for entry in measured:
            if entry.split is not None:
                passed = _passed(entry, entry.split, feeds, crossing, kept)
                after = judge.after(index, _answers(tail, cut, passed.arrived, passed.kept))
                entry.tally.count(before=before, after=after)
                continue
            decoded = _carried(entry, crossing)
            known = next((right for arrived, right in judged if _is_same(decoded, arrived)), None)
            after = judge.after(index, _answers(tail, cut, decoded, kept)) if known is None else known
            if known is None:
                judged.append((decoded, after))
            entry.tally.count(before=before, after=after)
        n_tried += 1
        watch.stepped()
    cells = [entry.cell(cell_name(cut)) for entry in measured if entry.is_carried]
    return cells, n_tried == len(trial.samples)


def opened(path: Path) -> Any:
    """A model as calibrations run it: on the processor, its warnings unheard.

    Raises:
        DeviceError: the engine refuses it.
    """
    if is_lite(path):
        from hybrid.federated.learning.lite_session import open_lite

        session: Any = open_lite(path)
        return session
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return open_session(path, options, ["CPUExecutionProvider"])


def _answers(tail: onnxruntime.InferenceSession, cut: Cut, crossing: Feeds, kept: Feeds) -> Answers:
    names = list(cut.tail_outputs)
    return dict(zip(names, tail.run(names, fed(tail, crossing)), strict=True)) | kept


def _carried(entry: _Measured, crossing: Feeds) -> Feeds:
    """What arrives by this codec; a tensor that it cannot carry goes raw, as it does in a session."""
    decoded: Feeds = {}
    n_bytes = raw_bytes = 0
    encode_s = decode_s = 0.0
    for name, array in crossing.items():
        started_s = time.perf_counter()
        tensor, is_carried = carried(name, array, entry.codec)
        encoded_s = time.perf_counter()
        found = tensor.to_array()
        decode_s += time.perf_counter() - encoded_s
        encode_s += encoded_s - started_s
        decoded[name] = found if is_carried else array
        n_bytes += len(tensor.payload)
        raw_bytes += array.nbytes
        entry.is_carried |= is_carried
        entry.compare(array, found)
    entry.encode_s.append(encode_s)
    entry.decode_s.append(decode_s)
    entry.n_bytes.append(n_bytes)
    entry.raw_bytes.append(raw_bytes)
    return decoded


def _passed(entry: _Measured, run: SplitRun, feeds: Feeds, crossing: Feeds, kept: Feeds) -> Passed:
    """What comes through a split, its cost and its distance from what the cut's own head gives taken in."""
    passed = run.passed(feeds, crossing, kept)
    for name, array in crossing.items():
        entry.compare(array, passed.arrived[name])
    entry.encode_s.append(passed.encode_s)
    entry.decode_s.append(passed.decode_s)
    entry.n_bytes.append(passed.n_bytes)
    entry.raw_bytes.append(sum(array.nbytes for array in crossing.values()))
    return passed


def _is_same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> bool:
    return all(
        array.dtype == found[name].dtype and np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")
        for name, array in wanted.items()
    )
