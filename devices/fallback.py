"""An accelerator that fails is replaced by the CPU, and tried again later: sessions that survive their provider.

Design: a provider fails in three ways: it cannot be opened, the engine quietly leaves it out, or it raises at a run
(memory gone, driver reset, device unplugged). In each the CPU answers, the request included that met the failure. What
the CPU refuses as well was the request's own fault, and the accelerator stays. It is tried again after a pause that
doubles with each failure, drawn at random so that many boxes do not return at once, on a thread of its own and with a
request of its own: it takes over when it gives what the CPU gave. An accelerator that is not asked for costs nothing,
for then nothing is wrapped.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, Final, Protocol

import numpy as np

from devices.onnx_engine import Port

log = logging.getLogger("hybrid.engine")

FIRST_PAUSE_S: Final = 5.0
MOST_PAUSE_S: Final = 600.0
SPARE_S: Final = 60.0
"""So long the CPU's session is kept after a wrong request: opening it anew for each would cost more than the runs."""
TOLERANCE: Final = 1e-2
"""Largest difference to the CPU as a share of the output's largest value: accelerators compute in half precision."""

_KINDS: Final = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}  # fmt: skip


class OpenModel(Protocol):
    """A model that is open, as onnxruntime has it."""

    def get_inputs(self) -> Sequence[Any]:
        """What goes in."""
        ...

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """The named outputs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTrouble:
    """Why the CPU computes in place of an accelerator.

    Attributes:
        provider: what should compute.
        reason: what it said.
        n_failures: how often it failed in a row.
        failed_s: when it failed last, on the monotonic clock.
        retry_s: from when on it is tried again, on that clock; None where it never will be.
    """

    provider: str
    reason: str
    n_failures: int
    failed_s: float
    retry_s: float | None


class FallbackSession:
    """A model on an accelerator, and on the CPU while that fails; thread-safe where its sessions are.

    Args:
        provider: what should compute, in words.
        open_wanted: opens the model there.
        open_cpu: opens it on the CPU.
        is_taken: whether an open session really computes there; an engine may leave a provider out without a word.
        is_checked: whether it is held against the CPU when it is opened (delegates of unknown makers).
        now_s: the monotonic clock.
        rng: draws pauses.

    Raises:
        Exception: what the CPU says when it cannot open the model either.
    """

    def __init__(
        self,
        provider: str,
        open_wanted: Callable[[], OpenModel],
        open_cpu: Callable[[], OpenModel],
        *,
        is_taken: Callable[[Any], bool] = lambda _session: True,
        is_checked: bool = False,
        now_s: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.provider = provider
        self._open_wanted = open_wanted
        self._open_cpu = open_cpu
        self._is_taken = is_taken
        self._now_s = now_s
        self._rng = rng or random.Random()  # noqa: S311  (jitter, no secret)
        self._lock = Lock()
        self._trouble: EngineTrouble | None = None
        self._back_s = 0.0
        self._spare_s = float("-inf")
        self._n_failures = 0
        self._is_trying = False
        self._sample: Mapping[str, Any] | None = None
        self._wanted: OpenModel | None = None
        self._cpu: OpenModel | None = None
        try:
            found = open_wanted()
            if not is_taken(found):
                self._cpu = found
                self._note(
                    "the engine opened the model without it: it is not in this build, or its libraries are not",
                    may_return=False,
                )
            else:
                self._wanted = found
                if is_checked:
                    self._check(found, _made_up(found.get_inputs()))
                    self._cpu = None
                    _begin_anew(found)  # the check was no run of the caller's
        except Exception as exc:  # noqa: BLE001  (whatever a provider raises)
            self._wanted = None
            self._cpu = open_cpu()  # raises where the model itself is at fault
            self._note(_first_line(exc))

    @property
    def trouble(self) -> EngineTrouble | None:
        """Why the CPU computes now, None while the accelerator does."""
        return self._trouble

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """The named outputs, from the accelerator or, where that fails, from the CPU."""
        wanted = self._wanted
        if wanted is None:
            self._try_again_if_due()
            return self._on_cpu().run(output_names, input_feed, run_options)
        if self._cpu is not None:
            self._drop_spare()
        try:
            return wanted.run(output_names, input_feed, run_options)
        except Exception as exc:
            if run_options is not None and run_options.terminate:
                raise
            try:
                outputs = self._on_cpu().run(output_names, input_feed, run_options)
            except Exception:  # noqa: BLE001  (the request's own fault: the accelerator stays)
                self._spare_s = self._now_s()  # kept a while: who sends one wrong request sends another
                raise exc from None
            self._failed(wanted, exc, input_feed)
            return outputs

    def __getattr__(self, name: str) -> Any:
        """Everything else is the session's that computes now."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._wanted or self._on_cpu(), name)

    def _on_cpu(self) -> OpenModel:
        with self._lock:
            if self._cpu is None:
                self._cpu = self._open_cpu()
            return self._cpu

    def _drop_spare(self) -> None:
        """Let go of what a wrong request had opened, once none came for a while."""
        with self._lock:
            if self._wanted is not None and self._now_s() - self._spare_s > SPARE_S:
                self._cpu = None

    def _failed(self, wanted: OpenModel, error: Exception, feeds: Mapping[str, Any]) -> None:
        with self._lock:
            if self._wanted is not wanted:
                return  # another thread met the same failure
            self._wanted = None
            self._sample = {name: np.array(value) for name, value in feeds.items()}
        self._note(_first_line(error))

    def _note(self, reason: str, *, may_return: bool = True) -> None:
        may_return = may_return and not _keeps_state(self._cpu)  # what is remembered by now, the CPU alone remembers
        now_s = self._now_s()
        if self._n_failures and now_s - self._back_s > self._pause_s(self._n_failures):
            self._n_failures = 0  # it held long enough since it came back
        self._n_failures += 1
        pause_s = self._pause_s(self._n_failures) * self._rng.uniform(0.75, 1.25)
        self._trouble = EngineTrouble(
            provider=self.provider,
            reason=reason,
            n_failures=self._n_failures,
            failed_s=now_s,
            retry_s=now_s + pause_s if may_return else None,
        )
        log.warning("engine.on_cpu provider=%s n_failures=%d reason=%s", self.provider, self._n_failures, reason)

    def _pause_s(self, n_failures: int) -> float:
        return min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(n_failures - 1, 20))

    def _try_again_if_due(self) -> None:
        trouble = self._trouble
        if trouble is None or trouble.retry_s is None or self._now_s() < trouble.retry_s:
            return
        with self._lock:
            if self._is_trying:
                return
            self._is_trying = True
        Thread(target=self._try_again, name="hybrid-engine-retry", daemon=True).start()

    def _try_again(self) -> None:
        try:
            found = self._open_wanted()
            if not self._is_taken(found):
                raise RuntimeError("the engine opened the model without it")
            self._check(found, self._sample if self._sample is not None else _made_up(found.get_inputs()))
        except Exception as exc:  # noqa: BLE001  (whatever a provider raises)
            self._back_s = self._now_s()
            self._note(_first_line(exc))
        else:
            with self._lock:
                self._wanted, self._cpu, self._sample = found, None, None
                self._back_s, self._trouble = self._now_s(), None
            log.info("engine.back provider=%s", self.provider)
        finally:
            self._is_trying = False

    def _check(self, found: OpenModel, feeds: Mapping[str, Any] | None) -> None:
        """See that the accelerator gives what the CPU gives.

        Raises:
            RuntimeError: it does not. Whatever it raises.
        """
        if feeds is None:
            return
        mine = found.run(None, dict(feeds))
        try:
            theirs = self._on_cpu().run(None, dict(feeds))
        except Exception:  # noqa: BLE001  (made-up values are no input of this model)
            return
        if not all(_equal(one, other) for one, other in zip(mine, theirs, strict=True)):
            raise RuntimeError(f"{self.provider} gives other numbers than the CPU for the same inputs")


def _keeps_state(session: Any) -> bool:
    return bool(getattr(session, "keeps_state", False))


def _begin_anew(session: Any) -> None:
    if _keeps_state(session):
        session.reset_variables()


def _made_up(inputs: Sequence[Port]) -> dict[str, np.ndarray] | None:
    """One request of ones and noise; None where an input is none that can be made up."""
    noise = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for port in inputs:
        kind = _KINDS.get(port.type)
        if kind is None:
            return None
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in port.shape]
        is_float = np.issubdtype(kind, np.floating)
        feeds[port.name] = np.asarray(noise.random(shape) if is_float else np.ones(shape)).astype(kind)
    return feeds


def _equal(mine: Any, theirs: Any) -> bool:
    one, other = np.asarray(mine), np.asarray(theirs)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind not in "fiu":
        return bool(np.array_equal(one, other))
    a, b = one.astype(np.float64), other.astype(np.float64)
    scale = max(1e-6, float(np.max(np.abs(b), initial=0.0)))
    slack = 1.0 if one.dtype.kind in "iu" else TOLERANCE * scale  # a quantized value may round the other way
    return bool(np.allclose(a, b, rtol=0, atol=slack, equal_nan=True))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
