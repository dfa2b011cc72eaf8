"""How a fleet stands: boxes by state, version, phase and problem, and each rollout by its stages."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import asdict

from cloud_gateway.fleet.assignments import deciding, matches
from cloud_gateway.fleet.rollouts.engine import standing
from cloud_gateway.fleet.rollouts.figures import figures_of
from cloud_gateway.fleet.rollouts.rollout import Member
from cloud_gateway.fleet.steering.desired import BoxView, Rollout
from cloud_gateway.fleet.steering.messages import (
    AssignmentList,
    BoxRow,
    FleetStatus,
    MemberView,
    RolloutView,
    StageView,
    VersionRow,
)
from cloud_gateway.fleet.steering.steering import Steering

_AT_ONCE = 200
"""So many boxes are looked at before others get their turn on the loop."""
_GRACE_S = 90.0
"""A box that was not heard of for its pause and this long is offline."""
_STATE_ORDER = ("quarantined", "not_ready", "waiting", "offline", "never_seen", "revoked", "ready")


async def fleet_status(
    steering: Steering, now_s: float, *, selector: Mapping[str, str], only_trouble: bool, limit: int
) -> FleetStatus:
    """The fleet, or that part of it that has some tags.

    Args:
        steering: what is known.
        now_s: seconds since 1970.
        selector: tags that boxes must have to be counted.
        only_trouble: list only boxes that are not as they should be.
        limit: boxes to list.
    """
    boxes = [box for box in steering.boxes.all() if matches(selector, box.tags)]
    rows = []
    for at, box in enumerate(boxes):
        rows.append(box_row(steering, box, now_s))
        if at % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    listed = [row for row in rows if not only_trouble or row.state != "ready" or row.problems or row.missing]
    listed.sort(key=lambda row: (_STATE_ORDER.index(row.state), not row.problems, row.name))
    return FleetStatus(
        n_boxes=len(rows),
        states=dict(Counter(row.state for row in rows)),
        problems=dict(Counter(problem for row in rows for problem in row.problems).most_common()),
        versions=_versions(rows, _words(steering)),
        rollouts=tuple(rollout_view(steering, rollout) for rollout in steering.ledger.running()),
        boxes=tuple(listed[:limit]),
        n_more=max(0, len(listed) - limit),
        n_waiting=len(steering.polls),
        lost=steering.lost,
    )


def box_row(steering: Steering, box: BoxView, now_s: float) -> BoxRow:
    """One box."""
    state = steering.ledger.states.get(box.id)
    installed = tuple(told.installed for told in state.models.values()) if state is not None else ()
    held = {one.name: one for one in installed}
    wanted = steering.ledger.desired(box)
    missing = tuple(
        f"{w.name}:{w.version}"
        for w in wanted
        if w.name not in held or held[w.name].artifact_digest != w.artifact_digest or held[w.name].phase != "committed"
    )
    problems = list(state.health.problems) if state is not None and state.health is not None else []
    problems += [one.code for one in installed if one.code and one.code not in problems]
    return BoxRow(
        id=box.id,
        name=box.name,
        tags=box.tags,
        state=box_state(steering, box, now_s),
        seen_s=max(0.0, now_s - state.seen_s) if state is not None and state.seen_s else -1.0,
        problems=tuple(problems),
        models=installed,
        missing=missing,
        health=state.health if state is not None else None,
    )


def box_state(steering: Steering, box: BoxView, now_s: float) -> str:
    """In one word how a box is; docs/fleet.md has the words."""
    state = steering.ledger.states.get(box.id)
    if box.admission != "admitted":
        return box.admission
    if state is None or not state.seen_s:
        return "never_seen"
    if box.id not in steering.polls and now_s - state.seen_s > steering.poll_after_s + _GRACE_S:
        return "offline"
    return "ready" if state.health is None or state.health.ready else "not_ready"


def _words(steering: Steering) -> dict[tuple[str, str], str]:
    """What versions are called that boxes are told to have, by model and artifact digest."""
    found = {(each.model, each.artifact_digest): each.version for each in steering.ledger.assignments}
    plans = (rollout.plan for rollout in steering.ledger.running())
    return found | {(plan.model, plan.artifact_digest): plan.version for plan in plans}


def _versions(rows: list[BoxRow], words: Mapping[tuple[str, str], str]) -> tuple[VersionRow, ...]:
    """Versions that answer on boxes, and those on their way there."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for row in rows:
        for one in row.models:
            is_moving = one.wanted_digest not in ("", one.artifact_digest)
            if one.artifact_digest:
                phase = "trial" if one.is_on_trial else "committed" if is_moving else one.phase
                counts.setdefault((one.name, one.version, one.artifact_digest), Counter())[phase] += 1
            if is_moving:
                counts.setdefault((one.name, "", one.wanted_digest), Counter())[one.phase] += 1
    named = dict(words) | {(name, digest): version for name, version, digest in counts if version}
    joined: dict[tuple[str, str, str], Counter[str]] = {}
    for (name, version, digest), phases in counts.items():
        joined.setdefault((name, version or named.get((name, digest), ""), digest), Counter()).update(phases)
    return tuple(
        VersionRow(model=name, version=version, artifact_digest=digest, phases=dict(phases))
        for (name, version, digest), phases in sorted(joined.items())
    )


def rollout_view(steering: Steering, rollout: Rollout, members: Iterable[Member] = ()) -> RolloutView:
    """One rollout, and those of its boxes that are given."""
    plan, course = rollout.plan, rollout.course
    figures = rollout.figures or figures_of(plan, rollout.members.values())
    stages = tuple(
        StageView(share=share, **asdict(found)) for share, found in zip(plan.stages, figures.stages, strict=True)
    )
    views = tuple(
        MemberView(
            box_id=m.box_id,
            name=_name(steering.boxes.find, m.box_id),
            stage=m.stage + 1,
            is_control=m.is_control,
            standing=standing(plan, course, m) if m.stage <= course.stage or m.taken_s >= 0 else "before",
            code=m.failed,
        )
        for m in sorted(members, key=lambda m: (m.stage, m.box_id))
        if not m.is_gone
    )
    return RolloutView(plan=plan, course=course, stages=stages, n_control=figures.n_control, members=views)


def assignment_list(steering: Steering) -> AssignmentList:
    """Assignments, oldest first, and for how many admitted boxes each decides."""
    found: Counter[int] = Counter()
    for box in steering.boxes.all():
        if box.admission == "admitted":
            found.update(a.id for a in deciding(steering.ledger.assignments, box.tags).values())
    assignments = tuple(steering.ledger.assignments)
    return AssignmentList(assignments=assignments, n_boxes=tuple(found[a.id] for a in assignments), lost=steering.lost)


def _name(find: Callable[[str], BoxView | None], box_id: str) -> str:
    box = find(box_id)
    return box.name if box is not None and box.name else box_id[:12]
