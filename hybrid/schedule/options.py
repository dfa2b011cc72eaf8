"""What the caller of a session may ask for."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from hybrid.errors import PlacementUnavailable

Objective = Literal["latency", "throughput", "energy", "bytes"]
Cascading = Literal["auto", "off"]
PlacementKind = Literal["local", "offload", "split"]

_SPLIT_AT = re.compile(r"split:[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Objective and constraints of a session.

    Attributes:
        objective: what the planner minimises: `latency`, `throughput` (the slowest stage), `energy`, `bytes`.
        placement: `auto`, or one forced: `local`, `offload`, `split` (the best interior cut), `split:CUT_ID`.
        codec: `auto`, `none`, a codec's name, or `split:ID` of the model's artifact; a lossy one is used only when it
            is named here or calibrated.
        fallback: when False, a forced placement that cannot be had raises `PlacementUnavailable` and does not run
            locally instead; the first run then waits until the placement is prepared.
        deadline_s: seconds that a run may take before it raises `DeadlinePassed`; None for no limit.
        max_accuracy_drop: ratio (0 to 1) of task accuracy that a calibrated lossy codec may cost.
        raw_input_may_leave: False keeps every tensor of the model's own inputs on this machine.
        max_uplink_bytes_per_s: mean uplink budget; 0 sends nothing, None is no limit.
        cascade: `auto` lets an artifact's small model answer where it is sure enough (within `max_accuracy_drop`), and
            asks the large one at a gateway otherwise; `off` never does.
        push_model: upload a model that the gateway does not hold, in the background; needs a publisher's token.
    """

    objective: Objective = "latency"
    placement: str = "auto"
    codec: str = "auto"
    fallback: bool = True
    deadline_s: float | None = None
    max_accuracy_drop: float = 0.01
    raw_input_may_leave: bool = True
    max_uplink_bytes_per_s: float | None = None
    push_model: bool = False
    cascade: Cascading = "auto"

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective is {self.objective!r}; choose one of {', '.join(get_args(Objective))}")
        if self.placement not in ("auto", *get_args(PlacementKind)) and not _SPLIT_AT.fullmatch(self.placement):
            raise ValueError(
                f"placement is {self.placement!r}; choose auto, local, offload, split, or split:CUT_ID with the"
                " 16 hex digits that `hybrid plan MODEL` prints"
            )
        if self.cascade not in get_args(Cascading):
            raise ValueError(f"cascade is {self.cascade!r}; choose one of {', '.join(get_args(Cascading))}")
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise ValueError(f"deadline_s is {self.deadline_s}; it must be above 0 seconds, or None")
        if not 0 <= self.max_accuracy_drop <= 1:
            raise ValueError(f"max_accuracy_drop is {self.max_accuracy_drop}; it is a ratio from 0 to 1")
        if self.max_uplink_bytes_per_s is not None and self.max_uplink_bytes_per_s < 0:
            raise ValueError(f"max_uplink_bytes_per_s is {self.max_uplink_bytes_per_s}; it cannot be negative")

    @property
    def kind(self) -> str:
        """The forced placement's kind, or `auto`."""
        return self.placement.partition(":")[0]

    @property
    def is_forced(self) -> bool:
        """Whether a remote placement is forced."""
        return self.kind in ("offload", "split")

    @property
    def forced_cut(self) -> str:
        """The forced cut's id, or an empty string."""
        return self.placement.partition(":")[2]


def unavailable(options: Options, why: str) -> PlacementUnavailable:
    """What a forced placement raises that may not fall back."""
    return PlacementUnavailable(
        f"placement {options.placement!r} cannot be had: {why}; wait for it, choose another, or allow fallback",
        placement=options.placement,
    )
