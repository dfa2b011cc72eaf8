"""What the box says of its learning: in its status, to people and in metrics."""

import msgspec

from edge_agent.learning.records import CampaignNote


class CampaignStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign, as far as this box takes part in it; fields as in `CampaignNote`."""

    id: str
    model: str
    variant: str
    step: int
    is_over: bool
    n_accepted: int
    n_lost: int
    n_evaluated: int
    n_bytes: int
    last: str
    loss_before: float
    loss_after: float
    epsilon: float

    @classmethod
    def of(cls, note: CampaignNote) -> "CampaignStatus":
        """Without what nobody wants to read."""
        return cls(
            id=note.id,
            model=note.terms.model,
            variant=note.terms.variant,
            step=note.step,
            is_over=note.is_over,
            n_accepted=note.n_accepted,
            n_lost=note.n_lost,
            n_evaluated=note.n_evaluated,
            n_bytes=note.n_bytes,
            last=note.last,
            loss_before=note.loss_before,
            loss_after=note.loss_after,
            epsilon=note.epsilon,
        )


class LearningStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How learning stands on this box.

    Attributes:
        mode: idle or off.
        doing: what it does now, in words; empty while it waits.
        why_not: what keeps it from learning, in words; empty where nothing does.
        waiting_bytes: of the update that the gateway has not taken yet.
        n_given_up: tasks since the start.
        n_stood: how often training stood still for requests, since the start.
        stood_s: the longest time from a request's coming until training stood still.
        task_cpu_s: processor time of the last task.
        n_unfit: samples that the last task could not learn from; `why_unfit` of one of them.
        campaigns: the one heard of last at the end.
    """

    mode: str
    doing: str = ""
    why_not: str = ""
    waiting_bytes: int = 0
    n_given_up: int = 0
    n_stood: int = 0
    stood_s: float = 0.0
    task_cpu_s: float = 0.0
    n_unfit: int = 0
    why_unfit: str = ""
    campaigns: tuple[CampaignStatus, ...] = ()
