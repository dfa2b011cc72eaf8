"""What the box keeps of a campaign, and the update that waits until the gateway has taken it."""

from typing import Final, Literal

import msgspec

from hybrid.federated.messages import Terms

VectorName = Literal["view", "residual", "control", "personal"]
VECTORS: Final[tuple[VectorName, ...]] = ("view", "residual", "control", "personal")

Outcome = Literal["accepted", "stale", "rejected", "closed", "gave-up", "conflict"]
"""What became of a task, for good."""


class CampaignNote(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign, as far as this box took part in it.

    Attributes:
        id: of the campaign.
        terms: what holds for all of its tasks.
        step: of the view that is kept; -1 for none.
        sha256: of that view.
        is_over: the gateway said that it ended; its vectors are gone.
        is_metered: its last task came while the link was metered: the campaign allows that.
        n_accepted, n_lost: tasks that counted, and others that were sent.
        n_evaluated: candidates that were tried here.
        n_bytes: of all updates that were accepted.
        last: what became of the last task, in words.
        loss_before, loss_after: of the last training here.
        epsilon: that this box has spent on the model; 0 where no noise is asked for.
    """

    id: str
    terms: Terms
    step: int = -1
    sha256: str = ""
    is_over: bool = False
    is_metered: bool = False
    n_accepted: int = 0
    n_lost: int = 0
    n_evaluated: int = 0
    n_bytes: int = 0
    last: str = ""
    loss_before: float = 0.0
    loss_after: float = 0.0
    epsilon: float = 0.0


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """The update that waits: every field of its call but the epoch, so that a retry says the same.

    Attributes:
        task, campaign, step, form, sha256, n_bytes, n_samples, loss_before, loss_after, is_below_clip, train_s: as in
            the call.
        cost: what it costs of the box's privacy (mu squared) once it counts; 0 where no noise is asked for.
        delta: of epsilon.
    """

    task: str
    campaign: str
    step: int
    form: str
    sha256: str
    n_bytes: int
    n_samples: int = 1
    loss_before: float = 0.0
    loss_after: float = 0.0
    is_below_clip: bool = False
    train_s: float = 0.0
    cost: float = 0.0
    delta: float = 1e-5
