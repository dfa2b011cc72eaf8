"""The rollout engine: what boxes tell goes in, the next step comes out; pure, without clock, disk or network.

Design: `note_*` write down what is known of a box, `step` looks at all boxes of a rollout and says go on, halt, or wait
and why. Everything that a person could ask later ("why did it halt?") is in the words of the step.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloud_gateway.fleet.assignments import n_boxes, shown
from cloud_gateway.fleet.rollouts.comparison import compare, level_of
from cloud_gateway.fleet.rollouts.rollout import NEVER, Course, Member, Plan, Tally
from cloud_gateway.fleet.rollouts.statistics import usual_most
from hybrid.fleet.messages import Installed

Verdict = Literal["wait", "advance", "complete", "halt"]
_FEW_BOXES: Final = 5
"""With fewer boxes than this one that failed is enough to halt; with more it takes more than one."""
_RULE: Final = 0.05
"""Boxes that fell silent or crashed count as failed beyond what, but for so small a chance, boxes without the version
would show too."""
_MANY_BOXES: Final = 20
_AWAY: Final = 0.25
"""Of the time to tell something: a longer silence was absence, and is given back when it ends."""
_ENDING: Final = frozenset({"failed", "rolled_back"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do now. `text` says why; `looked` whether a comparison was made, which spends a part of the 1 %."""

    verdict: Verdict
    text: str
    looked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The boxes that should have the version by now.

    Attributes:
        n: all of them.
        offline: not heard of since they should have it.
        deferred: put it off.
        done: told `committed`.
        failed: told that it failed.
        late: heard of, but told neither in time.
        silent: took it and were not heard of since.
        crashed: the service crashed under it, and it is not among the failed.
        silent_beyond, crashed_beyond: how many more than among boxes without the version.
    """

    n: int
    offline: int
    deferred: int
    done: int
    failed: int
    late: int
    silent: int
    crashed: int
    silent_beyond: float
    crashed_beyond: float

    @property
    def reached(self) -> int:
        """Boxes that could have told something."""
        return self.n - self.offline - self.deferred

    @property
    def busy(self) -> int:
        """Boxes that took it and still have time to tell."""
        return self.reached - self.done - self.failed - self.late - self.silent

    @property
    def bad(self) -> float:
        """Boxes that count as failed."""
        return self.failed + self.late + self.silent_beyond + self.crashed_beyond


def note_seen(plan: Plan, course: Course, member: Member) -> None:
    """A box was heard of: from now on it counts as having taken what it should have.

    One that was away for long since then, as boxes are at night, gets the time back that it was away.
    """
    away_s = course.clock_s - member.seen_s if member.seen_s >= 0 else 0.0
    if member.taken_s >= 0 and member.committed_s < 0 and away_s > _AWAY * plan.terms.report_within_s:
        member.taken_s = min(course.clock_s, member.taken_s + away_s)
    member.seen_s = course.clock_s
    if course.state == "running" and not member.is_gone and member.stage <= course.stage and member.taken_s < 0:
        member.taken_s = course.clock_s


def note_told(plan: Plan, course: Course, member: Member, told: Installed) -> bool:
    """A box told of the rollout's model; returns whether that changed its standing, not only its counts."""
    standing = (member.committed_s >= 0, member.failed, member.is_deferred)
    _note_counts(member, told)
    has_it = told.artifact_digest == plan.artifact_digest
    concerns = plan.artifact_digest in (told.wanted_digest, told.artifact_digest)
    if concerns and member.taken_s < 0 and member.stage <= course.stage:
        member.taken_s = course.clock_s
    if member.taken_s >= 0:
        was_deferred, member.is_deferred = member.is_deferred, told.phase == "deferred" and not has_it
        if was_deferred and not member.is_deferred:
            member.taken_s = course.clock_s  # it goes on now, and has its whole time
        if has_it and told.phase == "committed":
            member.failed = ""
            member.committed_s = course.clock_s if member.committed_s < 0 else member.committed_s
        elif told.wanted_digest == plan.artifact_digest and told.phase in _ENDING:
            member.failed = told.code or told.phase
            member.committed_s = NEVER
    return standing != (member.committed_s >= 0, member.failed, member.is_deferred)


