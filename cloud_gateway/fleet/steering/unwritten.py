"""What changed in memory and is not on the disk yet.

Design: what is written is encoded here, on the loop, at one moment; a thread that writes it sees no half-made change.
"""

from collections.abc import Iterable, Mapping

import msgspec

from cloud_gateway.fleet.assignments import Assignment
from cloud_gateway.fleet.steering.desired import Rollout
from cloud_gateway.fleet.steering.reports import BoxState
from cloud_gateway.fleet.steering.store import Changes, HistoryEntry

_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder()


class Unwritten:
    """Names of what changed, until a transaction has written it."""

    def __init__(self) -> None:
        self._assignments = False
        self._rollouts: set[str] = set()
        self._members: set[tuple[str, str]] = set()
        self._boxes: set[str] = set()
        self._history: list[HistoryEntry] = []

    def assignments(self) -> None:
        """The assignments changed."""
        self._assignments = True

    def rollout(self, rollout_id: str) -> None:
        """A rollout's course changed, or it is new."""
        self._rollouts.add(rollout_id)

    def members(self, rollout_id: str, box_ids: Iterable[str]) -> None:
        """Members of a rollout changed."""
        self._members.update((rollout_id, box_id) for box_id in box_ids)

    def box(self, box_id: str) -> None:
        """The last words of a box changed."""
        self._boxes.add(box_id)

    def entry(self, entry: HistoryEntry) -> None:
        """Something happened in a rollout."""
        self._history.append(entry)

    def take(
        self, assignments: Iterable[Assignment], rollouts: Mapping[str, Rollout], boxes: Mapping[str, BoxState]
    ) -> Changes:
        """All that is to be written; it counts as written from now on, unless it is given back."""
        changes = Changes(
            assignments=tuple(assignments) if self._assignments else None,
            rollouts=tuple(
                (key, _json.encode(one.plan), _json.encode(one.course), one.plan.made_s, _figures(one))
                for key in sorted(self._rollouts)
                if (one := rollouts.get(key)) is not None
            ),
            members=tuple(
                (key, box_id, _pack.encode(rollouts[key].members[box_id]))
                for key, box_id in sorted(self._members)
                if key in rollouts and box_id in rollouts[key].members
            ),
            boxes=tuple((key, _pack.encode(boxes[key])) for key in sorted(self._boxes) if key in boxes),
            history=tuple(self._history),
        )
        self._assignments = False
        self._rollouts, self._members, self._boxes, self._history = set(), set(), set(), []
        return changes

    def has_members(self, rollout_id: str) -> bool:
        """Whether members of a rollout wait to be written."""
        return any(key == rollout_id for key, _ in self._members)

    def give_back(self, changes: Changes) -> None:
        """A write failed: all of it is to be written again."""
        self._assignments |= changes.assignments is not None
        self._rollouts.update(key for key, *_ in changes.rollouts)
        self._members.update((key, box_id) for key, box_id, _ in changes.members)
        self._boxes.update(key for key, _ in changes.boxes)
        self._history = [*changes.history, *self._history]


def _figures(rollout: Rollout) -> bytes:
    return _json.encode(rollout.figures) if rollout.figures is not None else b""
