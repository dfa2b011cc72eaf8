"""One opened onnxruntime session with its signature, its cost in memory and its measured time."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from devices.torch_engine import TorchSession
from hybrid.errors import EngineFailed, ModelUnsupported, TensorMismatch
from hybrid.serving.engines.model_facts import ModelFacts
from hybrid.serving.engines.row_batch import Join, RowBatch, RowSession
from hybrid.serving.engines.served_model import ModelSignature

DATATYPE_OF_ENGINE: Final = {
    "tensor(float)": "FP32", "tensor(float16)": "FP16", "tensor(double)": "FP64", "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(string)": BYTES,
}  # fmt: skip
"""Datatype of each tensor type that onnxruntime names and the protocol carries."""

_N_TIMED: Final = 15
_SLOW_SHARE: Final = 0.1
_MAX_SLOWNESS: Final = 10.0
"""Runs leave the event loop when clearly more than this share of them is slow; a busy machine makes some of them so."""

_FLOOR_RISE: Final = 1.01
"""The fastest run is forgotten at this pace, run by run: a machine that got slower shall not refuse for ever."""


class EngineSession:
    """An onnxruntime session that is shared by all requests; onnxruntime's `run` is thread-safe.

    Attributes:
        signature: inputs and outputs that are tensors.
        inputs: the signature's inputs by name.
        output_names: the signature's outputs, in order.
        path: the model file.
        provider: where it computes: `cpu`, `cuda` or `torch`.
        is_for_cpu: its engine knows no accelerator of a service: that it computes on the CPU is no fallback.
        n_bytes: memory of this machine that it holds; what runs share (the arena of activations) is not in it.
        n_allocated_bytes: the part of it that was allocated, not mapped from a file.
        n_gpu_bytes: memory of the GPU that it holds, its own arena included.
        opened_s: how long opening took; what it costs to open it again.
        n_users: jobs that wait for it or run in it; it does not leave memory meanwhile.
        batch: how its requests share a run; None where they do not.
        joins: how its rows catch up with those of deeper sessions.
        family: what sessions at different cuts of one model and shape have in common; None for whole models.
        n_runs: how often it ran for requests of other sessions, as their batch or segment.
        crowd: how often its requests were seen to wait for one another, until that was looked into.
        tensors: what its engine reads in place of parts of its files, and may read at any run.
    """

    __slots__ = (
        "_fastest_s", "_floor_bytes", "_floor_s", "_inline_bytes", "_inline_s", "_is_bounded", "_met", "_n_timed",
        "_n_to_time", "_session", "_slowness", "_timed_bytes", "batch", "crowd", "family", "inputs", "is_for_cpu",
        "joins", "n_allocated_bytes", "n_bytes", "n_gpu_bytes", "n_runs", "n_users", "opened_s", "output_names",
        "path", "provider", "signature", "tensors",
    )  # fmt: skip

    def __init__(
        self,
        session: ort.InferenceSession | TorchSession,
        facts: ModelFacts,
        path: Path,
        *,
        inline_s: float,
        provider: str = "cpu",
    ) -> None:
        self._session = session
        self.path = path
        self.provider = provider
        self.is_for_cpu = False
        self.n_bytes = facts.n_bytes
        self.n_allocated_bytes = 0
        self.n_gpu_bytes = 0
        self.opened_s = 0.0
        self.n_users = 0
        self.batch: RowBatch | None = None
        self.joins: dict[RowSession, Join] = {}
        self.family: tuple[str, ...] | None = None
        self.n_runs = 0
        self.crowd = 0
        self.tensors: Any = None
        self._met: dict[EngineSession, int] = {}
        self._is_bounded = facts.is_bounded
        self._inline_s = inline_s
        self.signature = _signature(session, path)
        self.inputs = {spec.name: spec for spec in self.signature.inputs}
        self.output_names = [spec.name for spec in self.signature.outputs]
        self._fastest_s = math.inf
        self._n_timed = 0
        self._n_to_time = _N_TIMED
        self._timed_bytes = sys.maxsize
        self._inline_bytes = -1
        self._slowness = 0.0
        self._floor_s = 0.0
        self._floor_bytes = sys.maxsize

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, options: Any = None
    ) -> list[np.ndarray]:
        """Compute the named outputs (all of the signature's when None), in that order.

        Args:
            feeds: arrays that `check` accepted.
            outputs: names of graph outputs.
            options: an `onnxruntime.RunOptions` through which another thread may terminate the run.

        Raises:
            EngineFailed: onnxruntime refused the values or was terminated.
        """
        try:
            found: list[np.ndarray] = self._session.run(outputs or self.output_names, feeds, options)
        except Exception as exc:
            raise EngineFailed(f"the engine could not run the model on these inputs: {_first_line(exc)}") from exc
        return found

    @property
    def engine(self) -> Any:
        """The engine's own session, for what it declares; runs go through this object."""
        return self._session

    def check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Refuse feeds that are not the signature's inputs.

        Raises:
            TensorMismatch: a missing or unknown name, another dtype, rank or size.
        """
        if len(feeds) != len(self.inputs):
            self._refuse_names(feeds)
        for name, array in feeds.items():
            spec = self.inputs.get(name)
            if spec is None:
                self._refuse_names(feeds)
            elif not _fits(spec, array):
                wanted = [-1 if size is None else size for size in spec.shape]
                raise TensorMismatch(
                    f"input {name!r} is {array.dtype} {list(array.shape)}; the model wants {spec.dtype} {wanted}"
                )

    def _refuse_names(self, feeds: Mapping[str, np.ndarray]) -> None:
        raise TensorMismatch(f"inputs {sorted(feeds)} given; the model wants exactly {sorted(self.inputs)}")

    def observe(self, run_s: float, n_bytes: int) -> None:
        """Note the time of a run of its own on an engine thread; a few of them decide about `runs_inline`.

        The fastest counts: on an engine thread others hold waits for the interpreter's lock, which the loop has not.
        """
        if not self._is_bounded:
            return
        if run_s < self._floor_s or self._floor_s == 0.0 or n_bytes < self._floor_bytes:
            self._floor_s, self._floor_bytes = run_s, min(n_bytes, self._floor_bytes)
        else:
            self._floor_s *= _FLOOR_RISE
        if self._n_timed >= self._n_to_time:
            return
        self._n_timed += 1
        self._fastest_s = min(self._fastest_s, run_s)
        self._timed_bytes = min(self._timed_bytes, n_bytes)
        if self._n_timed == self._n_to_time and self._fastest_s < self._inline_s:
            self._inline_bytes = self._timed_bytes

    def observe_inline(self, run_s: float) -> None:
        """Note the time of a run on the event loop; when slow ones are common, runs leave it and are timed longer."""
        if run_s > self._inline_s:
            self._slowness += 1.0
            if self._slowness > _MAX_SLOWNESS:
                self._inline_bytes, self._slowness = -1, 0.0
                self._n_timed, self._n_to_time, self._fastest_s = 0, 4 * self._n_to_time, math.inf
        elif self._slowness > 0.0:
            self._slowness -= _SLOW_SHARE

    def floor_s(self, feeds: Mapping[str, np.ndarray] | None) -> float:
        """The least seconds that a run on these feeds takes, from the fastest run lately; 0 where nothing is known."""
        if self._floor_s == 0.0 or feeds is None:
            return 0.0
        return self._floor_s if sum(array.nbytes for array in feeds.values()) >= self._floor_bytes else 0.0

    @property
    def takes_any_rows(self) -> bool:
        """Whether the leading dimension of every input and output is open."""
        specs = (*self.signature.inputs, *self.signature.outputs)
        return all(spec.shape and spec.shape[0] is None for spec in specs)

    def meet(self, deeper: "EngineSession") -> int:
        """Count that requests of both waited at the same time; how often that was seen."""
        seen = self._met[deeper] = self._met.get(deeper, 0) + 1
        return seen

    def part_from(self, other: "EngineSession") -> None:
        """Forget a session that left memory, and what was done with it."""
        self._met.pop(other, None)
        self.joins.pop(other, None)
        for deeper in [deeper for deeper, join in self.joins.items() if join.segment is other]:
            del self.joins[deeper]
        if self.batch is not None and self.batch.session is other:
            self.batch, self.crowd = None, 0

    def runs_inline(self, n_bytes: int) -> bool:
        """Whether a run with that many input bytes is known to be shorter than a thread hop is worth."""
        return n_bytes <= self._inline_bytes


def _signature(session: ort.InferenceSession | TorchSession | TorchSession, path: Path) -> ModelSignature:
    for node in session.get_inputs():
        if node.type not in DATATYPE_OF_ENGINE:
            raise ModelUnsupported(
                f"{path.name}: input {node.name!r} is {node.type}; only tensors travel, so serve a model without it",
                path=str(path),
            )
    return ModelSignature(
        inputs=tuple(_spec(node) for node in session.get_inputs()),
        outputs=tuple(_spec(node) for node in session.get_outputs() if node.type in DATATYPE_OF_ENGINE),
    )


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(name=node.name, dtype=DATATYPE_OF_ENGINE[node.type], shape=shape)


def _fits(spec: TensorSpec, array: np.ndarray) -> bool:
    if array.dtype != NUMPY_OF[spec.dtype] or len(array.shape) != len(spec.shape):
        return False
    for mine, theirs in zip(spec.shape, array.shape, strict=True):  # noqa: SIM110 (`all` costs a microsecond more)
        if mine is not None and mine != theirs:
            return False
    return True


def _first_line(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