def _note_counts(member: Member, told: Installed) -> None:
    now = Tally(digest=told.artifact_digest, n_good=told.n_good, n_errors=told.n_errors, n_crashes=told.n_crashes)
    if now.digest != member.now.digest:
        member.p50_log_sum, member.n_p50 = 0.0, 0
    if told.p50_s > 0 and now != member.now:
        member.p50_log_sum += math.log(told.p50_s)
        member.n_p50 += 1
    member.now = now


def note_past(member: Member, told: Installed | None) -> None:
    """What a box told before the rollout: its own former self, with which it is compared."""
    if told is None:
        return
    tally = Tally(digest=told.artifact_digest, n_good=told.n_good, n_errors=told.n_errors, n_crashes=told.n_crashes)
    member.mark = member.now = member.before = tally
    member.before_p50_s = told.p50_s


def begin_stage(plan: Plan, course: Course, members: Iterable[Member], stage: int) -> None:
    """Begin a stage: every box's runs are counted from here, so that both sides are compared over the same time."""
    course.stage = stage
    course.stage_s = course.clock_s
    course.n_looks = 0
    course.next_look_s = course.clock_s + plan.soak_s / 2.0
    for member in members:
        member.mark = member.now
        member.p50_log_sum, member.n_p50 = 0.0, 0


def count(plan: Plan, course: Course, members: Iterable[Member]) -> Count:
    """How the boxes that should have the version stand."""
    found: Counter[str] = Counter()
    for member in members:
        if not member.is_gone and member.stage <= course.stage:
            found[standing(plan, course, member)] += 1
            has_crashed = not member.failed and member.now.digest == plan.artifact_digest and member.now.n_crashes > 0
            found["crashed"] += has_crashed
    n = sum(found[kind] for kind in ("failed", "done", "offline", "deferred", "late", "silent", "busy"))
    reached = n - found["offline"] - found["deferred"]
    return Count(
        n=n,
        offline=found["offline"],
        deferred=found["deferred"],
        done=found["done"],
        failed=found["failed"],
        late=found["late"],
        silent=found["silent"],
        crashed=found["crashed"],
        silent_beyond=_beyond(found["silent"], reached * course.usual_silent_ratio),
        crashed_beyond=_beyond(found["crashed"], reached * course.usual_crashed_ratio),
    )


def standing(plan: Plan, course: Course, member: Member) -> str:
    """Which of the numbers in `Count` a box is in; `busy` for one that still has time."""
    if member.failed:
        return "failed"
    if member.is_done:
        return "done"
    if member.taken_s < 0:
        return "offline"
    if member.is_deferred:
        return "deferred"
    if course.clock_s - member.taken_s <= plan.terms.report_within_s:
        return "busy"
    return "silent" if _is_silent(plan, course, member) else "late"


def _is_silent(plan: Plan, course: Course, member: Member) -> bool:
    """Whether a box was not heard of for three quarters of the time that it has to tell something."""
    return member.seen_s < course.clock_s - 0.75 * plan.terms.report_within_s


def _beyond(n: int, usual: float) -> float:
    """How many boxes are more than as many as there would be as a rule without the version."""
    return max(0, n - usual_most(usual, _RULE)) if usual > 0 else n


def note_usual(plan: Plan, course: Course, members: Iterable[Member]) -> None:
    """What happens to boxes without the version too; when all have it, what was seen last stays."""
    others = [m for m in members if not m.is_gone and m.stage > course.stage and m.seen_s >= 0]
    heard = [m for m in others if m.seen_s >= course.stage_s]  # those that were off before could not fall silent
    if heard:
        course.usual_silent_ratio = sum(_is_silent(plan, course, m) for m in heard) / len(heard)
    if others:
        crashed = sum(m.now.since(m.before).n_crashes > 0 for m in others)
        # That none of many crashed does not mean that none ever does; of a few boxes' silence on it nothing is made.
        course.usual_crashed_ratio = (crashed + 0.5 * (len(others) >= _MANY_BOXES)) / (len(others) + 1)


