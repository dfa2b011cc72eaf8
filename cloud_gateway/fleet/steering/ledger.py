"""The gateway's memory of assignments and rollouts, and every change of it; what changed waits to be written.

Design: all of it lives in memory, on the event loop, and is changed by plain functions; the disk follows in one
transaction. Nobody waits for a lock, and a simulation sees the very same code.
"""

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cloud_gateway.fleet.assignments import Assignment, may_meet, n_boxes, shown
from cloud_gateway.fleet.rollouts.engine import begin_stage, looked, note_past, note_seen, note_told, step
from cloud_gateway.fleet.rollouts.figures import figures_of
from cloud_gateway.fleet.rollouts.rollout import ENDED, RUNNING, Course, Plan, State, late_seat, seats
from cloud_gateway.fleet.steering.desired import BoxDirectory, BoxView, Rollout, concerns, desired
from cloud_gateway.fleet.steering.reports import BoxState
from cloud_gateway.fleet.steering.store import ENDED_KEPT, Changes, HistoryEntry, Kept
from cloud_gateway.fleet.steering.unwritten import Unwritten
from hybrid.errors import Conflict, NotFound
from hybrid.fleet.messages import Assigned, Installed

_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_log = logging.getLogger("hybrid.gateway.fleet")
_SEEN_WRITTEN_S: Final = 60.0
"""That a box was heard of is written once in so long; it is no loss that cannot be borne."""


