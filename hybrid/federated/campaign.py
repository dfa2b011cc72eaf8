"""What a campaign is to do, as a person ordered it; refused where two of its wishes cannot be had together."""

import math
from typing import Final, Literal

import msgspec

from hybrid.errors import CampaignImpossible

UpForm = Literal["int8", "float32", "int4", "top-k"]
DownForm = Literal["int8", "float32", "top-k"]
Rule = Literal["mean", "norm-clip", "median", "trimmed-mean", "multi-krum"]
OptimizerName = Literal["plain", "momentum", "adam", "yogi"]
PromotionPolicy = Literal["none", "candidate", "rollout"]

LEAST_NOISE: Final = 1e-6
MOST_NOISE: Final = 1e6
LEAST_CLIP: Final = 1e-9
MOST_CLIP: Final = 1e9
LEAST_DELTA: Final = 1e-300
"""Beyond these, figures of privacy and whole steps of sums are no numbers any more."""
MOST_MASKED: Final = 1024
"""Boxes of one masked round."""
ROBUST: Final[frozenset[Rule]] = frozenset({"median", "trimmed-mean", "multi-krum"})
"""Rules that must see each update; clipping to a norm works on a stream."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """How a box trains.

    Attributes:
        epochs: over its samples.
        batch: samples a step.
        learning_rate: of plain SGD.
        momentum, weight_decay: of it.
        proximal: FedProx's mu.
        max_steps: 0 for no bound.
        personal: patterns of names (fnmatch) of tensors that never leave the box.
        label_smoothing: share of each label that is spread over all classes; of cross-entropy alone. Losses are told
            without it.
    """

    epochs: int = 5
    batch: int = 16
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal: float = 0.0
    max_steps: int = 0
    personal: tuple[str, ...] = ()
    label_smoothing: float = 0.0


class Aggregation(msgspec.Struct, frozen=True, kw_only=True):
    """How updates become a step.

    Attributes:
        rule: over the updates.
        share: of trimmed-mean and multi-krum: the share of updates that may be bad.
        optimizer: of the server.
        learning_rate: of it; 1 for plain.
        momentum: of `momentum`; adam's and yogi's first decay.
        scaffold: control variates; every box weighs the same.
        weights: of the updates; `samples` believes what boxes say of theirs.
        max_staleness: 0 is synchronous.
    """

    rule: Rule = "mean"
    share: float = 0.2
    optimizer: OptimizerName = "plain"
    learning_rate: float = 1.0
    momentum: float = 0.9
    scaffold: bool = False
    weights: Literal["samples", "uniform"] = "samples"
    max_staleness: int = 0


class Coding(msgspec.Struct, frozen=True, kw_only=True):
    """Forms on the wire; `share` of the elements where a form is top-k."""

    up: UpForm = "int8"
    down: DownForm = "int8"
    share: float = 0.01


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody may learn.

    Attributes:
        secure: the gateway sees sums only.
        noise: multiplier of the Gaussian noise on a sum of clipped updates; 0 for none.
        clip: norm to which boxes clip; the first one where it adapts; 0 for none.
        is_adaptive: whether it follows the median norm.
        delta: of epsilon.
        max_epsilon: of this campaign and of each box over all campaigns of the model; 0 for no budget.
    """

    secure: bool = False
    noise: float = 0.0
    clip: float = 0.0
    is_adaptive: bool = False
    delta: float = 1e-5
    max_epsilon: float = 0.0


