"""The states of an installation and every way from one to another: events in, the new state and what is to do out.

Design: what is to do follows from the state alone (`task_of`), so a service that begins anew after a crash goes on from
what is on the disk, by the same table. A state is on the disk before what it asks for is done.
"""

from collections.abc import Callable
from typing import Final, Literal, get_args

import msgspec
from msgspec.structs import replace

from edge_agent.install.records import MOST_DETAIL, Failure, Held, Slot, Slots, Wanted
from hybrid.fleet.messages import Phase

MOST_CRASHES: Final = 2
"""Crashes of the service, in one boot of the machine, after which a version on trial has lost it."""

MOST_REBOOTS: Final = 5
"""Power cuts and falls of the machine during a trial; most are not the version's fault, so many are."""

RETRY_AFTER_S: Final = 86400.0
"""A version that failed here is tried again when so long has passed."""

Task = Literal["fetch", "rehearse", "warm", "watch", "clear", "wait", "rest"]
"""fetch: complete the free slot; rehearse: open it in a process of its own; warm: open it in the service and compare;
watch: the trial; clear: remove what is left of a model; wait: for room, a day, or another assignment; rest: nothing."""


class Assign(msgspec.Struct, frozen=True):
    """The box should have this version."""

    wanted: Wanted


class Withdraw(msgspec.Struct, frozen=True):
    """The box should not have this model any more."""


class Defer(msgspec.Struct, frozen=True):
    """Not now: the disk or the memory has no room for it."""

    code: str
    detail: str
    at_s: float


class Retry(msgspec.Struct, frozen=True):
    """There may be room now, or a day has passed since it failed."""


class Fill(msgspec.Struct, frozen=True):
    """The free slot is about to be written: what was in it is no version any more."""


class Filled(msgspec.Struct, frozen=True):
    """The free slot is complete, verified, and on the disk."""

    held: Held


class Rehearsed(msgspec.Struct, frozen=True):
    """It opened and ran in a process of its own."""


class Warmed(msgspec.Struct, frozen=True):
    """It opened in the service and gave the golden outputs."""


class Spoil(msgspec.Struct, frozen=True):
    """Refused, damaged, failed in rehearsal, golden outputs that differ, an engine error on trial."""

    code: str
    detail: str
    at_s: float


class Prove(msgspec.Struct, frozen=True):
    """Enough good runs, or enough time without an error, and the golden outputs once more."""


class Crash(msgspec.Struct, frozen=True):
    """The service before this one ended without a stop; with the machine or without."""

    is_reboot: bool
    at_s: float


class Damage(msgspec.Struct, frozen=True):
    """The content of a slot is not what was put there."""

    slot: Slot


Event = (
    Assign | Withdraw | Defer | Retry | Fill | Filled | Rehearsed | Warmed | Spoil | Prove | Crash | Damage
)  # fmt: skip
Move = Callable[[Slots, Event], Slots]


def task_of(slots: Slots) -> Task:
    """What is to do in this state."""
    return TASKS[slots.phase]


def step(slots: Slots, event: Event) -> Slots:
    """The state after an event; one that has no meaning in a state came late and changes nothing."""
    move = TABLE.get((slots.phase, type(event)))
    return slots if move is None else move(slots, event)


def _assign(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Assign)
    wanted = event.wanted
    if slots.wanted is not None and _same(slots.wanted, wanted) and slots.phase != "removed":
        return replace(slots, wanted=wanted, next=None)  # the terms of its trial may have changed
    if slots.phase == "trial" and slots.answering is not None and not slots.answering.is_good:
        if slots.answering.artifact_digest == wanted.artifact_digest:
            return replace(slots, wanted=wanted, next=None)  # on trial for another rollout, which changes no byte
        other = slots.held(slots.free)
        if other is None or not other.is_good:
            return replace(slots, next=wanted)  # what answers is all that there is: it is not dropped for a promise
        slots = _back(slots)
    return _begun(slots, wanted)


def _begun(slots: Slots, wanted: Wanted) -> Slots:
    """The installation of a version begins."""
    here = slots.slot_of(wanted.artifact_digest)
    begun = replace(slots, wanted=wanted, next=None, failure=None)
    if here is None:
        return replace(begun, phase="downloading")
    return replace(begun, phase="committed" if here == slots.answers else "verified")


def _followed(slots: Slots) -> Slots:
    """After a trial: what waited for its end begins."""
    return slots if slots.next is None or slots.phase == "trial" else _begun(slots, slots.next)


def _same(one: Wanted, other: Wanted) -> bool:
    return (one.artifact_digest, one.rollout) == (other.artifact_digest, other.rollout)


def _withdraw(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Withdraw)
    return Slots(name=slots.name, sequence=slots.sequence)  # the sequence stays: no old version comes back this way


def _defer(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Defer)
    return replace(slots, phase="deferred", failure=_failure(event))


def _again(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Retry)
    here = None if slots.wanted is None else slots.slot_of(slots.wanted.artifact_digest)
    phase: Phase = "downloading" if here is None else "committed" if here == slots.answers else "verified"
    return replace(slots, phase=phase, failure=None)


def _fill(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Fill)
    return _put(slots, slots.free, None)


def _filled(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Filled)
    return replace(_put(slots, slots.free, event.held), phase="verified")


def _rehearsed(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Rehearsed)
    return replace(slots, phase="warming", n_openings=0)


