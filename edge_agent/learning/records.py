"""What the box keeps of a campaign, and the update that waits until the gateway has taken it."""

from typing import Final, Literal

import msgspec

from hybrid.federated.layout import Layout
from hybrid.federated.messages import Terms

VectorName = Literal["view", "residual", "control", "personal", "fitted"]
"""`personal`: as the last task left them; `fitted`: the same beside the version that answers, see `Beside`."""

VECTORS: Final[tuple[VectorName, ...]] = ("view", "residual", "control", "personal", "fitted")
PERSONAL: Final[frozenset[VectorName]] = frozenset({"personal", "fitted"})
"""What stays when a campaign is over: the version that came of it is installed afterwards."""

Outcome = Literal["accepted", "stale", "rejected", "closed", "gave-up", "conflict"]
"""What became of a task, for good."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """How a campaign's personal layers do beside a version that was learned in it.

    Attributes:
        artifact_digest, version, variant: beside which one.
        digest: names the two together, for this box alone; drawn.
        answers: whether requests are answered with them: not worse than without.
        at_s: when that was found, by the box's calendar.
        n_samples: labelled samples there were then.
        n: of these, samples that no training saw.
        n_right, n_plain_right: right answers on them, with and without.
        loss, plain_loss: mean on them.
        why_not: what keeps them from answering, in words; empty where they do.
        layout: of the fitted layers; None where there are none.
    """

    artifact_digest: str
    version: str
    variant: str
    digest: str = ""
    answers: bool = False
    at_s: float = 0.0
    n_samples: int = 0
    n: int = 0
    n_right: int = 0
    n_plain_right: int = 0
    loss: float = 0.0
    plain_loss: float = 0.0
    why_not: str = ""
    layout: Layout | None = None

    def is_of(self, artifact_digest: str, variant: str) -> bool:
        """Whether it says something about this."""
        return (self.artifact_digest, self.variant) == (artifact_digest, variant)


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
        judged: how its personal layers do; None before they were tried.
        is_forgotten: a person wants none of its personal layers to be kept.
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
    judged: Judged | None = None
    is_forgotten: bool = False

    @property
    def worth(self) -> int:
        """The least leaves first: what runs stays; of the others whose personal layers answer, or shall not be here."""
        is_kept = self.is_forgotten or (self.judged is not None and self.judged.answers)
        is_running = not self.is_over and self.step >= 0  # of a campaign without a view nobody says that it ended
        return 4 * is_running + 2 * is_kept + (not self.is_over)


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