class Cohort(msgspec.Struct, frozen=True, kw_only=True):
    """Which boxes; `roster`: None, or the signed roster's bytes."""

    tags: dict[str, str] = {}
    least_samples: int = 1
    power: Literal["mains", "any"] = "mains"
    is_metered_allowed: bool = False
    roster: bytes | None = None


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the result; `tolerance` in shares of accuracy (0 to 1) below the base; `stages` in percent."""

    policy: PromotionPolicy = "candidate"
    tolerance: float = 0.0
    stages: tuple[int, ...] = (5, 30, 100)
    cohort_evaluation: bool = True


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign's order.

    Attributes:
        model, version, variant: what learns.
        rounds: how many steps at most.
        target: accuracy on the evaluation set at which it is done; 0 for none.
        goal: updates that close a round.
        least: with which a round may close at its deadline; 0: half of the goal, at least 2.
        over_selection: leases for each update of the goal.
        deadline_s: of a round.
        lease_s: of a task.
        most_abandoned: rounds in a row.
        seed: of everything that is drawn, but for secrets and noise.
    """

    model: str
    version: str
    variant: str
    rounds: int = 20
    target: float = 0.0
    goal: int = 8
    least: int = 0
    over_selection: float = 1.3
    deadline_s: float = 3600.0
    lease_s: float = 900.0
    most_abandoned: int = 5
    seed: int = 0
    training: Training = Training()
    aggregation: Aggregation = Aggregation()
    coding: Coding = Coding()
    privacy: Privacy = Privacy()
    cohort: Cohort = Cohort()
    promotion: Promotion = Promotion()

    @property
    def n_least(self) -> int:
        """Updates with which a round may close at its deadline."""
        return self.least or min(self.goal, max(2, math.ceil(self.goal / 2)))

    @property
    def n_leases(self) -> int:
        """Tasks that may be out at once."""
        return math.ceil(self.goal * self.over_selection)

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            CampaignImpossible: says what and why.
        """
        for is_wrong, why in (*self._wrong_numbers(), *self._wrong_pairs()):
            if is_wrong:
                raise CampaignImpossible(why)

    def _wrong_numbers(self) -> tuple[tuple[bool, str], ...]:
        training, aggregation, privacy = self.training, self.aggregation, self.privacy
        return (
            (self.seed < 0, f"the seed is {self.seed}, 0 or more is possible"),
            (self.rounds < 1 or self.goal < 1, f"{self.rounds} rounds with a goal of {self.goal}: both are 1 or more"),
            (not 0 <= self.least <= self.goal, f"a round closes with {self.least} of {self.goal} updates at least"),
            (not 1.0 <= self.over_selection <= 10.0, f"over-selection is {self.over_selection}, 1 to 10 is possible"),
            (not (self.deadline_s > 0 and self.lease_s > 0), "a deadline and a lease are more than 0 s"),
            (not 0.0 <= self.target <= 1.0, f"the target accuracy is {self.target}, 0 to 1 is possible"),
            (training.epochs < 1 or training.batch < 1, "a box trains for an epoch or more, a sample a step or more"),
            (training.max_steps < 0, f"a task has {training.max_steps} steps at most; 0 is for no bound"),
            (self.most_abandoned < 1, f"{self.most_abandoned} rounds are begun anew in a row; 1 or more is possible"),
            (not 0 < training.learning_rate < math.inf, f"the learning rate is {training.learning_rate}"),
            (training.proximal < 0 or training.weight_decay < 0, "proximal and weight decay are 0 or more"),
            (
                not 0 <= training.label_smoothing < 1,
                f"label smoothing is {training.label_smoothing:g}, 0 to below 1 is possible",
            ),
            (not 0 <= training.momentum < 1 or not 0 <= aggregation.momentum < 1, "momentum is 0 to below 1"),
            (not 0 < aggregation.learning_rate < math.inf, f"the server's rate is {aggregation.learning_rate}"),
            (not 0 < aggregation.share < 0.5, f"a share of {aggregation.share} bad updates: 0 to 0.5 can be borne"),
            (aggregation.max_staleness < 0, f"a staleness of {aggregation.max_staleness} steps"),
            (not 0 < self.coding.share <= 1, f"top-k of a share of {self.coding.share}; it is above 0, at most 1"),
            (not 0 <= privacy.max_epsilon < math.inf, "a budget of epsilon is 0 for none, or more"),
            (
                privacy.noise != 0 and not LEAST_NOISE <= privacy.noise <= MOST_NOISE,
                f"noise is 0 for none, or {LEAST_NOISE:g} to {MOST_NOISE:g} clip norms, not {privacy.noise:g}",
            ),
            (
                privacy.clip != 0 and not LEAST_CLIP <= privacy.clip <= MOST_CLIP,
                f"a clip norm is 0 for none, or {LEAST_CLIP:g} to {MOST_CLIP:g}, not {privacy.clip:g}",
            ),
            (
                not 0 <= self.promotion.tolerance <= 1,
                f"a result may lie 0 to 1 of accuracy below the base, not {self.promotion.tolerance:g}",
            ),
            (
                not LEAST_DELTA <= privacy.delta < 1,
                f"delta is {privacy.delta}; above {LEAST_DELTA:g}, below 1 is possible",
            ),
            *(
                (not math.isfinite(value), f"{name} is {value}: a finite number is wanted")
                for name, value in _floats(self)
            ),
        )

    def _wrong_pairs(self) -> tuple[tuple[bool, str], ...]:
        aggregation, coding, privacy = self.aggregation, self.coding, self.privacy
        is_robust, is_stale = aggregation.rule in ROBUST, aggregation.max_staleness > 0
        by_samples = aggregation.weights == "samples"
        return (
            (privacy.secure and is_stale, "secure aggregation needs rounds of one step: set max_staleness to 0"),
            (privacy.secure and coding.up == "top-k", "secure aggregation adds all elements: take int8, not top-k"),
            (privacy.secure and aggregation.scaffold, "secure aggregation and SCAFFOLD cannot be had together"),
            (
                privacy.secure and aggregation.rule != "mean",
                f"{aggregation.rule} must see each update, secure aggregation shows sums only: take the mean",
            ),
            (privacy.secure and by_samples, "secure aggregation shows no numbers of samples: take uniform weights"),
            (privacy.secure and privacy.clip == 0, "secure aggregation needs a clip norm: its common scale"),
            (privacy.secure and self.goal < 3, f"a sum of {self.goal} updates hides nobody: a goal of 3 or more"),
            (
                privacy.secure and self.goal > MOST_MASKED,
                f"a masked round has {MOST_MASKED} boxes at most, a goal of {self.goal} is wanted",
            ),
            (privacy.noise > 0 and by_samples, "noise hides a box only with uniform weights"),
            (privacy.noise > 0 and privacy.clip == 0, "noise needs a clip norm"),
            (privacy.noise > 0 and is_robust, f"the noise is made for means, not for {aggregation.rule}"),
            (privacy.noise > 0 and aggregation.scaffold, "SCAFFOLD's control variates would leave without noise"),
            (privacy.max_epsilon > 0 and privacy.noise == 0, "a budget of epsilon needs noise"),
            (
                aggregation.rule == "multi-krum" and self.goal < 3,
                f"multi-krum compares 3 updates, the goal is {self.goal}",
            ),
            (aggregation.scaffold and is_stale, "SCAFFOLD's variates belong to one step: set max_staleness to 0"),
            (aggregation.scaffold and bool(self.training.personal), "SCAFFOLD and personal tensors exclude each other"),
            (
                aggregation.scaffold and by_samples,
                "SCAFFOLD's variates are a plain mean of all boxes': take uniform weights",
            ),
            (
                aggregation.scaffold and (aggregation.rule != "mean" or aggregation.optimizer != "plain"),
                f"SCAFFOLD takes means and plain steps, not {aggregation.rule} with {aggregation.optimizer}",
            ),
            (aggregation.scaffold and privacy.clip > 0, "a clip norm would shorten SCAFFOLD's variates: leave it out"),
            (
                privacy.noise > 0 and aggregation.rule == "norm-clip",
                "with noise each update is clipped already: take the mean, not norm-clip",
            ),
            (
                privacy.is_adaptive and privacy.noise == 0,
                "the clip norm adapts by a noisy count: it needs noise",
            ),
            (
                coding.up == "top-k" and aggregation.rule in {"median", "trimmed-mean"},
                f"most boxes leave most elements out of top-k, and {aggregation.rule} keeps those at zero: take int8",
            ),
            (
                self.cohort.roster is not None and not privacy.secure,
                "a roster is for secure aggregation: it keeps invented boxes out of a sum",
            ),
        )


def _floats(order: Campaign) -> list[tuple[str, float]]:
    """Every number with a fraction in an order, by its name."""
    groups = (order, order.training, order.aggregation, order.coding, order.privacy, order.promotion)
    named = [(name, value) for group in groups for name, value in msgspec.structs.asdict(group).items()]
    return [(name, value) for name, value in named if isinstance(value, float)]
