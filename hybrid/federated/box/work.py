"""A task's work: train from the view, clip, code with what is left over, and say what stays on the box.

Design: what clipping cuts off is gone, and what rounding lost goes into the next update (`Left.residual`), whichever
step that begins with. A clipped update is at most as long as the bound also once it is rounded: gateways check that.
A SCAFFOLD variate owes nothing: it moves by what the content says of it, so that the gateway's stays the mean of all
boxes', and the next training finds what is missing anew (kept in the residual, a late one would count twice).

Source: Seide et al. 2014, Karimireddy et al. 2019 (error feedback); McMahan et al. 2018 (clipping whole updates).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.aggregation.scaffold import control_change, halves, paired
from hybrid.federated.box.personal import Beside, fitted
from hybrid.federated.box.views import vector_of
from hybrid.federated.campaign import Training
from hybrid.federated.coding.catalog import TOP_K, form
from hybrid.federated.coding.form import Encoded, target
from hybrid.federated.layout import Layout
from hybrid.federated.learning.evaluation import Comparison, compare
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import Head
from hybrid.federated.learning.program import Arrays, HeadProgram
from hybrid.federated.learning.training import Start, Trained, divided, train
from hybrid.federated.messages import Task, Terms
from hybrid.federated.privacy.clipping import clipped, norm_of

_N_TRIES: Final = 8
_SHORTER: Final = 1.0 - 2.0**-12
_MOST_SEED: Final = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnable:
    """What a box may train of one model.

    Attributes:
        program: the head.
        layout: of all that learns.
        arrays: as the installed artifact has them.
    """

    program: HeadProgram
    layout: Layout
    arrays: Arrays

    @classmethod
    def of(cls, head: Head) -> "Learnable":
        """Without the body, which is needed for features only."""
        return cls(program=head.program, layout=head.layout, arrays=head.arrays)

    def shared(self, terms: Terms) -> np.ndarray:
        """The artifact's own head, as far as it travels: the view of step 0 where the artifact is the base.

        Raises:
            TensorMismatch: the campaign's layout is not this head's.
        """
        layout, _ = self.parts(terms)
        return layout.vector({name: self.arrays[name] for name in layout.names})

    def parts(self, terms: Terms) -> tuple[Layout, Layout | None]:
        """What travels and what never leaves. Raises `TensorMismatch` as `shared`."""
        travels, personal = divided(self.layout, terms.training.personal)
        if travels != terms.layout:
            raise TensorMismatch(f"the campaign learns {terms.layout.names}, this model's head has {travels.names}")
        return travels, personal


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a campaign leaves on a box between tasks; None for what there is not.

    Attributes:
        residual: what coding has not sent yet.
        control: SCAFFOLD's variate of this box.
        personal: tensors that never leave.
    """

    residual: np.ndarray | None = None
    control: np.ndarray | None = None
    personal: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """An update, and what it leaves.

    Attributes:
        form, content: of the update.
        n_samples, loss_before, loss_after, is_below_clip: as the call has them; nothing is told that must not be.
        left: from now on; its control variate only once the update has counted.
        seen: the training itself; it stays on the box.
    """

    form: str
    content: bytes
    n_samples: int
    loss_before: float
    loss_after: float
    is_below_clip: bool
    left: Left
    seen: Trained


