"""What every update must pass before it counts, always on: each refusal is counted and says its gate and its reason.

In order, the cheap ones first: rate of the device, duplicate, base version, shape, finite, norm. The norm is held
against the running median of the norms accepted before; while fewer than `n_known_norms` are known, only
`first_norm_ratio` times the norm of the base bounds it, so the round looks again, at all its updates together, when it
closes (`outliers`). The median of the last norms follows training, in which updates shrink; it holds while fewer than
half of them are an attacker's. Where nothing but refusals for the norm came for a while, it is the fleet that has
changed (other data, a model that was reset): the median is forgotten and learnt anew, as at the beginning, or, where
none was known yet, the base bounds no more and the closing round alone judges.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from hybrid.errors import BadMessage
from hybrid.federated.aggregation.rules import norm
from hybrid.federated.layout import Layout

Gate = Literal["rate", "duplicate", "base", "shape", "finite", "norm"]
GATES: Final[tuple[Gate, ...]] = ("rate", "duplicate", "base", "shape", "finite", "norm")
WHOLE: Final = "update"
_MAX_NORMS: Final = 64
_MAX_REFUSED_IN_A_ROW: Final = 10
"""By the norm, without one accepted between."""
_LEAST_MEAN_SQUARE: Final = 0.1 * 0.1
"""Of a base's weights, as far as they bound first updates."""
_MAX_SEEN: Final = 4096
"""Pairs of (device, task); older ones are of versions that the gate of the base knows no more."""
_MAX_DEVICES: Final = 10_000


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the gates close.

    Attributes:
        norm_ratio: an update's norm over the running median. Honest ones on unlike data (digits, Dirichlet 0.1, top-k
            with error feedback) came to 2.6 at most.
        n_known_norms: accepted norms before the median counts.
        first_norm_ratio: until then: an update's norm over the norm of the base's weights; as if their root mean
            square were 0.1 where it is less (a head that begins near zero).
        max_staleness: versions between base and newest; 0 takes fresh updates only.
        updates_per_window: accepted ones from one device.
        window_s: of the rate.
    """

    norm_ratio: float = 4.0
    n_known_norms: int = 5
    first_norm_ratio: float = 10.0
    max_staleness: int = 0
    updates_per_window: int = 60
    window_s: float = 60.0


class Offer(NamedTuple):
    """An update that knocks: from which device, for which task, and from which version it started."""

    device: str
    task: str
    base_version: int


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Which gate did not open, and why: what was seen, what was wanted."""

    gate: Gate
    reason: str


class Accepted(NamedTuple):
    """Norms of the parts (or of the whole, as `update`), and how many versions the base is behind."""

    norms: dict[str, float]
    n_versions_behind: int


