"""What a model version's lineage says: how it was learned, and the epsilon of any one box; never who took part."""

import math
from collections.abc import Iterable

import msgspec

from hybrid.errors import BadMessage
from hybrid.federated.privacy.accountant import epsilon_for

_WORD = "learned"


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """How a version was learned.

    Attributes:
        rounds: steps from the base to here.
        boxes: different boxes that took part.
        secure: whether the gateway saw sums only, in every round.
        delta: of epsilon.
        cost: mu squared of the box that took part most often, all campaigns that led from the publisher's version to
        here
            added up; inf where a campaign had no noise.
    """

    rounds: int
    boxes: int
    secure: bool
    delta: float
    cost: float

    @property
    def epsilon(self) -> float:
        """Of any one box; inf where nothing is promised."""
        return epsilon_for(self.cost, self.delta) if math.isfinite(self.cost) else math.inf

    def detail(self) -> str:
        """As a lineage step has it: `learned rounds=20 boxes=10 secure=no epsilon=4.984 delta=1e-05 mu=…`.

        Epsilon is rounded up; mu, by which later campaigns add theirs, stands in full.
        """
        epsilon = math.ceil(self.epsilon * 1000.0) / 1000.0 if math.isfinite(self.epsilon) else math.inf
        return (
            f"{_WORD} rounds={self.rounds} boxes={self.boxes} secure={'yes' if self.secure else 'no'} "
            f"epsilon={epsilon:.3f} delta={self.delta:g} mu={math.sqrt(self.cost)!r}"
        )


def read(detail: str) -> Statement | None:
    """The statement of a lineage step's detail; None where the step is of another kind.

    Raises:
        BadMessage: it begins as a statement and is none.
    """
    word, *pairs = detail.split(" ")
    if word != _WORD:
        return None
    try:
        fields = dict(pair.split("=", 1) for pair in pairs)
        mu = float(fields["mu"])
        statement = Statement(
            rounds=int(fields["rounds"]),
            boxes=int(fields["boxes"]),
            secure={"yes": True, "no": False}[fields["secure"]],
            delta=float(fields["delta"]),
            cost=mu * mu,
        )
    except (ValueError, KeyError) as exc:
        raise BadMessage(f"a lineage step begins as a statement of learning and is none: {detail[:200]!r}") from exc
    if not mu >= 0.0 or not 0.0 < statement.delta < 1.0:
        raise BadMessage(f"a statement of learning has mu {mu} and delta {statement.delta}")
    return statement


def spent_before(details: Iterable[str]) -> float:
    """Mu squared that the base's lineage already holds: what its last statement says, 0 where it was never learned."""
    cost = 0.0
    for detail in details:
        statement = read(detail)
        if statement is not None:
            cost = statement.cost
    return cost