class Ledger:
    """Assignments, rollouts, and the last words of boxes.

    Attributes:
        assignments: in the order in which they were made.
        rollouts: by id, ended ones among them.
        states: last words by box.
    """

    def __init__(self, kept: Kept, boxes: BoxDirectory, *, now_s: Callable[[], float], rng: random.Random) -> None:
        self._boxes = boxes
        self._now_s = now_s
        self._rng = rng
        self.assignments: list[Assignment] = list(kept.assignments)
        self.rollouts: dict[str, Rollout] = {rollout.plan.id: rollout for rollout in kept.rollouts}
        self.states: dict[str, BoxState] = kept.boxes
        self._next_id = 1 + max((a.id for a in kept.assignments), default=0)
        self._running = [rollout for rollout in kept.rollouts if rollout.course.state in RUNNING]
        self._ended_now: list[Rollout] = []
        self._unwritten = Unwritten()

    # What boxes should be.

    def running(self) -> list[Rollout]:
        """Rollouts that change what boxes should be."""
        return self._running

    def desired(self, box: BoxView) -> tuple[Assigned, ...]:
        """What a box should run; a box that is not admitted has nothing to expect."""
        if box.admission != "admitted":
            return ()
        return desired(box.id, box.tags, self.assignments, self.running())

    # What boxes tell.

    def note_seen(self, box_id: str) -> None:
        """A box was heard of."""
        for rollout in self.running():
            member = rollout.members.get(box_id)
            if member is not None:
                before_s, taken_s = member.seen_s, member.taken_s
                note_seen(rollout.plan, rollout.course, member)
                if member.taken_s != taken_s or before_s // _SEEN_WRITTEN_S != member.seen_s // _SEEN_WRITTEN_S:
                    self._unwritten.members(rollout.plan.id, (box_id,))

    def note_told(self, box_id: str, told: Iterable[Installed]) -> bool:
        """Take over what a box told of its models; whether that changed how a rollout stands."""
        self._unwritten.box(box_id)
        running = self.running()
        if not running:
            return False
        changed = False
        for installed in told:
            for rollout in running:
                member = rollout.members.get(box_id)
                if member is None or rollout.plan.model != installed.name:
                    continue
                failed = member.failed
                changed |= note_told(rollout.plan, rollout.course, member, installed)
                self._unwritten.members(rollout.plan.id, (box_id,))
                if member.failed and not failed:
                    detail = f": {installed.detail}" if installed.detail else ""
                    self._note(rollout, "box_failed", f"{self._name(box_id)} failed ({member.failed}){detail}"[:500])
        return changed

    def note_box(self, box_id: str) -> None:
        """A box came, went, or has other tags: its place in running rollouts is looked at again."""
        box = self._boxes.find(box_id)
        for rollout in self.running():
            self._place(rollout, box_id, box)

    # What people do.

    def assign(self, assignment: Assignment) -> Assignment:
        """Make an assignment, in place of the one with the same model and selector.

        Raises:
            Conflict: a rollout of that model runs on the same boxes.
        """
        for rollout in self._rivals(assignment.model, assignment.selector):
            raise Conflict(
                f"rollout {rollout.plan.id} of {rollout.plan.label} runs on boxes of {shown(assignment.selector)}; "
                "end it first, or let it end",
                advice=f"See it with: hybrid fleet rollout show {rollout.plan.id}; abort ends it.",
            )
        return self._put(assignment)

    def unassign(self, model: str, selector: Mapping[str, str]) -> Assignment:
        """End an assignment.

        Raises:
            NotFound: there is none of that model for exactly these tags.
        """
        for at, known in enumerate(self.assignments):
            if known.model == model and known.selector == selector:
                del self.assignments[at]
                self._unwritten.assignments()
                self._place_all(model)
                return known
        raise NotFound(
            f"no assignment of {model!r} to {shown(selector)}; `hybrid fleet assignments` lists them",
            advice="List them: hybrid fleet assignments.",
        )

    def start(self, plan: Plan, *, queue: bool) -> Rollout:
        """Begin a rollout, or queue it behind another of the same model.

        Raises:
            Conflict: another one of that model runs on some of the boxes, and `queue` is not set.
            NotFound: no box has the tags.
        """
        rivals = self._rivals(plan.model, plan.selector)
        if rivals and not queue:
            rival = rivals[0].plan
            raise Conflict(
                f"rollout {rival.id} of {rival.label} runs on boxes of {shown(rival.selector)} already; "
                "queue this one behind it, or end that one",
                advice="Queue it with --queue, or end the other: hybrid fleet rollout abort " + rival.id,
            )
        if not rivals and not self._concerned(plan):
            raise NotFound(
                f"no admitted box has the tags {shown(plan.selector)}; assign the version instead, "
                "so that boxes get it which come later",
                advice=f"hybrid fleet assign {plan.label} --tags {shown(plan.selector)}, or look at the tags: "
                "hybrid fleet status.",
            )
        rollout = Rollout(plan=plan, course=Course())
        self.rollouts[plan.id] = rollout
        if rivals:
            rollout.course.waiting = f"queued behind {', '.join(r.plan.id for r in rivals)}"
            self._note(rollout, "queued", rollout.course.waiting, who=plan.made_by)
        else:
            self._begin(rollout, who=plan.made_by)
        return rollout

    def pause(self, rollout_id: str, who: str) -> Rollout:
        """Nobody else is told to take the version, and its clock stands still; boxes that have it keep it."""
        return self._turn(rollout_id, ("running",), "paused", "a person paused it", who)

    def resume(self, rollout_id: str, who: str) -> Rollout:
        """Go on."""
        rollout = self._turn(rollout_id, ("paused",), "running", "a person let it go on", who)
        for box in self._boxes.all():
            self._place(rollout, box.id, box)
        return rollout

    def abort(self, rollout_id: str, who: str, why: str = "") -> Rollout:
        """End it: its boxes go back to what is assigned."""
        return self._turn(rollout_id, ("queued", "running", "paused"), "aborted", why or "a person ended it", who)

    def complete(self, rollout_id: str, who: str, why: str = "a person let all boxes have it") -> Rollout:
        """End it well: the version is assigned to all of its boxes now."""
        rollout = self._turn(rollout_id, ("running", "paused"), "completed", why, who)
        plan = rollout.plan
        self._put(
            Assignment(
                id=0,
                model=plan.model,
                version=plan.version,
                artifact_digest=plan.artifact_digest,
                selector=plan.selector,
                terms=plan.terms,
                rollout=plan.id,
                made_s=self._now_s(),
                made_by=plan.made_by,
            )
        )
        return rollout

    def find(self, rollout_id: str) -> Rollout:
        """One rollout by its id.

        Raises:
            NotFound: there is none.
        """
        found = self.rollouts.get(rollout_id)
        if found is None:
            raise NotFound(
                f"no rollout {rollout_id[:40]!r} here; `hybrid fleet rollout ls` lists them",
                advice="List them: hybrid fleet rollout ls.",
            )
        return found

    def fresh_id(self) -> str:
        """A new rollout's id."""
        while True:
            found = "".join(self._rng.choice(_LETTERS) for _ in range(8))
            if found not in self.rollouts:
                return found

    # What time does.

    def advance(self, elapsed_s: float) -> list[Rollout]:
        """Let time pass for running rollouts and take the next step of each; returns those that halted."""
        halted = []
        for rollout in self.running():
            plan, course = rollout.plan, rollout.course
            if course.state != "running":
                continue
            course.clock_s += elapsed_s
            self._unwritten.rollout(plan.id)
            members = list(rollout.members.values())
            try:
                found = step(plan, course, members)
            except Exception:  # noqa: BLE001 (a fault of ours in one rollout must not stop the others)
                _log.exception("fleet.rollout_fault rollout=%s", plan.id)
                self.pause(plan.id, "gateway")
                course.waiting = "paused: its figures could not be judged, the gateway's log says more"
                continue
            if found.looked:
                looked(course, plan)
            course.waiting = found.text if found.verdict == "wait" else ""
            if found.verdict == "halt":
                self._end(rollout, "halted", found.text, "gateway")
                halted.append(rollout)
            elif found.verdict == "complete":
                self.complete(plan.id, "gateway", found.text)
            elif found.verdict == "advance":
                begin_stage(plan, course, members, course.stage + 1)
                self._unwritten.members(plan.id, rollout.members)
                self._note(rollout, "stage", f"{found.text}; stage {course.stage + 1} of {len(plan.stages)} begins")
        self._start_queued()
        return halted

    def take_changes(self) -> Changes:
        """All that is to be written; it counts as written from now on."""
        return self._unwritten.take(self.assignments, self.rollouts, self.states)

    def shed(self) -> None:
        """What was taken is on the disk: the boxes of rollouts that ended need no memory any more."""
        for rollout in self._ended_now:
            if not self._unwritten.has_members(rollout.plan.id):
                rollout.members = {}
        self._ended_now = [rollout for rollout in self._ended_now if rollout.members]

    def give_back(self, changes: Changes) -> None:
        """A write failed: all of it is to be written again."""
        self._unwritten.give_back(changes)

    # Inside.

    def _begin(self, rollout: Rollout, who: str) -> None:
        plan, course = rollout.plan, rollout.course
        course.state, course.waiting = "running", ""
        self._running = [*self._running, rollout]
        for member in seats(plan, (box.id for box in self._concerned(plan))):
            rollout.members[member.box_id] = member
            state = self.states.get(member.box_id)
            told = state.models.get(plan.model) if state is not None else None
            note_past(member, told.installed if told is not None else None)
        begin_stage(plan, course, rollout.members.values(), 0)
        n_first = sum(member.stage == 0 for member in rollout.members.values())
        n_control = sum(member.is_control for member in rollout.members.values())
        self._unwritten.members(plan.id, rollout.members)
        self._note(
            rollout,
            "started",
            f"{plan.label} to {n_boxes(len(rollout.members))} of {shown(plan.selector)}: {n_first} in the first stage, "
            f"{n_control} held back as a control group",
            who=who,
        )

    def _start_queued(self) -> None:
        for rollout in list(self.rollouts.values()):
            if rollout.course.state == "queued" and not self._rivals(rollout.plan.model, rollout.plan.selector):
                if self._concerned(rollout.plan):
                    self._begin(rollout, "gateway")
                else:
                    self._end(rollout, "aborted", "no box has its tags any more", "gateway")

    def _concerned(self, plan: Plan) -> list[BoxView]:
        return [
            box
            for box in self._boxes.all()
            if box.admission == "admitted" and concerns(plan, box.tags, self.assignments)
        ]

    def _rivals(self, model: str, selector: Mapping[str, str]) -> list[Rollout]:
        return [r for r in self.running() if r.plan.model == model and may_meet(r.plan.selector, selector)]

    def _place(self, rollout: Rollout, box_id: str, box: BoxView | None) -> None:
        """Let a box into a rollout that is about it, or out of one that is not any more."""
        plan, member = rollout.plan, rollout.members.get(box_id)
        belongs = box is not None and box.admission == "admitted" and concerns(plan, box.tags, self.assignments)
        if member is None and belongs:
            member = rollout.members[box_id] = late_seat(plan, box_id)
            state = self.states.get(box_id)
            told = state.models.get(plan.model) if state is not None else None
            note_past(member, told.installed if told is not None else None)
            self._note(rollout, "joined", f"{self._name(box_id)} came into stage {member.stage + 1}")
        elif member is not None and member.is_gone == belongs:
            member.is_gone = not belongs
            self._note(
                rollout, "joined" if belongs else "left", f"{self._name(box_id)} {'came' if belongs else 'left'}"
            )
        else:
            return
        self._unwritten.members(plan.id, (box_id,))

    def _put(self, assignment: Assignment) -> Assignment:
        from msgspec.structs import replace

        placed = replace(assignment, id=self._next_id)
        self._next_id += 1
        same = (assignment.model, assignment.selector)
        self.assignments = [a for a in self.assignments if (a.model, a.selector) != same]
        self.assignments.append(placed)
        self._unwritten.assignments()
        self._place_all(assignment.model)
        return placed

    def _place_all(self, model: str) -> None:
        """Assignments of a model changed: whom its running rollouts are about is looked at again."""
        for rollout in self.running():
            if rollout.plan.model == model:
                for box in self._boxes.all():
                    self._place(rollout, box.id, box)

    def _turn(self, rollout_id: str, states: tuple[State, ...], to: State, text: str, who: str) -> Rollout:
        rollout = self.find(rollout_id)
        if rollout.course.state not in states:
            raise Conflict(
                f"rollout {rollout_id} is {rollout.course.state}; that can be done while it is {' or '.join(states)}",
                advice=f"See how it stands: hybrid fleet rollout show {rollout_id}.",
            )
        if to in ENDED:
            self._end(rollout, to, text, who)
        else:
            rollout.course.state = to
            rollout.course.waiting = "paused by a person" if to == "paused" else ""
            self._note(rollout, to, text, who=who)
        return rollout

    def _end(self, rollout: Rollout, state: State, text: str, who: str) -> None:
        rollout.course.state, rollout.course.reason, rollout.course.waiting = state, text, ""
        self._running = [known for known in self._running if known is not rollout]
        rollout.figures = figures_of(rollout.plan, rollout.members.values())
        self._unwritten.members(rollout.plan.id, rollout.members)  # the disk alone has them from now on
        self._ended_now.append(rollout)
        self._note(rollout, state, text, who=who)
        ended = [key for key, known in self.rollouts.items() if known.course.state in ENDED]
        for key in ended[:-ENDED_KEPT]:
            del self.rollouts[key]  # out of memory; its history stays on the disk

    def _note(self, rollout: Rollout, kind: str, text: str, *, who: str = "gateway") -> None:
        self._unwritten.rollout(rollout.plan.id)
        self._unwritten.entry(
            HistoryEntry(
                rollout=rollout.plan.id,
                at_s=self._now_s(),
                clock_s=rollout.course.clock_s,
                kind=kind,
                text=text,
                who=who,
            )
        )

    def _name(self, box_id: str) -> str:
        box = self._boxes.find(box_id)
        return box.name if box is not None and box.name else box_id[:12]
