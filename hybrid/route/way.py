"""The ways through a gateway: a cut with its head, and one way for each codec that may carry what crosses."""

from dataclasses import dataclass, field

from compression.codecs.level_names import LevelNames
from hybrid.artifact.splits import SplitFiles
from hybrid.partition.cut import Cut
from hybrid.route.engine import EngineRun
from hybrid.route.holding import Holding
from hybrid.schedule.prospect import Prospect
from hybrid.wire.split_coding import SplitCoder

MOST_REFUSALS = 3
"""A crossing that the gateway refused so often for its own sake is not tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The device's part of a split.

    Attributes:
        run: the engine's run of the head model.
        inputs: names of the model's inputs that the head reads.
        crossing: names of the tensors that cross; those that the head does not compute are inputs of the model.
        computed: names that the head computes: crossing tensors and outputs of the whole model.
        n_levels: of the levels that it can answer with as well; 0 for a plain head.
        levels: what it calls them.
        coder: encodes what crosses, where the head belongs to a split of the artifact; None where codecs do.
    """

    run: EngineRun
    inputs: tuple[str, ...]
    crossing: tuple[str, ...]
    computed: tuple[str, ...]
    n_levels: int = 0
    levels: tuple[LevelNames, ...] = ()
    coder: SplitCoder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The gateway's part of a split, open on this device too: what goes on from the activation that the head left.

    Attributes:
        run: the engine's run of the tail model.
        inputs: names of the tensors that it goes on from: those that cross.
        rest_s: its profiled seconds.
    """

    run: EngineRun
    inputs: tuple[str, ...]
    rest_s: float = 0.0


@dataclass(slots=True, eq=False)
class Crossing:
    """One cut through one gateway, with its own parts or those of a split of the artifact.

    Attributes:
        holding: the gateway.
        cut: where the model is cut; None stands for the input cut, which needs no head.
        split: what takes the place of the cut's own head and codecs; None where nothing does.
        head: the open head; None for the input cut, and while it is not worth keeping one.
        rest: what the device goes on with after the head; None where it begins anew from the inputs.
        refusals: how often the gateway refused it, for reasons of the crossing's own.
        is_timed: whether its head and encodings were timed.
        verified: whether a composed inference over it matched the whole model; a split's, whose outputs are meant to
            differ, whether it gave outputs of the right form.
        ways: one for each codec; a split has one.
    """

    holding: Holding
    cut: Cut | None
    split: SplitFiles | None = None
    head: Head | None = None
    rest: Rest | None = None
    refusals: int = 0
    is_timed: bool = False
    verified: bool = False
    ways: "list[Way]" = field(default_factory=list)

    @property
    def place(self) -> tuple[Holding, str, str]:
        """What tells it from other crossings of its route."""
        split = self.split.digest if self.split is not None else ""
        return self.holding, self.cut.id if self.cut is not None else "", split

    @property
    def has_own_head(self) -> bool:
        """Whether its head is the cut's own, from whose activation the device may go on."""
        return self.split is None or "head" not in self.split.files

    @property
    def head_id(self) -> str:
        """What tells its head from others of its route."""
        if self.split is not None and not self.has_own_head:
            return self.split.digest
        return self.cut.id if self.cut is not None else ""

    @property
    def can_run(self) -> bool:
        """Whether a request could take it now."""
        return self.cut is None or self.head is not None


@dataclass(slots=True, eq=False)
class Way:
    """A crossing with one codec, and what the planner knows of it."""

    prospect: Prospect
    crossing: Crossing

    @property
    def holding(self) -> Holding:
        """The gateway."""
        return self.crossing.holding
