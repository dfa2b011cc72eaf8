"""A slower machine than this one: every engine run takes a factor longer than its own computing.

Design: a run is done at full speed and the rest of its time is slept, so that an emulated device leaves this machine's
cores to others. The time to fill is `factor x CPU time of the calling thread`, not of the wall clock: what the machine
does besides does not count twice. The engine must therefore compute in the calling thread (`intra_op_num_threads=1`).
Being told to terminate ends the sleep as it would end the run.

Pacing is decided when a run is wrapped. Switched off, the callable itself comes back and costs nothing.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from devices.errors import EmulationError

VARIABLE: Final = "HYBRID_PACE"
"""The environment variable that paces a whole process: how many times slower, such as 6."""

_SLICE_S: Final = 0.0003
"""How long a sleep lasts before it looks at the terminate flag again."""

Run = TypeVar("Run", bound=Callable[..., Any])
Result = TypeVar("Result")

_chosen: float | None = None


def set_factor(factor: float) -> None:
    """Paces what is wrapped from now on; 1 switches pacing off, whatever the environment says.

    Raises:
        EmulationError: below 1 or not finite: a machine cannot be made faster than it is.
    """
    global _chosen
    _chosen = sound(factor)


def factor() -> float:
    """How many times slower than this machine; 1 where nothing was chosen.

    Raises:
        EmulationError: the environment variable is no number from 1 on.
    """
    if _chosen is not None:
        return _chosen
    text = os.environ.get(VARIABLE, "")
    try:
        return sound(float(text)) if text else 1.0
    except ValueError:
        raise EmulationError(f"{VARIABLE}={text!r} is no number; give the factor from 1 on, such as 6") from None


def wrap(call: Run) -> Run:
    """The same callable while pacing is off, else one that takes the factor longer.

    A keyword or third positional argument that has `terminate` (onnxruntime's RunOptions) is watched while sleeping.
    """
    chosen = factor()
    if chosen == 1.0:
        return call

    @functools.wraps(call)
    def paced(*args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("run_options", args[2] if len(args) > 2 else None)
        return _filled(functools.partial(call, *args, **kwargs), chosen, options)

    return paced  # type: ignore[return-value]


def run(call: Callable[[], Result]) -> Result:
    """Calls once, at the pace that is chosen now."""
    chosen = factor()
    return call() if chosen == 1.0 else _filled(call, chosen, None)


def _filled(call: Callable[[], Result], chosen: float, options: Any) -> Result:
    started_s, cpu_s = time.perf_counter(), time.thread_time()
    result = call()
    until_s = started_s + chosen * (time.thread_time() - cpu_s)
    while (left_s := until_s - time.perf_counter()) > 0:
        if options is None:
            time.sleep(left_s)
        elif options.terminate:
            raise _terminated()
        else:
            time.sleep(min(left_s, _SLICE_S))
    return result


def _terminated() -> Exception:
    """What onnxruntime raises when a run is told to terminate."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    return Fail("[ONNXRuntimeError] : 1 : FAIL : Exiting due to terminate flag being set to true.")  # type: ignore[no-any-return]


def sound(value: float) -> float:
    """The factor, if it is one.

    Raises:
        EmulationError: below 1 or not finite.
    """
    if not 1.0 <= value < float("inf"):
        raise EmulationError(f"a pace of {value} is none; give a factor from 1 on, such as 6")
    return float(value)
