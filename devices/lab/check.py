"""How true an emulated link is: goodput and round trips measured over it, against what was set.

Design: real programs at both ends, kernel clocks, nothing of the emulation's own counting. A machine that is busy with
something else may spoil a measurement and never improves one, so that a figure out of bounds is measured again.
"""

import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from devices.errors import EmulationError
from devices.lab.lab import Lab
from devices.shape import Shape, Step

GOODPUT_BOUND_RATIO: Final = 0.08
RTT_BOUND_S: Final = 0.003
CORRELATION_BOUND_RATIO: Final = 0.9

RATES_BPS: Final = (1e6, 10e6, 100e6)
_RTT_S: Final = 0.04
_WARM_UP_S: Final = 0.5
_BULK_S: Final = 1.0
_N_ECHOES: Final = 15
_TRACE_STEP_S: Final = 1.0
_N_TRACE_STEPS: Final = 8
_N_TRIES: Final = 6
_TIMEOUT_S: Final = 60.0
_PROGRAM: Final = str(Path(__file__).parent / "traffic.py")


class Traffic:
    """A measuring program at the gateway, and askers on the device; a context manager."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._server = lab.gateway.popen(
            [sys.executable, "-S", "-E", _PROGRAM, "serve", lab.gateway.address],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the asker's to answer
        )
        assert self._server.stdout is not None, "it was asked for"
        self._endpoint = lab.endpoint(int(self._server.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.kill()
        self._server.communicate()

    def _ask(self, *words: str) -> dict[str, Any]:
        host, port = self._endpoint
        done = self._lab.device.run(
            [sys.executable, "-S", "-E", _PROGRAM, "ask", host, str(port), *words],
            timeout_s=_TIMEOUT_S,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        if done.returncode:
            raise EmulationError(f"nothing could be measured over the link: {done.stderr.strip()[-300:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def round_trips_s(self, n_echoes: int = _N_ECHOES) -> list[float]:
        """Seconds of single-byte echoes, one after the other."""
        told: list[float] = self._ask("echo", str(n_echoes))["rtts_s"]
        return told

    def arrivals(self, duration_s: float) -> tuple[list[int], float]:
        """A bulk transfer from the device: bytes that arrived in each bin, and how long a bin is, in seconds."""
        told = self._ask("send", str(duration_s))
        return told["arrivals"], told["bin_s"]

    def goodput_bps(self, duration_s: float = _BULK_S, warm_up_s: float = _WARM_UP_S) -> float:
        """Goodput of a bulk transfer from the device, its beginning left out."""
        arrivals, bin_s = self.arrivals(warm_up_s + duration_s)
        counted = arrivals[round(warm_up_s / bin_s) :]
        return sum(counted) * 8 / (len(counted) * bin_s)

    def congestion_control(self) -> str:
        """What a connection of the device says that it uses."""
        return str(self._ask("echo", "1")["congestion_control"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was set, and what was measured.

    Attributes:
        what: such as `goodput at 10 Mbit/s`.
        wanted: what was set; of a correlation the least that is good.
        seen: what was measured, the best of the tries.
        unit: of both.
        ok: whether it lies within the bound.
    """

    what: str
    wanted: float
    seen: float
    unit: str
    ok: bool


def check_goodput(lab: Lab, traffic: Traffic, rate_bps: float) -> Finding:
    """Sets a rate and measures the goodput."""
    lab.link.set(Shape.even(rate_bps=rate_bps, rtt_s=_RTT_S / 2))
    seen_bps, ok = _tried(traffic.goodput_bps, lambda seen: abs(seen / rate_bps - 1) <= GOODPUT_BOUND_RATIO)
    what = f"goodput at {rate_bps / 1e6:g} Mbit/s"
    return Finding(what=what, wanted=rate_bps / 1e6, seen=seen_bps / 1e6, unit="Mbit/s", ok=ok)


def check_rtt(lab: Lab, traffic: Traffic, rtt_s: float = _RTT_S) -> Finding:
    """Sets a round trip and measures the median; the bound is beside what an echo takes where nothing is set."""

    def error_s() -> float:
        lab.link.set(Shape())
        bare_s = statistics.median(traffic.round_trips_s())
        lab.link.set(Shape.even(rate_bps=20e6, rtt_s=rtt_s))
        seen_s.append(statistics.median(traffic.round_trips_s()))
        return max(0.0, abs(seen_s[-1] - rtt_s) - bare_s)

    seen_s: list[float] = []
    _, ok = _tried(error_s, lambda error: error <= RTT_BOUND_S)
    best_s = min(seen_s, key=lambda seen: abs(seen - rtt_s))
    return Finding(what=f"round trip of {rtt_s * 1e3:g} ms", wanted=rtt_s * 1e3, seen=best_s * 1e3, unit="ms", ok=ok)


def check_trace(lab: Lab, traffic: Traffic, seed: int = 0) -> Finding:
    """Plays a drawn trace of rates from 2 to 20 Mbit/s and correlates the goodput of every step with its rate."""
    steps = drawn_steps(seed)

    def followed() -> float:
        lab.link.play(steps)
        arrivals, bin_s = traffic.arrivals(_TRACE_STEP_S * _N_TRACE_STEPS)
        n_bins = round(_TRACE_STEP_S / bin_s)
        seen = [float(sum(arrivals[at : at + n_bins])) for at in range(0, len(arrivals), n_bins)]
        return statistics.correlation(seen, [step.shape.up.rate_bps or 0.0 for step in steps])

    seen_ratio, ok = _tried(followed, lambda seen: seen >= CORRELATION_BOUND_RATIO)
    return Finding(what="correlation with a trace", wanted=CORRELATION_BOUND_RATIO, seen=seen_ratio, unit="", ok=ok)


def drawn_steps(seed: int) -> tuple[Step, ...]:
    """A trace of rates, log-uniform from 2 to 20 Mbit/s; steps are long enough for TCP to notice them."""
    draws = random.Random(seed)  # noqa: S311 - no secrets
    rates_bps = [2e6 * math.exp(draws.uniform(0, math.log(10))) for _ in range(_N_TRACE_STEPS)]
    return tuple(
        Step(at_s=at * _TRACE_STEP_S, shape=Shape.even(rate_bps=rate_bps, rtt_s=_RTT_S))
        for at, rate_bps in enumerate(rates_bps)
    )


def _tried(measure: Callable[[], float], good: Callable[[float], bool]) -> tuple[float, bool]:
    """The first good measurement, or the last one."""
    seen = 0.0
    for _ in range(_N_TRIES):
        seen = measure()
        if good(seen):
            return seen, True
    return seen, False
