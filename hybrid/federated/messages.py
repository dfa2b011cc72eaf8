"""The messages of a campaign's calls between a box and its gateway, MessagePack; docs/rounds.md has the rules.

Design: on the wire they are arrays without names of fields, since an update of some kilobytes would else carry a tenth
of its size in names; what holds for a whole campaign (`Terms`) is told once. A reader ignores fields behind those that
it knows, and what is missing behind has defaults: new fields go to the end, none is ever taken out.
"""

from typing import Final, Literal

import msgspec

from hybrid.federated.campaign import Coding, Training
from hybrid.federated.layout import Layout
from hybrid.fleet.messages import Message

PROTOCOL: Final = 1
INLINE_BYTES: Final = 64 << 10
"""Weights and updates up to this size travel inside the messages."""
EXACT: Final = -2
"""In place of a held view: the step's own weights, as a candidate has them."""

TaskKind = Literal["train", "evaluate", "secure"]
UpdateState = Literal["accepted", "stale", "rejected", "closed", "gave-up"]
"""What became of an update, for good."""


class Packed(Message, frozen=True, array_like=True):
    """A message without names of fields; immutable."""


class Offer(Packed, frozen=True):
    """A model that the box holds and could train.

    Attributes:
        model, artifact_digest, variant: what answers there now.
        n_samples: labelled samples that it may train on.
    """

    model: str
    artifact_digest: str
    variant: str
    n_samples: int


class Condition(Packed, frozen=True):
    """How the box is: on mains, its link metered, and whether all is well."""

    is_on_mains: bool = True
    is_metered: bool = False
    is_well: bool = True


class Held(Packed, frozen=True):
    """Which view of a campaign the box holds, and with it the campaign's terms; without any it is view 0, the base."""

    campaign: str
    step: int


class TaskCall(Packed, frozen=True):
    """Ask for a task.

    Attributes:
        epoch: of the installation.
        wait_s: how long the answer may take, 0 to 300.
        refused: tasks that the box has given up, since it last asked.
        is_as_before: offers and condition are those of the call before; a gateway that forgot them says so.
    """

    epoch: str
    wait_s: float = 0.0
    offers: tuple[Offer, ...] = ()
    condition: Condition = Condition()
    held: tuple[Held, ...] = ()
    refused: tuple[str, ...] = ()
    is_as_before: bool = False
    protocol: int = PROTOCOL


class Difference(Packed, frozen=True):
    """One link of the chain of views, from `step - 1` to `step`; `form` and `content` as `hybrid.federated.coding`."""

    step: int
    form: str
    content: bytes


class Weights(Packed, frozen=True):
    """How a box comes from what it holds to a step's view.

    Attributes:
        step: the view's.
        sha256: of the view, float32, little-endian.
        whole: the view itself; empty where differences do, or where it is to be fetched.
        differences: from the view that the box holds, in order.
        n_bytes: about as much is to be fetched by `RoundCalls.weights`; 0 where all is here.
        control: SCAFFOLD's server variate as float32; empty without.
    """

    step: int
    sha256: str
    whole: bytes = b""
    differences: tuple[Difference, ...] = ()
    n_bytes: int = 0
    control: bytes = b""


class Terms(Packed, frozen=True):
    """What holds for all tasks of a campaign; boxes keep it as long as they hold one of its views.

    Attributes:
        model, artifact_digest, variant: with what; the box must hold exactly this artifact, or the base that it names.
        layout: of what learns; personal tensors are not in it.
        is_adaptive: whether an update carries the bit that adapts the clip norm.
        is_uniform: whether the number of samples must not be told.
        scaffold: whether control variates are wanted.
        noise, delta, max_epsilon: of the campaign's privacy, for the box's own account; a noise of 0: none is kept.
    """

    model: str
    artifact_digest: str
    variant: str
    layout: Layout
    training: Training = Training()
    coding: Coding = Coding()
    is_adaptive: bool = False
    is_uniform: bool = False
    scaffold: bool = False
    noise: float = 0.0
    delta: float = 1e-5
    max_epsilon: float = 0.0


