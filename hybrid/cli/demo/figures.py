"""What the demo measured: every answer of every policy, and what follows from them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import quantiles
from typing import Final

from hybrid.cli.demo.link import Phase, phase_at
from hybrid.cli.demo.messages import Answered, Failed, Policy, Stage

_P95: Final = 94
_P50: Final = 49


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer, or one that did not come.

    Attributes:
        policy: whose.
        began_s: seconds after the start.
        ended_s: seconds after the start.
        line: which line of the page, -1 where none was read.
        text: what was read; empty where no answer came.
        error: code of the error, empty for an answer.
        stages: how each model was computed.
    """

    policy: Policy
    began_s: float
    ended_s: float
    line: int
    text: str
    error: str
    stages: tuple[Stage, ...]

    @property
    def took_s(self) -> float:
        """Seconds from the question to the answer, or until it was given up."""
        return self.ended_s - self.began_s

    @property
    def where(self) -> str:
        """Where its models were computed: `local`, `offload`, `local + offload`, `split 3fa2…`."""
        if self.error:
            return "no answer"
        places = [f"split {stage.cut[:4]}…" if stage.placement == "split" else stage.placement for stage in self.stages]
        return places[0] if len(set(places)) == 1 else " + ".join(places)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFigures:
    """One policy in one phase; seconds are None where no answer came.

    Attributes:
        phase: its name.
        n_answers: answers that came.
        n_failed: answers that did not come.
        p50_s: median seconds of an answer.
        p95_s: 95th percentile.
        where: how many answers were computed where.
        errors: how many answers did not come for which error code.
    """

    phase: str
    n_answers: int
    n_failed: int
    p50_s: float | None
    p95_s: float | None
    where: dict[str, int]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """One policy over the whole demo.

    Attributes:
        policy: which.
        phases: figures of each phase, in order.
        n_answers: answers that came.
        n_failed: answers that did not come.
        n_wrong: answers whose text is not the device-only one of the same line.
        p50_s: median seconds of an answer.
        p95_s: 95th percentile.
        longest_gap_s: longest time without an answer.
        bytes_up: bytes of tensors sent.
        n_fallbacks: models that the device computed since the planned way failed.
    """

    policy: Policy
    phases: tuple[PhaseFigures, ...]
    n_answers: int
    n_failed: int
    n_wrong: int
    p50_s: float | None
    p95_s: float | None
    longest_gap_s: float
    bytes_up: int
    n_fallbacks: int


def sample(policy: Policy, said: Answered | Failed, start_s: float) -> Sample:
    """A sample from what a device said; `start_s` is the demo's start on the machine's monotonic clock."""
    answer = said if isinstance(said, Answered) else None
    return Sample(
        policy=policy,
        began_s=said.started_s - start_s,
        ended_s=said.ended_s - start_s,
        line=answer.line if answer else -1,
        text=answer.text if answer else "",
        error=said.code if isinstance(said, Failed) else "",
        stages=tuple(answer.stages) if answer else (),
    )


def right_texts(samples: Iterable[Sample]) -> dict[int, str]:
    """Text of each line of the page, as the device alone reads it."""
    return {one.line: one.text for one in samples if one.policy == "device" and not one.error}


def policy_figures(
    policy: Policy, samples: Iterable[Sample], phases: tuple[Phase, ...], right: dict[int, str]
) -> PolicyFigures:
    """All figures of one policy; an answer belongs to the phase in which it was asked for."""
    own = [one for one in samples if one.policy == policy]
    good = [one for one in own if not one.error]
    ends_s = [0.0, *sorted(one.ended_s for one in good), max([phases[-1].ends_s, *(one.ended_s for one in good)])]
    p50_s, p95_s = _percentiles([one.took_s for one in good])
    return PolicyFigures(
        policy=policy,
        phases=tuple(
            _phase_figures(phase.name, [one for one in own if phase_at(phases, one.began_s) == index])
            for index, phase in enumerate(phases)
        ),
        n_answers=len(good),
        n_failed=len(own) - len(good),
        n_wrong=sum(one.text != right.get(one.line, one.text) for one in good),
        p50_s=p50_s,
        p95_s=p95_s,
        longest_gap_s=max(later - earlier for earlier, later in pairwise(ends_s)),
        bytes_up=sum(stage.bytes_up for one in own for stage in one.stages),
        n_fallbacks=sum(stage.fallback is not None for one in own for stage in one.stages),
    )


def _phase_figures(name: str, samples: list[Sample]) -> PhaseFigures:
    good = [one for one in samples if not one.error]
    p50_s, p95_s = _percentiles([one.took_s for one in good])
    return PhaseFigures(
        phase=name,
        n_answers=len(good),
        n_failed=len(samples) - len(good),
        p50_s=p50_s,
        p95_s=p95_s,
        where=dict(Counter(one.where for one in good).most_common()),
        errors=dict(Counter(one.error for one in samples if one.error).most_common()),
    )


def _percentiles(seconds: list[float]) -> tuple[float | None, float | None]:
    if not seconds:
        return None, None
    if len(seconds) == 1:
        return seconds[0], seconds[0]
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[_P50], cuts[_P95]
