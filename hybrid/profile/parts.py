"""Times the parts of a prepared model as real fused sessions, the most promising first, within a budget of seconds.

Design: each part is opened as a request would open it, warmed up, run until its lower quartile is steady or its share
of the budget is used, and closed again, so that one part at a time is in memory. What was measured is handed on at
once: an interrupted run loses one part.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime

from devices import pace
from devices.errors import DeviceError
from devices.machine import quota_period_s
from devices.onnx_engine import open_session
from hybrid.partition.crossing import crossed, fed, head_names
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.profile.record import Profile, Timing

PartKind = Literal["whole", "head", "tail"]
Feeds = Mapping[str, np.ndarray]

LEAST_RUNS: Final = 3
MOST_RUNS: Final = 25
_STEADY_RUNS: Final = 7
_STEADY_RATIO: Final = 0.02
"""A part is steady when the standard error of its middle, from the quartiles, is below this share of the median."""

_PERIODS: Final = 5
"""Under a quota of processor time a part is run over so many of its periods; the first may be used up before."""

_WARM_UP_S: Final = 0.2
_MOST_WARM_UPS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is timed: the whole model, or one side of a cut."""

    kind: PartKind
    cut: Cut | None = None

    @property
    def label(self) -> str:
        """What to show while it is timed."""
        return self.kind if self.cut is None else f"{self.kind} {self.cut.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """How parts are opened and fed.

    Attributes:
        model_path: the unmodified model.
        prepared: the model bound to one shape key.
        feeds: one request's inputs.
        providers: onnxruntime's execution providers, None for its own choice.
        sess_options: onnxruntime's session options, None for the defaults.
    """

    model_path: Path
    prepared: Prepared
    feeds: Feeds
    providers: Sequence[Any] | None = None
    sess_options: onnxruntime.SessionOptions | None = None

    def open(self, path: Path) -> onnxruntime.InferenceSession:
        """A session as a request would have it.

        Raises:
            DeviceError: the engine refuses the model.
        """
        return open_session(path, self.sess_options, self.providers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one part went: its timing, or why there is none."""

    part: Part
    timing: Timing | None
    reason: str = ""


def parts_of(prepared: Prepared, *, tails: bool) -> list[Part]:
    """The whole model, then the heads (and tails) of the cuts worth timing, the most promising cuts first."""
    parts = [Part(kind="whole")]
    for cut in prepared.table.promising:
        parts.append(Part(kind="head", cut=cut))
        if tails:
            parts.append(Part(kind="tail", cut=cut))
    return parts


def unknown_parts(parts: Sequence[Part], known: Profile) -> list[Part]:
    """Those without an own measurement; priors are measured anew."""
    return [part for part in parts if (timing := _known(known, part)) is None or timing.is_prior]


def time_parts(
    rig: Rig,
    parts: Sequence[Part],
    budget_s: float,
    *,
    begun: Callable[[Part], None] = lambda _part: None,
    done: Callable[[Outcome], None] = lambda _outcome: None,
) -> list[Outcome]:
    """Time parts in this order until the budget is used; those that it does not reach have no outcome.

    Args:
        rig: how they are opened and fed.
        parts: what to time.
        budget_s: seconds in all; a part that has begun gets its least number of runs.
        begun: told each part before it is opened.
        done: told each outcome.
    """
    until_s = time.monotonic() + budget_s
    outcomes = []
    for index, part in enumerate(parts):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            break
        begun(part)
        # The first ones may take twice their even share: they are the ones that matter.
        share_s = min(left_s, 2 * left_s / (len(parts) - index))
        try:
            outcome = Outcome(part=part, timing=_timed(rig, part, share_s))
        except DeviceError as exc:
            outcome = Outcome(part=part, timing=None, reason=str(exc))
        except Exception as exc:  # noqa: BLE001  (whatever the engine raises: this part does not run on these inputs)
            outcome = Outcome(part=part, timing=None, reason=f"{type(exc).__name__}: {exc}")
        outcomes.append(outcome)
        done(outcome)
    return outcomes


def time_runs(run: Callable[[], object], share_s: float, *, period_s: float | None = None) -> Timing:
    """Time a callable: warm-ups left out, then until it is steady or its share of seconds is used.

    Args:
        run: what is timed.
        share_s: seconds to spend; it is called some times in any case.
        period_s: of the quota of processor time that holds here, None where none does: the calls go on over several
            of its periods in any case.

    Raises:
        Exception: whatever it raises.
    """
    started_s = time.perf_counter()
    for _ in range(_MOST_WARM_UPS):
        run()
        if time.perf_counter() - started_s > _WARM_UP_S:
            break
    taken: list[float] = []
    until_s = started_s + share_s
    least_s = time.perf_counter() + _PERIODS * (period_s or 0.0)
    while True:
        before_s = time.perf_counter()
        run()
        now_s = time.perf_counter()
        taken.append(now_s - before_s)
        if len(taken) < LEAST_RUNS or now_s < least_s:
            continue
        if len(taken) >= MOST_RUNS or now_s >= until_s or _is_steady(taken):
            return Timing.of(taken, has_quota=period_s is not None)


def _is_steady(taken: Sequence[float]) -> bool:
    return len(taken) >= _STEADY_RUNS and Timing.of(taken).spread_ratio / len(taken) ** 0.5 < _STEADY_RATIO


def _timed(rig: Rig, part: Part, share_s: float) -> Timing:
    cut = part.cut
    if cut is None:
        session = rig.open(rig.model_path)
        names, feeds = None, fed(session, rig.feeds)
    elif part.kind == "head":
        session = rig.open(rig.prepared.head_path(cut.id))
        names, feeds = head_names(cut, rig.feeds), fed(session, rig.feeds)
    else:
        crossing, _ = crossed(rig.open(rig.prepared.head_path(cut.id)), cut, rig.feeds)
        session = rig.open(rig.prepared.tail_path(cut.id))
        names, feeds = None, fed(session, crossing)
    run = pace.wrap(session.run)
    return time_runs(lambda: run(names, feeds), share_s, period_s=quota_period_s())


def _known(profile: Profile, part: Part) -> Timing | None:
    if part.cut is None:
        return profile.whole
    return (profile.heads if part.kind == "head" else profile.tails).get(part.cut.id)
