"""What one box has spent on one model: kept on the box and at the gateway, and never in a manifest.

A charge belongs to (campaign, step) and is written in the transaction that chooses which updates count, before any
noise is drawn: charging again changes nothing, so that a retry or a restart counts once, and a gateway that dies before
it released anything has charged too much, never too little.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from hybrid.errors import BadMessage, Conflict, PrivacySpent
from hybrid.federated.campaign import Privacy
from hybrid.federated.privacy.accountant import budget_of, cost_of, epsilon_for, fits, noise_for

SCHEMA: Final = 1
MAX_ACCOUNT_BYTES: Final = 4 << 20


class Account(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The charges of one box, in mu squared (`accountant.cost_of`).

    Attributes:
        schema: of its encoded form.
        open: {campaign: {step: cost}} of campaigns that may still charge.
        closed: {campaign: cost} of those that ended.
    """

    schema: int = SCHEMA
    open: dict[str, dict[int, float]] = {}
    closed: dict[str, float] = {}

    @property
    def cost(self) -> float:
        """All that it spent."""
        return math.fsum((*self.closed.values(), *(cost for steps in self.open.values() for cost in steps.values())))

    def cost_in(self, campaign: str) -> float:
        """What it spent in one campaign."""
        return self.closed.get(campaign, math.fsum(self.open.get(campaign, {}).values()))

    def charge(self, campaign: str, step: int, cost: float) -> bool:
        """Writes a charge down; False where exactly this one stands already.

        Raises:
            Conflict: the step was charged otherwise, or the campaign is closed.
        """
        if campaign in self.closed:
            raise Conflict(f"campaign {campaign!r} is closed: nothing can be charged to it any more")
        steps = self.open.setdefault(campaign, {})
        seen = steps.get(step)
        if seen is None:
            steps[step] = cost
            return True
        if seen != cost:
            raise Conflict(f"step {step} of {campaign!r} was charged {seen:g} (mu squared), now {cost:g} is asked")
        return False

    def close(self, campaign: str) -> None:
        """Adds up the charges of a campaign that has ended; closing twice changes nothing."""
        if campaign not in self.closed:
            self.closed[campaign] = math.fsum(self.open.pop(campaign, {}).values())

    def encoded(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decoded(cls, data: bytes) -> "Account":
        """The account that these bytes say.

        Raises:
            BadMessage: too many bytes, not JSON of this schema, or a cost that is none.
        """
        if len(data) > MAX_ACCOUNT_BYTES:
            raise BadMessage(f"an account has {len(data)} bytes where {MAX_ACCOUNT_BYTES} are allowed")
        try:
            account = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
            raise BadMessage(f"an account is not JSON of schema {SCHEMA}: {exc}") from exc
        costs = [*account.closed.values(), *(cost for steps in account.open.values() for cost in steps.values())]
        if account.schema != SCHEMA or not all(0.0 <= cost < math.inf for cost in costs):
            raise BadMessage(
                f"an account of schema {account.schema} with costs that are none; schema {SCHEMA} is wanted"
            )
        return account


def has_left(privacy: Privacy, spent: float) -> bool:
    """Whether a box that spent so much (mu squared) may take part once more; asked before it gets a lease."""
    if privacy.noise == 0.0 or privacy.max_epsilon == 0.0:
        return True
    return fits(spent + cost_of(privacy.noise), budget_of(privacy.max_epsilon, privacy.delta))


def check_round(privacy: Privacy, spent: Mapping[str, float], n_least: int) -> None:
    """Refuses a round that too few boxes could take part in without going over the budget.

    Args:
        spent: mu squared of each box of the cohort, over all campaigns of the model.
        n_least: boxes that the round needs.

    Raises:
        PrivacySpent: says what was spent, what is asked, what is left and what to do.
    """
    able = [box for box, cost in spent.items() if has_left(privacy, cost)]
    if len(able) >= n_least or len(spent) < n_least:  # too few boxes at all is somebody else's refusal
        return
    delta, cost = privacy.delta, cost_of(privacy.noise)
    ranked = sorted(spent.values())
    nearest = ranked[n_least - 1]
    left = max(0.0, budget_of(privacy.max_epsilon, delta) - nearest)
    raise PrivacySpent(
        f"{len(able)} of {len(spent)} boxes have enough privacy left for another round, {n_least} are needed. The "
        f"{n_least} that spent least stand at epsilon {epsilon_for(nearest, delta):.3g} of {privacy.max_epsilon:g} "
        f"(delta {delta:g}), one round at noise {privacy.noise:g} would bring them to "
        f"{epsilon_for(nearest + cost, delta):.3g}; "
        + (
            f"noise {_rounded_up(math.sqrt(1.0 / left)):g} or more would still fit"
            if left > 0.0
            else "nothing is left, whatever the noise"
        )
        + ". Stop here and keep the model, wait for boxes that took part less, or begin a campaign with more noise or "
        "a larger max_epsilon, knowing what that says",
        n_able=len(able),
        n_wanted=n_least,
        epsilon_spent=epsilon_for(nearest, delta),
        epsilon_wanted=epsilon_for(nearest + cost, delta),
        epsilon_max=privacy.max_epsilon,
    )


def check_campaign(privacy: Privacy, rounds: int) -> None:
    """Refuses terms under which a box that never took part in anything cannot take part once.

    Raises:
        PrivacySpent: with the noise that all rounds would need.
    """
    if privacy.noise == 0.0 or privacy.max_epsilon == 0.0 or has_left(privacy, 0.0):
        return
    raise PrivacySpent(
        f"one round at noise {privacy.noise:g} costs epsilon {epsilon_for(cost_of(privacy.noise), privacy.delta):.3g} "
        f"at delta {privacy.delta:g}, more than the budget of {privacy.max_epsilon:g}: for {rounds} rounds take noise "
        f"{_rounded_up(noise_for(privacy.max_epsilon, privacy.delta, rounds)):g} or more, or fewer rounds",
        epsilon_max=privacy.max_epsilon,
    )


def _rounded_up(x: float) -> float:
    """To three digits."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 2)
    return math.ceil(x / unit) * unit
