"""A campaign that runs, in memory: its open round, its leases, what it still wants; no I/O and no clock of its own."""

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cloud_gateway.rounds.kept.steps import Steps
from cloud_gateway.rounds.kept.store import CampaignRow, ReceivedRow
from cloud_gateway.rounds.messages import ENDED, PromotionView, RoundView
from hybrid.federated.aggregation.gates import Gates, Limits
from hybrid.federated.aggregation.scaffold import paired
from hybrid.federated.campaign import Campaign
from hybrid.federated.coding.catalog import form
from hybrid.federated.coding.form import Form
from hybrid.federated.layout import Layout
from hybrid.federated.messages import Terms, Weights
from hybrid.federated.privacy.account import has_left

_MANY: Final = 1 << 30
_NORMS: Final = 64


@dataclass(slots=True)
class Lease:
    """A task that a box has: until when, by the loop's clock, and the payload that went with it."""

    until_s: float
    n_bytes_down: int = 0


@dataclass(slots=True)
class Course:
    """One campaign as the desk sees it.

    Attributes:
        row: what is kept of it.
        steps: its steps.
        round: the open one.
        opened_s: when that began, by the loop's clock.
        leases: by box.
        received: updates that began with a step that still counts, by (step, box).
        counted: updates of the open round, by box, in the order in which they came.
        rounds: those that closed.
        writing: boxes whose update is on its way to the disk.
        given_up: boxes that gave up the task of this round.
        outcomes: of the open round, what became of updates that came.
        gates: what every update must pass.
        base_norm: L2 norm of step 0, by which the gates judge until they know norms of updates.
        spent: mu squared of each box, over all campaigns of the model.
        learned: artifact digests of versions that were learned from the same base.
        candidate_step: a step that boxes evaluate; None for none. `candidate_weights`: its weights.
        promotion: of that step; `is_promoting`: it is being made a version.
        evaluated: what boxes counted of it; `declined`: those that cannot.
        closing: the round closes, or a person changes its state; nothing is taken in meanwhile.
        lock: held by who closes or changes.
        trouble: why a round could not be closed; tried again.
        serial: another number after each change.
        n_down: payload of weights in the open round; `n_up`: of what boxes brought to a masked one, by box.
    """

    row: CampaignRow
    steps: Steps
    gates: Gates
    round: RoundView
    opened_s: float = 0.0
    base_norm: float = 0.0
    leases: dict[str, Lease] = field(default_factory=dict)
    received: dict[tuple[int, str], ReceivedRow] = field(default_factory=dict)
    counted: dict[str, ReceivedRow] = field(default_factory=dict)
    rounds: list[RoundView] = field(default_factory=list)
    writing: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    spent: dict[str, float] = field(default_factory=dict)
    learned: set[str] = field(default_factory=set)
    candidate_step: int | None = None
    candidate_weights: Weights | None = None
    promotion: PromotionView | None = None
    is_promoting: bool = False
    declined: set[str] = field(default_factory=set)
    evaluated: dict[str, dict[str, int]] = field(default_factory=dict)
    closing: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    trouble: str = ""
    serial: int = 1
    n_down: int = 0
    n_up: Counter[str] = field(default_factory=Counter)

    @property
    def id(self) -> str:
        """The campaign's."""
        return self.row.id

    @property
    def order(self) -> Campaign:
        """What a person ordered."""
        return self.row.order

    @property
    def layout(self) -> Layout:
        """Of what learns."""
        assert self.row.layout is not None
        return self.row.layout

    @property
    def is_running(self) -> bool:
        """Whether tasks are given."""
        return self.row.state == "running"

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it will ever go on."""
        return self.row.state in ENDED

    @property
    def is_half_closed(self) -> bool:
        """Whether the process ended while this round was being closed: what counts in it is drawn, and no more does."""
        is_masked = self.order.privacy.secure  # its sum comes first
        return self.round.state == "closing" and not self.closing and not is_masked

    @property
    def update_layout(self) -> Layout:
        """Of an update's content: with SCAFFOLD the controls lie behind the weights."""
        return paired(self.layout) if self.order.aggregation.scaffold else self.layout

    @property
    def parts(self) -> dict[str, slice] | None:
        """Places of an update whose norms are held apart."""
        n_elements = self.layout.n_elements
        if not self.order.aggregation.scaffold:
            return None
        return {"weights": slice(0, n_elements), "control": slice(n_elements, 2 * n_elements)}

    @property
    def up(self) -> Form:
        """The form of updates."""
        return form(self.order.coding.up, self.order.coding.share)

    @property
    def terms(self) -> Terms:
        """What a box is told once."""
        order = self.order
        return Terms(
            model=order.model,
            artifact_digest=self.row.base_digest,
            variant=order.variant,
            layout=self.layout,
            training=order.training,
            coding=order.coding,
            is_adaptive=order.privacy.is_adaptive,
            is_uniform=order.aggregation.weights == "uniform",
            scaffold=order.aggregation.scaffold,
            noise=order.privacy.noise,
            delta=order.privacy.delta,
            max_epsilon=order.privacy.max_epsilon,
        )

    # Leases.

    @property
    def n_least(self) -> int:
        """Updates with which a round may close; multi-Krum compares three or more."""
        return max(self.order.n_least, 3 if self.order.aggregation.rule == "multi-krum" else 1)

    @property
    def most_at_once(self) -> int:
        """Leases and counted updates together."""
        return math.ceil(self.order.goal * self.order.over_selection - 1e-9)

    def clip_at(self, step: int) -> float:
        """The norm to which boxes clipped that began with this step; one that adapts was another then."""
        return next((each.clip for each in self.rounds if each.number == step + 1), self.row.clip)

    def expire(self, now_s: float) -> bool:
        """Forget leases whose time is over; whether there were any."""
        over = [box_id for box_id, lease in self.leases.items() if lease.until_s <= now_s]
        for box_id in over:
            del self.leases[box_id]
        return bool(over)

    def has_room(self) -> bool:
        """Whether one more box may begin."""
        return len({*self.leases, *self.paying, *self.writing}) < self.most_at_once

    def can_pay(self, box_id: str) -> bool:
        """Whether what a box has left pays for a round: other campaigns of the model charge it meanwhile."""
        return has_left(self.order.privacy, self.spent.get(box_id, 0.0))

    @property
    def paying(self) -> list[str]:
        """Boxes whose update of the open round can still count."""
        return [box_id for box_id in self.counted if self.can_pay(box_id)]

    def is_done_with(self, box_id: str) -> bool:
        """Whether a box has nothing to do before the next step."""
        return (
            box_id in self.counted
            or box_id in self.writing
            or box_id in self.given_up
            or (self.row.step, box_id) in self.received
            or not self.can_pay(box_id)
        )

    def lease(self, box_id: str, now_s: float, weights_bytes: int) -> float:
        """Give a box the task of this step, or the same again; seconds until it ends."""
        known = self.leases.get(box_id)
        if known is None:
            known = self.leases[box_id] = Lease(now_s + self.order.lease_s)
        known.n_bytes_down += weights_bytes
        self.n_down += weights_bytes
        self.serial += 1
        return max(1.0, known.until_s - now_s)

    def give_up(self, box_id: str) -> bool:
        """A box gives its task up; whether that frees a place."""
        self.given_up.add(box_id)
        return self.leases.pop(box_id, None) is not None

    # Updates.

    def staleness(self, step: int) -> int:
        """By how many steps the model went on since this one."""
        return self.row.step - step

    @property
    def known_steps(self) -> dict[int, int]:
        """Steps that an update may begin with, each with its staleness."""
        least = max(0, self.row.step - self.order.aggregation.max_staleness)
        return {step: self.row.step - step for step in range(least, self.row.step + 1)}

    def note(self, row: ReceivedRow) -> None:
        """What came is on the disk."""
        self.received[row.step, row.box_id] = row
        self.leases.pop(row.box_id, None)
        name = f"rejected:{row.body.gate}" if row.outcome == "rejected" else row.outcome
        self.outcomes[name] += 1
        if row.outcome == "accepted":
            self.counted[row.box_id] = row
        self.serial += 1

    def shown(self, now_s: float) -> RoundView:
        """The open round as it stands."""
        rows = [row.body for row in self.counted.values()]
        told = [row.loss_before for row in rows if row.loss_before > 0]
        return msgspec.structs.replace(
            self.round,
            n_leases=len(self.leases),
            n_counted=len(self.counted),
            outcomes=dict(self.outcomes),
            n_bytes_up=sum(row.n_bytes for row in rows) + sum(self.n_up.values()),
            n_bytes_down=self.round.n_bytes_down + self.n_down,
            loss=sum(told) / len(told) if told else None,
            clip=self.row.clip,
            seconds=self.round.seconds + (now_s - self.opened_s),
        )

    def wants_closing(self, now_s: float, cohort: Iterable[str]) -> bool:
        """Whether enough came, nobody is left who could bring more, or the time is over; masked rounds keep their own.

        Args:
            now_s: by the loop's clock.
            cohort: ids of its boxes; read only where it decides.
        """
        if not self.is_running or self.closing or self.writing or self.order.privacy.secure:
            return False
        n_paying = len(self.paying)
        if n_paying >= self.order.goal or self.is_over(now_s):
            return True
        return n_paying >= self.n_least and all(self.is_done_with(box_id) for box_id in cohort)

    def is_over(self, now_s: float) -> bool:
        """Whether the round's time is over."""
        return now_s >= self.opened_s + self.order.deadline_s

    def open(self, view: RoundView, now_s: float) -> None:
        """The next round begins, or the same anew; what came for the same step stays."""
        is_anew = view.number == self.round.number
        self.round, self.opened_s = view, now_s
        self.given_up.clear()
        self.n_down = 0
        if not is_anew:
            self.counted.clear()
            self.outcomes.clear()
            self.n_up.clear()
            least = min(self.known_steps)
            self.received = {key: row for key, row in self.received.items() if key[0] >= least}
            if self.order.aggregation.max_staleness == 0:
                self.leases.clear()
        self.serial += 1


def gates_of(order: Campaign, before: Sequence[ReceivedRow] = ()) -> Gates:
    """The gates of a campaign, remembering the norms of updates that passed before."""
    limits = Limits(
        max_staleness=order.aggregation.max_staleness,
        updates_per_window=_MANY,  # the desk counts calls
    )
    passed = [row.body.norms for row in before if row.outcome != "rejected" and row.body.norms]
    names = passed[-1] if passed else {}
    norms = {name: [each[name] for each in passed[-_NORMS:] if name in each] for name in names}
    return Gates.from_bytes(msgspec.msgpack.encode({"n_accepted": len(passed), "norms": norms}), limits)