class Task(Packed, frozen=True):
    """A lease.

    Attributes:
        id: names it for good; unique over all campaigns; the same for the same box and step.
        campaign: which.
        kind: what to do; `evaluate` counts how the head in `weights` (never kept as a view) answers beside the base's.
        weights: the step to begin with.
        terms: of the campaign; None where the box has told that it holds a view of it.
        lease_s: seconds until the lease ends.
        seed: of the box's training.
        clip: norm to which the update is clipped after the residual was added; 0 for none.
        secure: parameters of secure aggregation (`hybrid.federated.secure`), empty without.
    """

    id: str
    campaign: str
    kind: TaskKind
    weights: Weights
    terms: Terms | None = None
    lease_s: float = 0.0
    seed: int = 0
    clip: float = 0.0
    secure: bytes = b""


class TaskAnswer(Packed, frozen=True):
    """A task, or none.

    Attributes:
        poll_after_s: bounds the random pause before the next call.
        ended: campaigns that the box told to hold and may forget.
        is_forgotten: there is no call before for `is_as_before`: ask at once with all of it.
    """

    task: Task | None = None
    poll_after_s: float = 0.0
    ended: tuple[str, ...] = ()
    is_forgotten: bool = False


class UpdateCall(Packed, frozen=True):
    """What a box learned.

    Attributes:
        task, campaign, step: as in the task; the same triple always brings the same bytes.
        form: of the coding.
        content: the update; empty where it was brought as a blob.
        sha256, n_bytes: of the content; the digest may be empty where the content is here.
        control: SCAFFOLD's difference of the device's variate, in the same form; empty without.
        n_samples: that it trained on; 1 where weights are uniform.
        loss_before, loss_after: mean over those samples; 0 where privacy forbids to tell.
        is_below_clip: the bit for adaptive clipping.
        train_s: that training took.
        next: asks for the next task with it; None does not.
    """

    epoch: str
    task: str
    campaign: str
    step: int
    form: str
    sha256: str
    n_bytes: int
    content: bytes = b""
    control: bytes = b""
    n_samples: int = 1
    loss_before: float = 0.0
    loss_after: float = 0.0
    is_below_clip: bool = False
    train_s: float = 0.0
    next: TaskCall | None = None
    protocol: int = PROTOCOL


class UpdateAnswer(Packed, frozen=True):
    """What became of an update; `gate` and `reason` where it does not count; the next task where one was asked for."""

    state: UpdateState
    gate: str = ""
    reason: str = ""
    next: TaskAnswer | None = None


class EvaluationCall(Packed, frozen=True):
    """How a candidate and what answers on the box now did on its samples that no training saw; counts alone.

    Attributes:
        n: samples.
        n_right, n_base_right: right answers of the candidate, and of what answers now, each as it is used there.
        n_lost, n_won: right before and wrong now, and the reverse.
    """

    epoch: str
    task: str
    campaign: str
    step: int
    n: int
    n_right: int
    n_base_right: int
    n_lost: int
    n_won: int
    protocol: int = PROTOCOL


class EvaluationAnswer(Packed, frozen=True):
    """Whether it was taken."""

    state: Literal["accepted", "closed"]


class SecureCall(Packed, frozen=True):
    """One stage of secure aggregation.

    Attributes:
        content: as `hybrid.federated.secure` says; empty asks what comes next.
        wait_s: how long the answer may take.
        attempt: that the content belongs to.
    """

    epoch: str
    task: str
    campaign: str
    stage: str = ""
    content: bytes = b""
    wait_s: float = 0.0
    protocol: int = PROTOCOL
    attempt: int = 1


class SecureAnswer(Packed, frozen=True):
    """What the box must do next: answer `content`; `wait`: ask again; `done` and `excluded` are final.

    `go-on` with stage `again`: the round began anew, and `content` is its invitation.
    """

    state: Literal["go-on", "wait", "done", "excluded"]
    stage: str = ""
    content: bytes = b""
    reason: str = ""


def encoded(message: Message) -> bytes:
    """As it travels."""
    return msgspec.msgpack.encode(message)
