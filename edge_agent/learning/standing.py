"""What the box says of its learning: in its status, to people and in metrics."""

import msgspec

from edge_agent.learning.records import CampaignNote, Judged


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


class PersonalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Personal layers of this box beside a version; counts as in `Judged`.

    Attributes:
        model, version, campaign: whose.
        step: of the campaign, that the version has; -1 where its name does not tell.
        answers: whether requests are answered with them now.
        since_s: when they were found fit to, or not, by the box's calendar.
        n: held-out samples on which both ways were judged.
        n_right, loss: right answers and mean loss with them; `n_plain_right`, `plain_loss`: of the version without.
        why_not: what keeps them from answering, in words.
    """

    model: str
    version: str
    campaign: str
    step: int
    answers: bool
    since_s: float
    n: int
    n_right: int
    n_plain_right: int
    loss: float
    plain_loss: float
    why_not: str = ""

    @classmethod
    def of(cls, note: CampaignNote, judged: Judged, *, is_up: bool, why_not: str) -> "PersonalStatus":
        """Of a campaign whose layers were judged."""
        return cls(
            model=note.terms.model,
            version=judged.version,
            campaign=note.id,
            step=_step_of(judged.version, note.id),
            answers=is_up,
            since_s=judged.at_s,
            n=judged.n,
            n_right=judged.n_right,
            n_plain_right=judged.n_plain_right,
            loss=judged.loss,
            plain_loss=judged.plain_loss,
            why_not="" if is_up else why_not,
        )

    @classmethod
    def none(cls, model: str, version: str, campaign: str, *, why_not: str) -> "PersonalStatus":
        """Of a version that came of a campaign without this box, which has no layers for it."""
        return cls(
            model=model, version=version, campaign=campaign, step=_step_of(version, campaign), answers=False,
            since_s=0.0, n=0, n_right=0, n_plain_right=0, loss=0.0, plain_loss=0.0, why_not=why_not,
        )  # fmt: skip


def _step_of(version: str, campaign: str) -> int:
    """The step that a version's name tells; -1 where it does not."""
    step = version.removesuffix(f"-{campaign}").rpartition(".r")[2]
    return int(step) if step.isascii() and step.isdigit() else -1


class LearningStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How learning stands on this box.

    Attributes:
        mode: idle or off.
        doing: what it does now, in words; empty while it waits.
        why_not: what keeps it from learning, in words; empty where nothing does.
        lacking: what some model lacks to learn here, in words, beside `why_not`.
        waiting_bytes: of the update that the gateway has not taken yet.
        n_given_up: tasks since the start.
        n_stood: how often training stood still for requests, since the start.
        stood_s: the longest time from a request's coming until training stood still.
        task_cpu_s: processor time of the last task.
        n_unfit: samples that the last task could not learn from; `why_unfit` of one of them.
        n_left_out: samples for which `feature_bytes` have no room; the newest are learned from.
        campaigns: the one heard of last at the end.
        personal: of models that came of campaigns with personal layers.
        n_judged, n_worse: how often such were tried since the start, and found worse than the version without.
    """

    mode: str
    doing: str = ""
    why_not: str = ""
    lacking: str = ""
    waiting_bytes: int = 0
    n_given_up: int = 0
    n_stood: int = 0
    stood_s: float = 0.0
    task_cpu_s: float = 0.0
    n_unfit: int = 0
    why_unfit: str = ""
    n_left_out: int = 0
    feature_bytes: int = 0
    campaigns: tuple[CampaignStatus, ...] = ()
    personal: tuple[PersonalStatus, ...] = ()
    n_judged: int = 0
    n_worse: int = 0
