"""What may leave this machine, for requests, trials and probes alike."""

from time import monotonic

from hybrid.route.uplink import UplinkBudget
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import Constraints

LOSSLESS = ("none", "lossless", "lossless-webp")
"""Codecs that give every bit back."""


class Allowance:
    """The constraints of a session's options, and the uplink budget that all who send share.

    Args:
        options: the session's.
    """

    def __init__(self, options: Options) -> None:
        limit = options.max_uplink_bytes_per_s
        self._budget = UplinkBudget(limit) if limit is not None else None
        self._constraints = Constraints(
            max_accuracy_drop=options.max_accuracy_drop,
            raw_input_may_leave=options.raw_input_may_leave,
            lossy_allowed=options.codec not in ("auto", *LOSSLESS),
        )

    def constraints(self) -> Constraints:
        """What a plan must keep now."""
        if self._budget is None:
            return self._constraints
        return Constraints(
            max_accuracy_drop=self._constraints.max_accuracy_drop,
            raw_input_may_leave=self._constraints.raw_input_may_leave,
            lossy_allowed=self._constraints.lossy_allowed,
            uplink_left_bytes=self._budget.left_bytes(monotonic()),
        )

    def permitting(self) -> Constraints:
        """The constraints that hold whatever the moment: what they refuse need not be measured."""
        return self._constraints

    def spend(self, n_bytes: int) -> None:
        """Counts what was sent."""
        if self._budget is not None:
            self._budget.spend(n_bytes, monotonic())

    def forked(self) -> None:
        """In a forked child: whoever held a lock stayed with the parent."""
        if self._budget is not None:
            self._budget.forked()
