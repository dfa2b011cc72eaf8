"""What a box should be: computed from its tags, the assignments and the rollouts; never stored for each box.

Design: the generation is a digest of the answer, so a box that has it already needs nothing, whatever changed
meanwhile, and a gateway that lost its memory says the same generation for the same state.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from cloud_gateway.fleet.assignments import Assignment, assigned_of, deciding, matches
from cloud_gateway.fleet.rollouts.figures import Figures
from cloud_gateway.fleet.rollouts.rollout import Course, Member, Plan, is_offered
from hybrid.fleet.messages import Admission, Assigned

_encoder = msgspec.msgpack.Encoder(order="sorted")


class BoxView(Protocol):
    """What is asked of a box of the registry."""

    @property
    def id(self) -> str:
        """32 hex digits."""
        ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def tags(self) -> dict[str, str]:
        """What selectors look at."""
        ...

    @property
    def admission(self) -> Admission:
        """Only admitted boxes get models."""
        ...


class BoxDirectory(Protocol):
    """The registry of boxes."""

    def all(self) -> Sequence[BoxView]:
        """Every box."""
        ...

    def find(self, box_id: str) -> BoxView | None:
        """One box."""
        ...


class Rollout(msgspec.Struct, kw_only=True):
    """A rollout with what is known of it.

    Attributes:
        members: by box; of one that ended they are on the disk alone.
        figures: how far its boxes had come when it ended; None before.
    """

    plan: Plan
    course: Course
    members: dict[str, Member] = {}
    figures: Figures | None = None


def desired(
    box_id: str, tags: Mapping[str, str], assignments: Iterable[Assignment], rollouts: Iterable[Rollout]
) -> tuple[Assigned, ...]:
    """All models that a box should have, by name."""
    wanted = {model: found.assigned() for model, found in deciding(assignments, tags).items()}
    for rollout in rollouts:
        member = rollout.members.get(box_id)
        if member is not None and is_offered(rollout.course, member):
            plan = rollout.plan
            wanted[plan.model] = assigned_of(plan.model, plan.version, plan.artifact_digest, plan.id, plan.terms)
    return tuple(wanted[model] for model in sorted(wanted))


def concerns(plan: Plan, tags: Mapping[str, str], assignments: Iterable[Assignment]) -> bool:
    """Whether a rollout is about a box: it has the tags, and no narrower assignment of that model counts for it."""
    if not matches(plan.selector, tags):
        return False
    rival = deciding((a for a in assignments if a.model == plan.model), tags).get(plan.model)
    return rival is None or len(rival.selector) <= len(plan.selector)


def generation_of(models: tuple[Assigned, ...], tags: Mapping[str, str]) -> str:
    """Name of a desired state: 32 hex digits."""
    return hashlib.sha256(_encoder.encode((models, dict(tags)))).hexdigest()[:32]
