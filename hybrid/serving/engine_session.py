"""One opened onnxruntime session with its signature, its cost in memory and its measured time."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from devices.errors import DeviceError, OperatorUnsupported
from devices.onnx_engine import open_session
from hybrid.errors import EngineFailed, ModelInvalid, ModelUnsupported, TensorMismatch
from hybrid.serving.model_facts import ModelFacts
from hybrid.serving.served_model import ModelSignature

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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How sessions are opened.

    Attributes:
        n_intra_threads: threads inside one run; 0 leaves it to onnxruntime (one a core).
        spin: whether idle engine threads spin; costs whole cores on a shared machine.
        providers: execution providers in order of preference.
        inline_s: models whose runs are shorter do so on the event loop; 0 for none. The hop to an engine thread
            costs about 0.05 ms of CPU.
    """

    n_intra_threads: int = 0
    spin: bool = False
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    inline_s: float = 0.0003


class EngineSession:
    """An onnxruntime session that is shared by all requests; onnxruntime's `run` is thread-safe.

    Attributes:
        signature: inputs and outputs that are tensors.
        inputs: the signature's inputs by name.
        output_names: the signature's outputs, in order.
        n_bytes: estimate of the memory that it holds: file and external weights.
    """

    __slots__ = (
        "_fastest_s", "_inline_bytes", "_inline_s", "_is_bounded", "_n_timed", "_n_to_time", "_session", "_slowness",
        "_timed_bytes", "inputs", "n_bytes", "output_names", "signature",
    )  # fmt: skip

    def __init__(self, session: ort.InferenceSession, facts: ModelFacts, path: Path, *, inline_s: float) -> None:
        self._session = session
        self.n_bytes = facts.n_bytes
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
        """Note the time of a run on an engine thread; a few of them decide about `runs_inline`.

        The fastest counts: on an engine thread others hold waits for the interpreter's lock, which the loop has not.
        """
        if not self._is_bounded or self._n_timed >= self._n_to_time:
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

    def runs_inline(self, n_bytes: int) -> bool:
        """Whether a run with that many input bytes is known to be shorter than a thread hop is worth."""
        return n_bytes <= self._inline_bytes


def open_engine(path: Path, settings: EngineSettings, facts: ModelFacts) -> EngineSession:
    """Open a model file; takes milliseconds to seconds, so call it off the event loop.

    Raises:
        ModelInvalid: no file there, or no sound model in it.
        ModelUnsupported: onnxruntime has no kernel for an operator, or an input is not a tensor.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.n_intra_threads
    options.log_severity_level = 4
    if not settings.spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = open_session(path, options, settings.providers)
    except OperatorUnsupported as exc:
        raise ModelUnsupported(str(exc), path=str(path), operator=exc.operator) from exc
    except DeviceError as exc:
        raise ModelInvalid(str(exc), path=str(path)) from exc
    return EngineSession(session, facts, path, inline_s=settings.inline_s)


def _signature(session: ort.InferenceSession, path: Path) -> ModelSignature:
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
