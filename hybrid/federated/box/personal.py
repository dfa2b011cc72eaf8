"""Personal layers beside a version: fitted to what it shares, and used where it answers better with them than without.

Design: a box's layers were trained beside the step that it saw last, and the version that comes home is often another
one. So they are trained on for a moment beside what that shares, which stays as it is, and both ways are judged on the
samples that no training sees. A box that took no part begins with what was shipped.

Source: Collins et al.: Exploiting shared representations for personalized federated learning, 2021.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from hybrid.errors import TensorMismatch, TrainingDiverged
from hybrid.federated.campaign import Training
from hybrid.federated.layout import Layout
from hybrid.federated.learning.evaluation import Counts, compare
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.program import Arrays, HeadProgram
from hybrid.federated.learning.training import Start, divided, train

LEAST_APART: Final = 5
"""Samples that no training sees, to judge by: one or two of one class would speak for layers that know no other."""

MOST_STEPS: Final = 2_000
"""Batches of one fitting, whatever the campaign's plan says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What personal layers are to answer with.

    Attributes:
        program: the head.
        layout: of all that learns.
        arrays: all of it as the version was shipped, shared and personal.
    """

    program: HeadProgram
    layout: Layout
    arrays: Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Personal layers beside a version.

    Attributes:
        vector: of them.
        plain: how the version answers the samples that are kept apart.
        personal: how it does with these layers.
    """

    vector: np.ndarray
    plain: Counts
    personal: Counts

    @property
    def is_better(self) -> bool:
        """Whether they are to be used: more of enough answers right, or as many at a loss that is not higher."""
        if self.plain.n < LEAST_APART:
            return False
        if self.personal.n_right != self.plain.n_right:
            return self.personal.n_right > self.plain.n_right
        return bool(self.personal.loss <= self.plain.loss)  # nothing is below what is no number


def fitted(
    beside: Beside,
    training: Training,
    personal: np.ndarray | None,
    trained_on: Examples,
    held_out: Examples,
    *,
    seed: int,
    between: Callable[[], None],
) -> Fitted:
    """Fit a box's personal layers to a version, by the campaign's plan, and judge them.

    Args:
        beside: the version.
        training: of the campaign that they are of.
        personal: as its last task left them; None on a box that took no part: as the version was shipped.
        trained_on: labelled samples; without any the layers stay as they are.
        held_out: those that no training sees.
        seed: of the order of samples.
        between: called between small steps; may stand still, or raise to give up.

    Raises:
        TensorMismatch: nothing of this head is personal by this plan, or the layers are of another shape.
        ModelUntrainable, BadMessage: as training says.
    """
    shared, kept = divided(beside.layout, training.personal)
    if kept is None:
        raise TensorMismatch(f"no tensor of this head is called {', '.join(training.personal[:5])}: none is personal")
    if personal is None:
        personal = kept.vector({name: beside.arrays[name] for name in kept.names})
    if personal.shape != (kept.n_elements,):
        raise TensorMismatch(f"{personal.size} numbers are kept as personal, this head has {kept.n_elements} such")
    vector = _trained_on(beside, training, personal, shared, trained_on, seed=seed, between=between)
    mine = dict(beside.arrays) | kept.arrays(vector)
    found = compare(beside.program, beside.arrays, mine, held_out, between=between)
    return Fitted(vector=vector, plain=found.base, personal=found.candidate)


def _trained_on(
    beside: Beside,
    training: Training,
    personal: np.ndarray,
    shared: Layout,
    examples: Examples,
    *,
    seed: int,
    between: Callable[[], None],
) -> np.ndarray:
    """The layers after a training in which nothing else learns; as they were where it came to no numbers."""
    if not len(examples):
        return personal
    most = min(training.max_steps or MOST_STEPS, MOST_STEPS)
    plan = msgspec.structs.replace(training, max_steps=most)
    start = Start(
        shared=shared.vector({name: beside.arrays[name] for name in shared.names}),
        personal=personal,
        seed=seed,
        keeps_shared=True,
    )
    try:
        return train(beside.program, beside.layout, examples, plan, start=start, between=between).personal
    except TrainingDiverged:
        return personal