def wire_layout(terms: Terms) -> Layout:
    """Of what travels up: with control variates twice as much."""
    return paired(terms.layout) if terms.scaffold else terms.layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One task on one box; every method blocks.

    Attributes:
        task, terms: what is asked.
        learnable: of the model.
        left: by the campaign's tasks before.
    """

    task: Task
    terms: Terms
    learnable: Learnable
    left: Left

    def trained(self, view: np.ndarray, examples: Examples, between: Callable[[], None]) -> Trained:
        """The training.

        Args:
            view: to begin with.
            examples: of this box.
            between: called between small steps; may stand still, or raise to give up.

        Raises:
            TensorMismatch, ModelUntrainable, TrainingDiverged, BadMessage: as they say.
        """
        task, terms, learnable = self.task, self.terms, self.learnable
        _, kept = learnable.parts(terms)
        personal = self.left.personal
        if kept is not None and (personal is None or personal.shape != (kept.n_elements,)):
            personal = kept.vector({name: learnable.arrays[name] for name in kept.names})
        correction = None
        if terms.scaffold:
            server, own = self._controls()
            correction = server - own
        start = Start(shared=view, personal=personal, correction=correction, seed=_seed(task, b"order"))
        return train(learnable.program, learnable.layout, examples, terms.training, start=start, between=between)

    def learned(self, found: Trained) -> Learned:
        """The update of a training.

        Raises:
            TensorMismatch: it is not finite.
        """
        terms = self.terms
        vector, control = found.delta, self.left.control
        if terms.scaffold:
            server, own = self._controls()
            change = control_change(found.delta, server, found.n_steps, _rate(terms.training))
            vector, control = np.concatenate([found.delta, change]), own + change
        encoded, norm = self._coded(vector)
        residual = encoded.residual
        if terms.scaffold and control is not None:
            owed, unsaid = halves(residual)
            residual, control = np.concatenate([owed, np.zeros_like(unsaid)]), control - unsaid
        return Learned(
            form=terms.coding.up,
            content=encoded.content,
            n_samples=1 if terms.is_uniform else found.n_samples,
            loss_before=0.0 if terms.is_uniform else found.loss_before,
            loss_after=0.0 if terms.is_uniform else found.loss_after,
            is_below_clip=bool(self.task.clip > 0 and norm <= self.task.clip),
            left=Left(residual=residual, control=control, personal=found.personal if found.personal.size else None),
            seen=found,
        )

    def compared(
        self,
        now: Arrays,
        candidate: np.ndarray,
        trained_on: Examples | None,
        held_out: Examples,
        between: Callable[[], None],
    ) -> Comparison:
        """How what would answer here answers beside what answers now, on samples that no training saw.

        Args:
            now: all that learns, as it answers here; personal layers that are in use among it.
            candidate: what travels of the candidate. The campaign's personal layers count as they would be used: fitted
                to it on this box, and not at all where it answers better without.
            trained_on: what personal layers are fitted to; None where this box shall have none.
            held_out: the others.
            between: as in `trained`.
        """
        learnable, personal = self.learnable, self.left.personal
        layout, kept = learnable.parts(self.terms)
        would = dict(learnable.arrays) | layout.arrays(candidate)
        if kept is not None and trained_on is not None:
            if personal is not None and personal.size != kept.n_elements:
                personal = None
            seed = _seed(self.task, b"fitting")
            beside = Beside(program=learnable.program, layout=learnable.layout, arrays=would)
            found = fitted(beside, self.terms.training, personal, trained_on, held_out, seed=seed, between=between)
            if found.is_better:
                would |= kept.arrays(found.vector)
        return compare(learnable.program, now, would, held_out, between=between)

    def _controls(self) -> tuple[np.ndarray, np.ndarray]:
        """SCAFFOLD's variates: the server's, and this box's."""
        layout, own = self.terms.layout, self.left.control
        zero = np.zeros(layout.n_elements, np.float32)
        said = self.task.weights.control
        return vector_of(said, layout) if said else zero, own if own is not None and own.shape == zero.shape else zero

    def _coded(self, vector: np.ndarray) -> tuple[Encoded, float]:
        """The coded update, and its norm before it was clipped."""
        layout, clip, residual = wire_layout(self.terms), self.task.clip, self.left.residual
        if residual is not None and residual.shape != vector.shape:
            residual = None
        coding = self.terms.coding
        coder, rng = form(coding.up, coding.share), np.random.default_rng(_seed(self.task, b"rounding"))
        if clip <= 0:
            return coder.encode(vector, layout, rng, residual), 0.0
        short, norm = clipped(target(vector, layout, residual), clip)
        for _ in range(_N_TRIES):
            encoded = coder.encode(short, layout, rng)
            length = norm_of(coder.decode(encoded.content, layout))
            if length <= clip:
                return encoded, norm
            short = (short * np.float32(clip / length * _SHORTER)).astype(np.float32)
        return coder.encode(np.zeros_like(short), layout, rng), norm


def given_back(terms: Terms, form_text: str, content: bytes, residual: np.ndarray | None) -> np.ndarray | None:
    """The residual after an update that did not count.

    What top-k said is mostly owed from before, and is owed again. Dense forms say all at once: the next training, from
    newer weights, finds the same anew, and a slow box would add up all that it ever learned until its norm is refused.
    So it is with SCAFFOLD's variates, whatever the form: the box's own has not moved.
    """
    if form_text != TOP_K:
        return residual
    try:
        said = form(form_text, terms.coding.share).decode(content, wire_layout(terms))
    except BadMessage:
        return residual
    if terms.scaffold:
        halves(said)[1][:] = 0.0
    return said if residual is None or residual.shape != said.shape else residual + said


def _rate(training: Training) -> float:
    """The step width that a control variate is reckoned with; momentum makes steps longer."""
    return training.learning_rate / (1.0 - training.momentum)


def _seed(task: Task, what: bytes) -> int:
    said = f"{task.seed}/{task.id}/".encode() + what
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") % _MOST_SEED