class _State(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    n_accepted: int = 0
    n_rejected: dict[str, int] = {}
    norms: dict[str, list[float]] = {}
    n_refused_in_a_row: int = 0
    is_bounded_by_base: bool = True
    seen: list[tuple[str, str]] = []
    times_s: dict[str, list[float]] = {}


class Gates:
    """All that is remembered of earlier updates."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = _State()
        self._seen: dict[tuple[str, str], None] = {}

    @property
    def n_accepted(self) -> int:
        """Updates that passed."""
        return self._state.n_accepted

    @property
    def n_rejected(self) -> dict[Gate, int]:
        """Updates that did not, by gate."""
        return {gate: self._state.n_rejected.get(gate, 0) for gate in GATES}

    def judge(
        self,
        offer: Offer,
        vector: np.ndarray,
        layout: Layout,
        *,
        versions: Mapping[int, int],
        now_s: float,
        base_norm: float = 0.0,
        parts: Mapping[str, slice] | None = None,
    ) -> Accepted | Rejection:
        """Whether an update counts; if so, it is remembered.

        Args:
            offer: who sends it and what for.
            vector: decoded; anything.
            layout: of the round.
            versions: base versions that are known, with the count of versions that came after each.
            now_s: of one clock that does not go back; after a restart it may begin anew.
            base_norm: of the base's weights, 0 if unknown.
            parts: places of the vector whose norms are held apart, such as the two halves of SCAFFOLD's.
        """
        rejection = self._known(offer, versions, now_s) or self._fitting(vector, layout)
        norms: dict[str, float] = {}
        if rejection is None:
            norms = {name: norm(vector[place]) for name, place in (parts or {WHOLE: slice(None)}).items()}
            rejection = self._bounded(vector, norms, base_norm)
        if rejection is not None:
            if rejection.gate == "norm":
                self._doubt_the_median()
            return self.refuse(rejection.gate, rejection.reason)
        self._remember(offer, norms, now_s)
        return Accepted(norms, versions[offer.base_version])

    def refuse(self, gate: Gate, reason: str) -> Rejection:
        """Counts a refusal that was found elsewhere: bytes that did not decode are the gate `shape`'s."""
        self._state.n_rejected[gate] = self._state.n_rejected.get(gate, 0) + 1
        return Rejection(gate=gate, reason=reason)

    def outliers(self, norms: Sequence[Mapping[str, float]]) -> tuple[int, ...]:
        """Which of a closing round's accepted updates are too large beside each other: indices to leave out.

        For the first rounds, when an update was accepted before enough were known; with fewer than three updates there
        is nothing to compare. They are no known norms any more; the round counts each by `refuse("norm", …)`.
        """
        if len(norms) < 3:
            return ()
        medians = {name: statistics.median(each[name] for each in norms) for name in norms[0]}
        limits = {name: self._limits.norm_ratio * median for name, median in medians.items() if median > 0}
        found = tuple(index for index, each in enumerate(norms) if any(each[name] > limits[name] for name in limits))
        for name, length in ((name, length) for index in found for name, length in norms[index].items()):
            known = self._state.norms.get(name, [])
            if length in known:
                known.remove(length)
        return found

    def _doubt_the_median(self) -> None:
        self._state.n_refused_in_a_row += 1
        if self._state.n_refused_in_a_row >= _MAX_REFUSED_IN_A_ROW:
            self._state.is_bounded_by_base = bool(self._state.norms)
            self._state.norms, self._state.n_refused_in_a_row = {}, 0

    def _known(self, offer: Offer, versions: Mapping[int, int], now_s: float) -> Rejection | None:
        limits = self._limits
        recent = [at_s for at_s in self._state.times_s.get(offer.device, ()) if now_s - limits.window_s < at_s <= now_s]
        if len(recent) >= limits.updates_per_window:
            seen = f"{len(recent)} updates from {offer.device} in {limits.window_s:g} s"
            return Rejection(gate="rate", reason=f"{seen}: {limits.updates_per_window} are allowed")
        if (offer.device, offer.task) in self._seen:
            return Rejection(gate="duplicate", reason=f"{offer.device} has already sent its update for {offer.task}")
        behind = versions.get(offer.base_version)
        if behind is None:
            return Rejection(gate="base", reason=f"base version {offer.base_version} is not one of this round's")
        if behind > limits.max_staleness:
            return Rejection(
                gate="base",
                reason=f"base version {offer.base_version} is {behind} behind: {limits.max_staleness} may be",
            )
        return None

    @staticmethod
    def _fitting(vector: np.ndarray, layout: Layout) -> Rejection | None:
        if vector.shape != (layout.n_elements,) or vector.dtype != np.float32:
            wanted = f"float32 ({layout.n_elements},) was wanted"
            return Rejection(gate="shape", reason=f"an update is {vector.dtype} {vector.shape}: {wanted}")
        return None

    def _bounded(self, vector: np.ndarray, norms: Mapping[str, float], base_norm: float) -> Rejection | None:
        limits = self._limits
        for name, length in norms.items():
            if not math.isfinite(length):
                n_wrong = int((~np.isfinite(vector)).sum())
                return Rejection(gate="finite", reason=f"{n_wrong} of {len(vector)} elements are not finite")
            known = self._state.norms.get(name, [])
            median = statistics.median(known) if len(known) >= limits.n_known_norms else 0.0
            if median > 0:  # of updates that say nothing yet, any other would be too large
                ratio, beside = limits.norm_ratio, "times the running median"
                limit = ratio * median
            elif self._state.is_bounded_by_base:
                ratio, beside = limits.first_norm_ratio, "times its base's"
                limit = ratio * max(base_norm, math.sqrt(_LEAST_MEAN_SQUARE * len(vector)))
            else:
                continue
            if length > limit:
                return Rejection(
                    gate="norm", reason=f"the norm {length:.3g} ({name}) is over {limit:.3g}, {ratio:g} {beside}"
                )
        return None

    def _remember(self, offer: Offer, norms: Mapping[str, float], now_s: float) -> None:
        state, limits = self._state, self._limits
        state.n_accepted += 1
        state.n_refused_in_a_row = 0
        for name, length in norms.items():
            state.norms[name] = [*state.norms.get(name, ()), length][-_MAX_NORMS:]
        self._seen[offer.device, offer.task] = None
        while len(self._seen) > _MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        times_s = [at_s for at_s in state.times_s.pop(offer.device, ()) if now_s - limits.window_s < at_s <= now_s]
        state.times_s[offer.device] = [*times_s, now_s]
        while len(state.times_s) > _MAX_DEVICES:
            del state.times_s[next(iter(state.times_s))]

    def to_bytes(self) -> bytes:
        """What is remembered, for the store; the limits are the round's."""
        self._state.seen = list(self._seen)
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def from_bytes(cls, data: bytes, limits: Limits) -> "Gates":
        """The gates that remember what these did.

        Raises:
            BadMessage: bytes that `to_bytes` does not write.
        """
        gates = cls(limits)
        try:
            gates._state = msgspec.msgpack.decode(data, type=_State)
        except msgspec.MsgspecError as error:
            raise BadMessage(f"{len(data)} bytes are no state of gates: {error}") from error
        gates._seen = dict.fromkeys(gates._state.seen)
        return gates
