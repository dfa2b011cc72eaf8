"""Which version of a model boxes with certain tags should run, and which of several assignments counts for a box.

Design: a selector is tags that a box must have, no query language: one sees at a glance which of two is the narrower.
"""

from collections.abc import Iterable, Mapping

import msgspec

from cloud_gateway.fleet.admission.boxes import check_tags
from hybrid.errors import BadMessage
from hybrid.fleet.messages import Assigned, SampleRule, Trial


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with a version on its way to a box; the fields are those of `Assigned`."""

    samples: SampleRule = "keep"
    priority: int = 5
    trial: Trial = Trial()
    report_within_s: float = 3600.0
    rollback: tuple[bytes, str] | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Boxes with the tags of `selector` should run this version, where no narrower assignment says otherwise.

    Attributes:
        id: rises with each change: of two equally narrow ones the later counts.
        rollout: which rollout brought it; boxes see no change when that ends.
        made_s, made_by: when, by this machine's clock, and by which token.
    """

    id: int
    model: str
    version: str
    artifact_digest: str
    selector: dict[str, str] = {}
    terms: Terms = Terms()
    rollout: str = ""
    made_s: float = 0.0
    made_by: str = ""

    @property
    def label(self) -> str:
        """`NAME:VERSION`."""
        return f"{self.model}:{self.version}"

    def assigned(self) -> Assigned:
        """The same as a box is told it."""
        return assigned_of(self.model, self.version, self.artifact_digest, self.rollout, self.terms)


def assigned_of(model: str, version: str, artifact_digest: str, rollout: str, terms: Terms) -> Assigned:
    """What a box is told."""
    return Assigned(
        name=model,
        version=version,
        artifact_digest=artifact_digest,
        rollout=rollout,
        rollback=terms.rollback,
        samples=terms.samples,
        priority=terms.priority,
        trial=terms.trial,
        report_within_s=terms.report_within_s,
    )


def matches(selector: Mapping[str, str], tags: Mapping[str, str]) -> bool:
    """Whether a box with these tags is meant; the empty selector means every box."""
    return all(tags.get(key) == value for key, value in selector.items())


def may_meet(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a box can have the tags of both selectors."""
    return all(other.get(key, value) == value for key, value in one.items())


def deciding(assignments: Iterable[Assignment], tags: Mapping[str, str]) -> dict[str, Assignment]:
    """For each model the assignment that counts for a box: the narrowest, of equally narrow ones the latest."""
    found: dict[str, Assignment] = {}
    for assignment in assignments:
        if matches(assignment.selector, tags):
            rival = found.get(assignment.model)
            if rival is None or _rank(assignment) > _rank(rival):
                found[assignment.model] = assignment
    return found


def _rank(assignment: Assignment) -> tuple[int, int]:
    return len(assignment.selector), assignment.id


def parse_tags(text: str) -> dict[str, str]:
    """Tags of `k=v,k2=v2`; nothing, or `all`, is no tag.

    Raises:
        BadMessage: another form.
    """
    tags: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))) if text.strip() != "all" else ():
        key, sign, value = part.partition("=")
        if not sign:
            raise BadMessage(f"{part[:80]!r} is no tag; write KEY=VALUE, several with commas between them")
        tags[key.strip()] = value.strip()
    return check_tags(tags)


def n_boxes(n: int) -> str:
    """So many boxes, in words."""
    return f"{n} box" if n == 1 else f"{n} boxes"


def shown(tags: Mapping[str, str]) -> str:
    """Tags as people write them; `all` for none."""
    return ",".join(f"{key}={value}" for key, value in sorted(tags.items())) or "all"