def step(plan: Plan, course: Course, members: Sequence[Member]) -> Step:
    """What a running rollout should do now; also notes in its course what is usual."""
    note_usual(plan, course, members)
    now = count(plan, course, members)
    if _too_many(plan, now):
        return Step(verdict="halt", text=_failures(plan, now))
    here = {m.stage for m in members if not m.is_gone}
    if not here:
        return Step(verdict="wait", text=f"no box has the tags {shown(plan.selector)} now")
    if course.stage not in here and (now.done or not now.n):
        return _through(plan, course, now)  # a small fleet has stages without a box of their own
    waiting = _unfinished(plan, course, now)
    is_due = course.clock_s >= course.next_look_s
    if course.stage < plan.last_stage and (is_due or not waiting):
        worse, n_found = _look(plan, course, members)
        if worse:
            return Step(verdict="halt", text=worse, looked=True)
        if not waiting and not n_found and course.clock_s - course.stage_s < _patience_s(plan):
            return Step(verdict="wait", text=f"fewer than {plan.min_runs} runs to compare so far", looked=is_due)
    if waiting:
        return Step(verdict="wait", text=waiting, looked=is_due)
    return _through(plan, course, now)


def _through(plan: Plan, course: Course, now: Count) -> Step:
    if course.stage >= plan.last_stage:
        return Step(verdict="complete", text=f"all stages are through: {_figures(now)}")
    return Step(verdict="advance", text=f"stage {course.stage + 1} is through: {_figures(now)}")


def _patience_s(plan: Plan) -> float:
    """How long a stage waits for runs to compare; boxes that nobody asks anything must not stop a rollout for ever."""
    return max(2.0 * plan.soak_s, plan.terms.report_within_s)


def _too_many(plan: Plan, now: Count) -> bool:
    if now.reached >= _FEW_BOXES and now.bad <= 1.0:
        return False
    return now.bad >= 1.0 and now.bad > plan.max_failed_ratio * now.reached


def _unfinished(plan: Plan, course: Course, now: Count) -> str:
    """Why the stage cannot end yet; empty when it can."""
    if now.n == 0:
        return ""  # nobody is in it: a small fleet has empty stages
    for_s = course.clock_s - course.stage_s
    if now.offline + now.deferred > plan.offline_ratio * now.n:
        return f"of {n_boxes(now.n)} {now.offline} are out of reach and {now.deferred} put it off"
    # Once the time is over, some may be left at it that took it late, but not so many that their failing would halt it.
    may = 0.0 if for_s < plan.terms.report_within_s else plan.max_failed_ratio * now.reached - now.bad
    if now.busy > max(0.0, may):
        return f"of {n_boxes(now.n)} {now.busy} are at it"
    if now.done < plan.enough_ratio * now.reached or not now.done:
        return f"{now.done} of {n_boxes(now.reached)} committed; {plan.enough_ratio:.0%} are wanted"
    if for_s < plan.soak_s:
        return f"it is watched for {plan.soak_s - for_s:.0f} s more"
    return ""


def _look(plan: Plan, course: Course, members: Sequence[Member]) -> tuple[str, int]:
    """What is worse (empty: nothing), and how many comparisons could be made."""
    new = [m for m in members if not m.is_gone and m.stage <= course.stage and m.taken_s >= 0 and _has(plan, m)]
    old = [m for m in members if not m.is_gone and m.stage > course.stage and m.seen_s >= 0 and not _has(plan, m)]
    findings = compare(plan, new, old, level_of(plan, course))
    return "; ".join(finding.text for finding in findings if finding.is_worse), len(findings)


def _has(plan: Plan, member: Member) -> bool:
    """Whether a box runs the version, or did until it failed."""
    return member.now.digest == plan.artifact_digest or bool(member.failed)


def _failures(plan: Plan, now: Count) -> str:
    counts = ((now.failed, "failed"), (now.late, "told nothing in time"), (now.silent, "fell silent"))
    parts = [f"{n} {what}" for n, what in (*counts, (now.crashed, "crashed")) if n]
    return f"of {n_boxes(now.reached)} {', '.join(parts)}; {plan.max_failed_ratio:.1%} may"


def _figures(now: Count) -> str:
    return f"{now.done} of {n_boxes(now.n)} committed, {now.failed} failed, {now.offline} out of reach"


def looked(course: Course, plan: Plan) -> None:
    """A look was made: the next one comes after twice the time."""
    for_s = course.clock_s - course.stage_s
    course.n_looks = course.n_looks + 1 if for_s < plan.soak_s else max(2, course.n_looks + 1)
    course.next_look_s = course.stage_s + max(plan.soak_s, 2.0 * for_s)
