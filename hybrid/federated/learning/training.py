"""Training on a box: plain SGD over features, in pieces of a few milliseconds between which a request may come first.

Design: a generator does a piece and yields, so that whoever drives it decides whether it goes on, waits or ends;
batches that would take long are divided, their gradients summed. All that travels is one vector; what never leaves
(personal layers) another one, trained first.

Sources: McMahan et al.: Communication-efficient learning of deep networks from decentralized data, 2017 (FedAvg);
Li et al.: Federated optimization in heterogeneous networks, 2020 (FedProx); Karimireddy et al.: SCAFFOLD, 2020;
Collins et al.: Exploiting shared representations for personalized federated learning, 2021 (FedRep).
"""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import numpy as np

from hybrid.errors import BadMessage, TensorMismatch, TrainingDiverged
from hybrid.federated.campaign import Training
from hybrid.federated.layout import Layout
from hybrid.federated.learning.evaluation import Between, mean_loss, no_pause, rows_at_once
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.losses import loss_name, loss_of
from hybrid.federated.learning.pieces import driven
from hybrid.federated.learning.program import HeadProgram

_MOST_EPOCHS: Final = 100_000


def is_personal(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a tensor never leaves the box."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def divided(layout: Layout, patterns: tuple[str, ...]) -> tuple[Layout, Layout | None]:
    """What travels, and what never leaves (None where nothing is personal).

    Raises:
        TensorMismatch: nothing would travel.
    """
    pairs = list(zip(layout.names, layout.shapes, strict=True))
    shared = [pair for pair in pairs if not is_personal(pair[0], patterns)]
    kept = [pair for pair in pairs if is_personal(pair[0], patterns)]
    if not shared:
        raise TensorMismatch(
            f"all of {', '.join(layout.names[:5])} would be personal; nothing would be learned together"
        )
    travels = Layout(names=tuple(name for name, _ in shared), shapes=tuple(shape for _, shape in shared))
    if not kept:
        return travels, None
    return travels, Layout(names=tuple(name for name, _ in kept), shapes=tuple(shape for _, shape in kept))


def check_plan(plan: Training, examples: Examples) -> None:
    """Refuse to begin what cannot be done.

    Raises:
        BadMessage: numbers that are no training's.
        TensorMismatch: no examples.
    """
    rates = (plan.learning_rate, plan.momentum, plan.weight_decay, plan.proximal)
    is_counted = 1 <= plan.epochs <= _MOST_EPOCHS and plan.batch >= 1 and plan.max_steps >= 0
    is_below_one = plan.momentum < 1 and 0 <= plan.label_smoothing < 1
    if not is_counted or not all(0 <= rate < math.inf for rate in rates) or not is_below_one:
        raise BadMessage(
            f"a training of {plan.epochs} epochs, batches of {plan.batch}, rate {plan.learning_rate:g}, momentum "
            f"{plan.momentum:g} and label smoothing {plan.label_smoothing:g}; 1 or more, rates from 0 on, momentum and "
            "smoothing from 0 to below 1 are wanted"
        )
    if not len(examples):
        raise TensorMismatch("there is no labelled sample to train on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a box learned.

    Attributes:
        delta: trained less start, float32, in the layout of what travels.
        personal: the personal layers as they are now; empty where there are none.
        n_samples: that it trained on; those with a class that the model has not are left out.
        n_steps: batches; those of the personal layers are not counted.
        loss_before, loss_after: mean over these samples.
    """

    delta: np.ndarray
    personal: np.ndarray
    n_samples: int
    n_steps: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What training begins with.

    Attributes:
        shared: vector of what travels.
        personal: vector of what never leaves; None where nothing is personal.
        correction: added to every gradient of what travels: SCAFFOLD's c - c_i; None without.
        seed: of the order of samples.
        keeps_shared: the personal layers alone learn, beside what travels as it is.
    """

    shared: np.ndarray
    personal: np.ndarray | None = None
    correction: np.ndarray | None = None
    seed: int = 0
    keeps_shared: bool = False


class LocalTraining:
    """One task's training; `pieces` does it, `trained` is what came of it.

    Args:
        program: the head.
        layout: of all that learns.
        examples: at least one.
        plan: how.
        start: what it begins with.

    Raises:
        TensorMismatch: vectors that do not fit the layout, or no examples.
        BadMessage: a plan that nobody can follow.
        ModelUntrainable: the head mixes the samples of a batch.
    """

    def __init__(
        self, program: HeadProgram, layout: Layout, examples: Examples, plan: Training, *,
        start: Start,
    ) -> None:  # fmt: skip
        check_plan(plan, examples)
        shared, personal = divided(layout, plan.personal)
        self._program, self._plan, self._start = program, plan, start
        self._loss = loss_name(examples.targets)
        self._shared = _Part(shared, start.shared)
        self._personal = None if personal is None else _Part(personal, _given(start.personal, personal))
        if start.correction is not None:
            shared.arrays(start.correction)
        self._random = np.random.default_rng(start.seed)
        self._n_steps = 0
        self._losses: list[float] = []
        self.trained: Trained | None = None
        self._examples, self._rows = examples, 1
        if not program.by_torch:  # else it takes too long to be done at once
            driven(self._begin())

    def pieces(self) -> Iterator[None]:
        """Yields after every few milliseconds of work; all is done when it ends.

        Raises:
            TrainingDiverged: loss or weights are not finite.
            TensorMismatch, ModelUntrainable: as the class says, where torch is needed.
        """
        if self._program.by_torch:
            yield from self._begin()
        yield from self._measure()
        if self._personal is not None:
            yield from self._learn(self._personal)
        if not self._start.keeps_shared:
            yield from self._learn(self._shared)
        yield from self._measure()
        before, after = self._losses
        delta = self._shared.vector - self._start.shared
        if not np.isfinite(delta).all():
            raise _diverged(self._plan)
        personal = np.empty(0, np.float32) if self._personal is None else self._personal.vector.copy()
        if not np.isfinite(personal).all():
            raise _diverged(self._plan)
        self.trained = Trained(
            delta=delta, personal=personal, n_samples=len(self._examples), n_steps=self._n_steps, loss_before=before,
            loss_after=after,
        )  # fmt: skip

    def _begin(self) -> Generator[None, None, None]:
        """See that the head can be trained with these samples, and how many at once."""
        program, weights = self._program, self._weights()
        first = self._examples.some(np.arange(min(2, len(self._examples))))[0]
        with np.errstate(all="ignore"):
            yield from program.checked_in_pieces(weights, first)
            scores = yield from program.scores_in_pieces(weights, first)
            self._examples = self._examples.fitting(scores.size // len(first)).together()
            self._rows = yield from rows_at_once(program, weights, self._examples)
        if not len(self._examples):
            raise TensorMismatch("no sample's class is one that the model has; see what its labels are")

    def _weights(self) -> dict[str, np.ndarray]:
        return {**self._shared.arrays, **(self._personal.arrays if self._personal is not None else {})}

    def _measure(self) -> Iterator[None]:
        counting = mean_loss(self._program, self._weights(), self._examples)
        loss = 0.0
        while True:
            try:
                next(counting)
            except StopIteration as done:
                loss = float(done.value)
                break
            yield
        if not np.isfinite(loss):
            raise _diverged(self._plan)
        self._losses.append(loss)

    def _learn(self, part: "_Part") -> Iterator[None]:
        """Epochs over the samples in which one part alone changes."""
        plan, n_steps = self._plan, 0
        is_shared = part is self._shared
        for _ in range(plan.epochs):
            order = self._random.permutation(len(self._examples))
            for first in range(0, len(order), plan.batch):
                if plan.max_steps and n_steps >= plan.max_steps:
                    break
                yield from self._step(part, order[first : first + plan.batch])
                n_steps += 1
        if is_shared:
            self._n_steps = n_steps

    def _step(self, part: "_Part", indices: np.ndarray) -> Iterator[None]:
        weights, total = self._weights(), 0.0
        part.gradient.fill(0)
        for first in range(0, len(indices), self._rows):
            some = indices[first : first + self._rows]
            features, targets = self._examples.some(some)
            loss_at = loss_of(self._loss, targets, n=len(indices), smoothing=self._plan.label_smoothing)
            with np.errstate(all="ignore"):
                loss, found = yield from self._program.gradients_in_pieces(weights, features, loss_at, part.names)
            part.take(found, is_first=first == 0)
            total += loss
            if first + self._rows < len(indices):
                yield
        if not np.isfinite(total):
            raise _diverged(self._plan)
        with np.errstate(all="ignore"):
            self._descend(part)
        yield

    def _descend(self, part: "_Part") -> None:
        plan, gradient = self._plan, part.gradient
        if part is self._shared:
            if plan.proximal:
                gradient += np.float32(plan.proximal) * (part.vector - self._start.shared)
            if self._start.correction is not None:
                gradient += self._start.correction
        if plan.weight_decay:
            gradient += np.float32(plan.weight_decay) * part.vector
        if plan.momentum:
            momentum = np.float32(plan.momentum)
            part.velocity = momentum * part.velocity + gradient
            gradient = part.velocity
        part.vector -= np.float32(plan.learning_rate) * gradient


class _Part:
    """A vector that learns, with its tensors as views of it."""

    def __init__(self, layout: Layout, start: np.ndarray) -> None:
        self.vector = np.array(start, np.float32)
        self.gradient = np.zeros_like(self.vector)
        self.velocity: np.ndarray = np.zeros_like(self.vector)
        self.arrays = layout.arrays(self.vector)
        self._gradients = layout.arrays(self.gradient)
        self.names = frozenset(layout.names)

    def take(self, found: Mapping[str, np.ndarray], *, is_first: bool) -> None:
        for name, gradient in found.items():
            if is_first:
                self._gradients[name][...] = gradient
            else:
                self._gradients[name] += gradient


def _given(vector: np.ndarray | None, layout: Layout) -> np.ndarray:
    if vector is None:
        raise TensorMismatch(f"{', '.join(layout.names[:5])} never leave the box, and no values for them are here")
    return vector


def _diverged(plan: Training) -> TrainingDiverged:
    return TrainingDiverged(
        f"training at a learning rate of {plan.learning_rate:g} left the finite numbers; nothing of it is sent; lower "
        "the learning rate of the campaign"
    )


def train(
    program: HeadProgram, layout: Layout, examples: Examples, plan: Training, *,
    start: Start, between: Between = no_pause,
) -> Trained:  # fmt: skip
    """All of a training in one call.

    Args:
        program, layout, examples, plan, start: as `LocalTraining` takes them.
        between: called after each piece; may block while requests are answered, or raise to give up.

    Raises:
        TensorMismatch, ModelUntrainable, TrainingDiverged: as `LocalTraining`.
    """
    training = LocalTraining(program, layout, examples, plan, start=start)
    for _ in training.pieces():
        between()
    assert training.trained is not None
    return training.trained
