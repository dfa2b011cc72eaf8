"""The gateway's evaluation set: taken in bounded and checked, its features computed once, heads held against it."""

import hashlib
import io
import time
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from cloud_gateway.rounds.messages import EvaluationSet
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, CorruptContent, EngineFailed, NotFound, TensorMismatch
from hybrid.federated.learning.body import Body
from hybrid.federated.learning.evaluation import right_of
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import Head
from hybrid.federated.learning.program import HeadProgram
from hybrid.federated.learning.whole_file import EngineAnswers

MOST_BYTES: Final = 256 << 20
_MOST_UNPACKED: Final = 1 << 30
_MOST_ARRAYS: Final = 64
LABELS: Final = "labels"
UNNAMED_S: Final = 86_400.0
_ROWS: Final = 64
_HELD: Final = 8


class EvaluationSets:
    """Sets as they were uploaded, below one folder; every method blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, content: bytes) -> EvaluationSet:
        """Keep a set.

        Raises:
            BadMessage: it is no such file.
            DiskFull, StorageError: it is not kept.
        """
        arrays = _arrays(content)
        sha256 = hashlib.sha256(content).hexdigest()
        write_atomically(self._folder / f"{sha256}.npz", content)
        return _told(sha256, arrays)

    def sweep(self, named: set[str]) -> None:
        """Remove sets that came more than a day ago and that no campaign names."""
        before_s = time.time() - UNNAMED_S
        for path in self._folder.glob("*.npz"):
            with suppress(OSError):
                if path.stem not in named and path.stat().st_mtime < before_s:
                    path.unlink()

    def read(self, sha256: str) -> dict[str, np.ndarray]:
        """Its arrays.

        Raises:
            NotFound: no such set. CorruptContent: the disk has damaged it.
        """
        try:
            content = (self._folder / f"{check_digest(sha256)}.npz").read_bytes()
        except FileNotFoundError as exc:
            raise NotFound(f"no evaluation set {sha256[:16]}… here; upload it first") from exc
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CorruptContent(f"the disk has damaged the evaluation set {sha256[:16]}…; upload it again")
        return _arrays(content)


class Judge:
    """What answers are right, for one campaign: a head's program over features that were computed once.

    Of a model whose program needs torch the engine answers: a gateway needs none.
    """

    def __init__(self, head: Head, examples: Examples) -> None:
        self._program: HeadProgram = head.program
        self._arrays = dict(head.arrays)
        self._layout = head.layout
        self._examples = examples
        self._engine = EngineAnswers(head) if head.program.by_torch else None

    def right(self, learned: dict[str, np.ndarray]) -> np.ndarray:
        """For each sample whether the head answers it right, bool (n,); what was not learned is the base's."""
        if self._engine is not None:
            return self._engine.right(self._arrays | learned, self._examples)
        return right_of(self._program, self._arrays | learned, self._examples)

    def accuracy(self, learned: dict[str, np.ndarray]) -> float:
        """Share of right answers."""
        return float(self.right(learned).mean())


def judge_of(head: Head, arrays: dict[str, np.ndarray]) -> Judge:
    """The judge of a head on a set; computes the features.

    Raises:
        BadMessage: the set does not fit the model.
        TensorMismatch, EngineFailed, ModelUntrainable: the engine does not make features of it.
    """
    labels = arrays[LABELS]
    inputs = {name: array for name, array in arrays.items() if name != LABELS}
    body = Body(head)
    n_samples = len(labels)
    found = features_of(body, inputs)
    if len(found) != n_samples:
        raise BadMessage(f"{n_samples} labels for {len(found)} rows of features: one label a sample is wanted")
    n_bad = int(np.count_nonzero(~np.isfinite(found.reshape(n_samples, -1)).all(axis=1)))
    if n_bad:
        raise BadMessage(
            f"{n_bad} of {n_samples} samples have features that are no finite numbers; mend or remove them"
        )
    targets = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels.astype(np.float32)
    return Judge(head, Examples(found, targets))


def features_of(body: Body, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Of all samples, at least one, some at a time; raises as `judge_of`."""
    n_samples = len(next(iter(inputs.values())))
    return np.concatenate(
        [_features(body, inputs, first, min(first + _ROWS, n_samples)) for first in range(0, n_samples, _ROWS)]
    )


def _features(body: Body, inputs: dict[str, np.ndarray], first: int, last: int) -> np.ndarray:
    """Of some samples; one by one where the model takes no more at once."""
    try:
        return body.features({name: array[first:last] for name, array in inputs.items()})
    except (EngineFailed, TensorMismatch):
        if last - first == 1:
            raise
        rows = [
            body.features({name: array[at : at + 1] for name, array in inputs.items()}) for at in range(first, last)
        ]
        return np.concatenate(rows)


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file, nothing unpickled, sizes bounded before a byte is unpacked."""
    if len(content) > MOST_BYTES:
        raise BadMessage(f"a set of {len(content)} bytes; at most {MOST_BYTES}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            entries = file.infolist()
            if len(entries) > _MOST_ARRAYS or sum(entry.file_size for entry in entries) > _MOST_UNPACKED:
                raise BadMessage(f"a set of {len(entries)} arrays; at most {_MOST_ARRAYS} with {_MOST_UNPACKED} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            arrays = {name: packed[name] for name in packed.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError) as exc:
        raise BadMessage(
            "the set is no .npz file of plain arrays; np.savez(file, labels=…, INPUT=…) makes one"
        ) from exc
    _check(arrays)
    return arrays


def _check(arrays: dict[str, np.ndarray]) -> None:
    labels = arrays.get(LABELS)
    if labels is None or len(arrays) < 2:
        raise BadMessage(f"a set holds {', '.join(sorted(arrays))[:200]}; `labels` and the model's inputs are wanted")
    if labels.ndim < 1 or not len(labels) or labels.dtype.kind not in "iuf":
        raise BadMessage(f"labels are {labels.dtype} {labels.shape}; one class number a sample is wanted")
    if labels.dtype.kind in "iu" and (labels.ndim != 1 or labels.min() < 0):
        raise BadMessage(f"labels are {labels.dtype} {labels.shape}; class numbers from 0 on are wanted")
    for name, array in arrays.items():
        if array.ndim < 1 or len(array) != len(labels):
            raise BadMessage(f"{name!r} has shape {array.shape}, there are {len(labels)} labels")


def _told(sha256: str, arrays: dict[str, np.ndarray]) -> EvaluationSet:
    inputs = tuple(sorted(name for name in arrays if name != LABELS))
    return EvaluationSet(sha256=sha256, n_samples=len(arrays[LABELS]), inputs=inputs)


class Judges:
    """The judges of campaigns that run, a few in memory; any is made again when it is asked for."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Judge] = OrderedDict()

    def find(self, campaign: str) -> Judge | None:
        """One that is here."""
        return self._held.get(campaign)

    def keep(self, campaign: str, judge: Judge) -> None:
        """Keep one."""
        self._held[campaign] = judge
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
