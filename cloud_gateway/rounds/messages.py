"""What people ask of campaigns and what they are told; JSON between commands and gateway."""

from typing import Final, Literal

import msgspec

from hybrid.artifact.manifest import LineageStep
from hybrid.federated.campaign import Campaign, PromotionPolicy
from hybrid.federated.layout import Layout

CampaignState = Literal["running", "paused", "completed", "stalled", "spent", "stopped", "failed", "lost"]
ENDED: Final[frozenset[CampaignState]] = frozenset({"completed", "spent", "stopped", "failed", "lost"})
"""No task is given any more, and none ever will be."""
RoundState = Literal["open", "closing", "closed", "abandoned"]
PromotionState = Literal["evaluating", "candidate", "rollout", "refused"]


class CampaignWish(msgspec.Struct, frozen=True, kw_only=True):
    """Begin a campaign.

    Attributes:
        order: what it is to do; `cohort.roster` is base64 in JSON.
        evaluation: digest of a set that was uploaded before; empty for none.
    """

    order: Campaign
    evaluation: str = ""


class EvaluationSet(msgspec.Struct, frozen=True, kw_only=True):
    """A set as it was uploaded: digest of the file, samples, and the tensors that it holds."""

    sha256: str
    n_samples: int
    inputs: tuple[str, ...] = ()


class PromoteWish(msgspec.Struct, frozen=True, kw_only=True):
    """Make a step a version; `step` None is the newest one; `policy` `candidate` or `rollout`."""

    step: int | None = None
    policy: PromotionPolicy = "candidate"


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one box had to do with one round.

    Attributes:
        outcome: `counted`, or what became of its update.
        gate: at which it was rejected.
        norm: of its update; 0 where privacy forbids to tell.
        staleness: by how many steps the model had gone on.
        n_bytes_up, n_bytes_down: payload, of updates and of weights.
        train_s: that it says it trained.
    """

    box_id: str
    outcome: str
    gate: str = ""
    n_samples: int = 0
    norm: float = 0.0
    staleness: int = 0
    n_bytes_up: int = 0
    n_bytes_down: int = 0
    train_s: float = 0.0


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    Attributes:
        number: from 1; the step that it made.
        n_leases: out now.
        n_counted: updates that count, or count so far.
        outcomes: updates by what became of them: `accepted`, `stale`, `rejected:GATE`, `conflict`, `closed`.
        n_abandoned: how often it was begun anew before it closed.
        n_bytes_up, n_bytes_down: payload, of updates and of weights.
        accuracy: on the evaluation set after it; None without one.
        loss: mean over the boxes before they trained, by their own word; None where nobody told.
        epsilon: of the model so far; 0 without noise.
        clip: norm to which boxes clipped.
        opened_s: seconds since 1970, for people.
        seconds: it took; so far where it is open.
        shares: only in the report.
    """

    number: int
    state: RoundState
    n_leases: int = 0
    n_counted: int = 0
    outcomes: dict[str, int] = {}
    n_abandoned: int = 0
    n_bytes_up: int = 0
    n_bytes_down: int = 0
    accuracy: float | None = None
    loss: float | None = None
    epsilon: float = 0.0
    clip: float = 0.0
    opened_s: float = 0.0
    seconds: float = 0.0
    shares: tuple[Share, ...] = ()


class PromotionView(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a step that was to become a version.

    Attributes:
        version: `NAME:VERSION`; empty while there is none.
        reason: why it was refused, or what it waits for.
        accuracy, base_accuracy: on the evaluation set; None without one.
        n_won, n_lost: answers of boxes on their own samples that were wrong before and right now, and the reverse.
        n_boxes: that evaluated it, so far while it is evaluated.
        rollout: id; empty for none.
        policy: what was wished.
        begun_s: seconds since 1970, when it was wished; 0 of an older gateway.
    """

    step: int
    state: PromotionState
    version: str = ""
    reason: str = ""
    accuracy: float | None = None
    base_accuracy: float | None = None
    n_won: int = 0
    n_lost: int = 0
    n_boxes: int = 0
    rollout: str = ""
    policy: PromotionPolicy = "candidate"
    begun_s: float = 0.0


class CampaignView(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign as it stands.

    Attributes:
        serial: another number after each change; `?since=SERIAL&wait_s=S` waits for one.
        reason: why it is not running; empty while it is.
        step: the newest one.
        n_boxes: of the cohort, by its tags.
        n_able: those that could begin a task, by what they told last; `left_out`: the others, by what keeps them out.
            While it has not ended.
        base_accuracy: on the evaluation set; None without one.
        rounds: oldest first; the open one is the last. In the list of campaigns only the two newest.
        promotions: the newest wish of each step, the oldest first.
        by_torch: operators that boxes need torch for; empty where numpy is enough.
    """

    id: str
    serial: int
    state: CampaignState
    order: Campaign
    reason: str = ""
    step: int = 0
    n_boxes: int = 0
    n_parameters: int = 0
    base_accuracy: float | None = None
    epsilon: float = 0.0
    made_s: float = 0.0
    made_by: str = ""
    evaluation: str = ""
    rounds: tuple[RoundView, ...] = ()
    promotions: tuple[PromotionView, ...] = ()
    n_able: int = 0
    left_out: dict[str, int] = {}
    by_torch: tuple[str, ...] = ()


class CampaignList(msgspec.Struct, frozen=True, kw_only=True):
    """Campaigns, oldest first; `lost`: what a damaged database took, in words."""

    campaigns: tuple[CampaignView, ...]
    lost: str = ""


class BoxTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What one box did in a campaign, by name."""

    box_id: str
    name: str
    n_counted: int = 0
    outcomes: dict[str, int] = {}
    n_bytes_up: int = 0
    n_bytes_down: int = 0
    train_s: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a campaign: `campaign` has every round with its shares; `boxes` the sums of each box."""

    campaign: CampaignView
    boxes: tuple[BoxTotal, ...] = ()
    n_bytes_up: int = 0
    n_bytes_down: int = 0


class LearnedPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a step's weights, and what belongs to all of them.

    Attributes:
        model, version, variant, base_digest: of the base.
        layout: of the weights, without personal tensors.
        lineage: of a model with these weights, the oldest first.
        sha256, n_bytes: of all of them: float32, little-endian.
        first: byte with which `content` begins.
    """

    campaign: str
    step: int
    model: str
    version: str
    variant: str
    base_digest: str
    layout: Layout
    lineage: tuple[LineageStep, ...]
    sha256: str
    n_bytes: int
    first: int
    content: bytes


class RoundsKey(msgspec.Struct, frozen=True, kw_only=True):
    """The public part of the gateway's rounds key, in hex, for `hybrid keys delegate --rounds`."""

    public_key: str
    key_id: str
