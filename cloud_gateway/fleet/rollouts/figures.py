"""What is left in memory of a rollout that ended: how many of its boxes came how far."""

from collections.abc import Iterable

import msgspec

from cloud_gateway.fleet.rollouts.rollout import Member, Plan


class StageFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Boxes of one stage by how they stand."""

    n_boxes: int
    n_done: int
    n_failed: int
    n_taken: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Boxes of a rollout, by stage; those that left it are not counted."""

    stages: tuple[StageFigures, ...]
    n_control: int


def figures_of(plan: Plan, members: Iterable[Member]) -> Figures:
    """Count them."""
    here = [member for member in members if not member.is_gone]
    stages = []
    for at in range(len(plan.stages)):
        of_stage = [member for member in here if member.stage == at]
        stages.append(
            StageFigures(
                n_boxes=len(of_stage),
                n_done=sum(m.is_done for m in of_stage),
                n_failed=sum(m.failed != "" for m in of_stage),
                n_taken=sum(m.taken_s >= 0 for m in of_stage),
            )
        )
    return Figures(stages=tuple(stages), n_control=sum(m.is_control for m in here))