def _warmed(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Warmed)
    assert slots.held(slots.free) is not None
    return _turn(replace(slots, phase="trial"), slots.free)


def _spoil(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Spoil)
    return replace(_put(slots, slots.free, None), phase="failed", failure=_failure(event))


def _lose(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Spoil)
    back = _back(slots)
    phase: Phase = "rolled_back" if back.answers and back.answers != slots.answers else "failed"
    return _followed(replace(back, phase=phase, failure=_failure(event)))


def _prove(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Prove)
    held, before = slots.answering, slots.held(slots.free)
    assert held is not None
    assert slots.answers
    last_good = before.artifact_digest if before is not None and before.is_good else slots.last_good
    proved = replace(slots, phase="committed", last_good=last_good, sequence=max(slots.sequence, held.sequence))
    return _followed(_put(replace(proved, failure=None), slots.answers, replace(held, is_good=True)))


def _crash_opening(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Crash)
    slots = replace(slots, n_openings=slots.n_openings + 1)
    if slots.n_openings < MOST_CRASHES:
        return slots
    return _spoil(slots, Spoil("engine_crashed", f"opening it ended the service {slots.n_openings} times", event.at_s))


def _crash_trial(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Crash)
    slots = _count_crash(slots, event)
    if slots.n_crashes < MOST_CRASHES and slots.n_reboots < MOST_REBOOTS:
        return slots
    ended = f"the service ended {slots.n_crashes} times and the machine {slots.n_reboots} times during its trial"
    return _lose(slots, Spoil("engine_crashed", ended, event.at_s))


def _count_crash(slots: Slots, event: Event) -> Slots:
    assert isinstance(event, Crash)
    if event.is_reboot:
        return replace(slots, n_reboots=slots.n_reboots + 1)
    return replace(slots, n_crashes=slots.n_crashes + 1)


def _damage(slots: Slots, event: Event) -> Slots:
    """Without the damaged slot: the other one answers if it is good, and the wanted version is fetched anew."""
    assert isinstance(event, Damage)
    is_answering = event.slot == slots.answers
    slots = _put(slots, event.slot, None)
    if is_answering:
        other = slots.held(slots.free)
        slots = _turn(slots, slots.free if other is not None and other.is_good else "")
        if slots.phase in ("verified", "warming", "trial", "committed") and slots.wanted is not None:
            here = slots.slot_of(slots.wanted.artifact_digest)
            phase: Phase = "downloading" if here is None else "committed" if here == slots.answers else "verified"
            if phase != "verified" or slots.phase != "warming":
                slots = replace(slots, phase=phase)
        elif slots.phase in ("failed", "rolled_back") and not slots.answers:
            slots = replace(slots, phase="downloading", failure=None)  # nothing is left that could be lost
    elif slots.phase in ("verified", "warming"):
        slots = replace(slots, phase="downloading")
    return _followed(slots)


def _back(slots: Slots) -> Slots:
    """The trial is over: the slot before answers if it holds a good version.

    Else none does, but for one that was good here before: it is better than nothing.
    """
    lost, other = slots.answering, slots.held(slots.free)
    assert lost is not None
    assert slots.answers
    if other is not None and other.is_good:
        return _turn(_put(slots, slots.answers, None), slots.free)
    return slots if lost.is_good else _turn(_put(slots, slots.answers, None), "")


def _turn(slots: Slots, answers: Slot | Literal[""]) -> Slots:
    """Another slot answers; what is counted is counted anew."""
    return replace(slots, answers=answers, n_crashes=0, n_reboots=0, n_good=0, n_errors=0)


def _put(slots: Slots, slot: Slot, held: Held | None) -> Slots:
    return replace(slots, a=held) if slot == "a" else replace(slots, b=held)


def _failure(event: Spoil | Defer) -> Failure:
    return Failure(code=event.code, detail=event.detail[:MOST_DETAIL], at_s=event.at_s)


TASKS: Final[dict[Phase, Task]] = {
    "downloading": "fetch",
    "verified": "rehearse",
    "warming": "warm",
    "trial": "watch",
    "committed": "rest",
    "failed": "wait",
    "rolled_back": "wait",
    "deferred": "wait",
    "removed": "clear",
}

_ALWAYS: Final[dict[type, Move]] = {Assign: _assign, Withdraw: _withdraw, Damage: _damage}

_ROWS: Final[dict[Phase, dict[type, Move]]] = {
    "removed": {},
    "downloading": {Defer: _defer, Fill: _fill, Filled: _filled, Spoil: _spoil, Crash: _count_crash},
    "verified": {Rehearsed: _rehearsed, Spoil: _spoil, Defer: _defer, Crash: _count_crash},
    "warming": {Warmed: _warmed, Spoil: _spoil, Defer: _defer, Crash: _crash_opening},
    "trial": {Prove: _prove, Spoil: _lose, Crash: _crash_trial},
    "committed": {Crash: _count_crash},
    "failed": {Retry: _again, Crash: _count_crash},
    "rolled_back": {Retry: _again, Crash: _count_crash},
    "deferred": {Retry: _again, Crash: _count_crash},
}

TABLE: Final[dict[tuple[Phase, type], Move]] = {
    (phase, kind): move for phase in get_args(Phase) for kind, move in (_ALWAYS | _ROWS[phase]).items()
}
"""Every transition; what is not in it changes nothing."""
