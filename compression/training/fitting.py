"""Training of one module on a training set: a part is held out, the weights that answer it best are kept.

Design: torch's settings stay the caller's (threads, seed); with one seed and on one kind of machine the same weights
come out, unless a budget of time ends it sooner. It can be interrupted between two steps: `stepped` may raise, and
the given module has not been touched.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import torch

from compression.errors import NotTrainable
from compression.training.answering import answers, arguments, device_of, evaluating, outputs_of, seeded
from compression.training.distilling import Features, Objective, features_of, holds_probabilities
from compression.training.fit_recipe import FitRecipe
from compression.training.training_set import TrainingSet

Stepped = Callable[[int, int], object]
"""Called after each step with the steps done and all steps as far as known; what it raises ends the training."""

Ended = Literal["whole", "early", "budget", "diverged"]
_MOST_HELD_OUT: Final = 2000
_MOST_KEPT_BYTES: Final = 64 * 2**20
_TIMED_STEPS: Final = 5


class Score(NamedTuple):
    """Answers to the held out part: the share of right ones (0 where there are no classes), and the loss."""

    right: float
    loss: float

    def better_than(self, other: "Score") -> bool:
        """More right answers, or as many at a smaller loss."""
        return (self.right, -self.loss) > (other.right, -other.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained module.

    Attributes:
        module: a copy with the best weights, in evaluation mode.
        before, after: the held out part's answers of the given and of the best weights.
        n_epochs: epochs that were done.
        seconds: how long it took.
        ended: `whole`, `early` (no better answers), `budget` (of time), `diverged` (the loss was no number any more).
    """

    module: torch.nn.Module
    before: Score
    after: Score
    n_epochs: int
    seconds: float
    ended: Ended


def fit(
    module: torch.nn.Module,
    training_set: TrainingSet,
    *,
    teacher: torch.nn.Module | None = None,
    recipe: FitRecipe | None = None,
    seed: int = 0,
    budget_s: float | None = None,
    stepped: Stepped | None = None,
) -> Fitted:
    """Trains a copy of a module, towards the labels and a teacher; without labels the training set's module teaches.

    Args:
        module: what learns; left as it is.
        training_set: samples; a part of them, drawn by the seed, is held out.
        teacher: answers the same inputs with outputs of the same shapes, or None.
        recipe: see `FitRecipe`.
        seed: of everything that is drawn.
        budget_s: the schedule is shortened to end in this time.
        stepped: see `Stepped`.

    Raises:
        NotTrainable: no parameter, or nothing to learn from.
        InvalidTrainingSet: what the module and the training set have does not fit.
    """
    recipe = recipe or FitRecipe()
    if teacher is None and training_set.labels is None:
        teacher = training_set.module
    learner = copy.deepcopy(module)
    if not any(one.requires_grad for one in learner.parameters()):
        raise NotTrainable("the module has no parameter to train: all are frozen, or there is none")
    with seeded(seed) as chance:
        return _Fit(learner, training_set, teacher, recipe, chance).run(budget_s, stepped)


class _Fit:
    """One training under way."""

    def __init__(
        self,
        learner: torch.nn.Module,
        training_set: TrainingSet,
        teacher: torch.nn.Module | None,
        recipe: FitRecipe,
        chance: torch.Generator,
    ) -> None:
        self._learner = learner
        self._set = training_set
        self._recipe = recipe
        self._chance = chance
        order = torch.randperm(training_set.n_samples, generator=chance).numpy()
        n_held_out = min(max(int(len(order) * recipe.held_out_ratio), 1), _MOST_HELD_OUT)
        self._held_out, self._trained = np.sort(order[:n_held_out]), order[n_held_out:]
        self._teacher = None if teacher is None else _Teacher(teacher, training_set, recipe)
        with evaluating(training_set.module):
            scores = outputs_of(training_set.module(*training_set.example(8)))[0]
        probabilities = holds_probabilities(scores)
        self._objective = Objective(training_set, recipe, with_teacher=teacher is not None, probabilities=probabilities)
        self._optimizer = torch.optim.AdamW(_groups(learner, recipe.weight_decay), lr=recipe.learning_rate)

    def run(self, budget_s: float | None, stepped: Stepped | None) -> Fitted:
        start_s = time.perf_counter()
        before = best = self._score()
        kept = _weights(self._learner)
        clock = _Clock(self._n_steps() * self._recipe.epochs, budget_s)
        n_epochs, n_worse, ended = 0, 0, "whole"
        with ExitStack() as hooks:
            features = hooks.enter_context(features_of(self._learner, self._recipe.features))
            while not clock.over and ended == "whole":
                if not self._epoch(clock, features, stepped):
                    ended = "diverged"
                    break
                n_epochs += 1
                score = self._score()
                n_worse = n_worse + 1 if clock.progress > self._recipe.rise_ratio else 0
                if score.better_than(best):
                    best, kept, n_worse = score, _weights(self._learner), 0
                if n_worse >= self._recipe.patience and not clock.over:
                    ended = "early"
        self._learner.load_state_dict(kept)
        self._learner.eval()
        if stepped is not None:
            stepped(clock.done, clock.done)
        return Fitted(
            module=self._learner,
            before=before,
            after=best,
            n_epochs=n_epochs,
            seconds=time.perf_counter() - start_s,
            ended="budget" if ended == "whole" and clock.shortened else ended,  # type: ignore[arg-type]
        )

    def _epoch(self, clock: "_Clock", features: Features, stepped: Stepped | None) -> bool:
        """Once over the samples, or until the time is over; False where the loss was no number."""
        self._learner.train()
        order = self._trained[torch.randperm(len(self._trained), generator=self._chance).numpy()]
        for start in range(0, self._n_steps() * self._recipe.batch, self._recipe.batch):
            if clock.over:
                break
            for group in self._optimizer.param_groups:
                group["lr"] = self._recipe.rate(clock.progress)
            index = order[start : start + self._recipe.batch]
            loss = self._loss(index, features)
            if not math.isfinite(float(loss.detach())):
                return False
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self._learner.parameters(), self._recipe.clip_norm)
            self._optimizer.step()
            clock.tick()
            if stepped is not None:
                stepped(clock.done, clock.total)
        return True

    def _loss(self, index: np.ndarray, features: Features) -> torch.Tensor:
        batch = arguments(self._learner, self._set.inputs, index)
        if self._set.augment is not None:
            batch = self._set.augment(batch, self._chance)
        wanted, wanted_features = self._taught(index, batch)
        answer = self._learner(*batch)
        return self._objective(answer, self._labels(index), wanted, (features, wanted_features))

    def _score(self) -> Score:
        """The learner's answers to the held out part."""
        right, loss, n_classed = 0.0, 0.0, 0
        with evaluating(self._learner):
            for start in range(0, len(self._held_out), self._recipe.batch):
                index = self._held_out[start : start + self._recipe.batch]
                batch = arguments(self._learner, self._set.inputs, index)
                answer, labels = self._learner(*batch), self._labels(index)
                wanted, _ = self._taught(index, batch)
                loss += float(self._objective(answer, labels, wanted, ({}, {}))) * len(index)
                if labels is not None and self._objective.classes:
                    right += float((outputs_of(answer)[0].argmax(1) == labels).float().sum())
                    n_classed += labels.numel()
        loss /= len(self._held_out)
        return Score(right / max(n_classed, 1), loss if math.isfinite(loss) else math.inf)

    def _labels(self, index: np.ndarray) -> torch.Tensor | None:
        if self._set.labels is None:
            return None
        labels = torch.from_numpy(np.array(self._set.labels[index])).to(device_of(self._learner))
        return labels.long() if self._objective.classes else labels

    def _taught(self, index: np.ndarray, batch: tuple[torch.Tensor, ...]) -> tuple[Sequence[torch.Tensor], Features]:
        return ((), {}) if self._teacher is None else self._teacher.answer(index, batch)

    def _n_steps(self) -> int:
        """Batches of an epoch; a last one of a single sample is left out, normalisations need two."""
        whole, rest = divmod(len(self._trained), self._recipe.batch)
        return whole + (rest >= 2)


class _Teacher:
    """Answers of a module that is not trained; computed once for all samples where no sample is ever changed."""

    def __init__(self, module: torch.nn.Module, training_set: TrainingSet, recipe: FitRecipe) -> None:
        self._module = module
        self._names = recipe.features
        self._kept: tuple[torch.Tensor, ...] | None = None
        with evaluating(module):
            few = outputs_of(module(*training_set.example(2)))
        n_bytes = sum(one.nbytes for one in few) // 2 * training_set.n_samples
        if training_set.augment is None and not recipe.features and n_bytes <= _MOST_KEPT_BYTES:
            self._kept = answers(module, training_set.inputs, batch=recipe.batch)

    def answer(self, index: np.ndarray, batch: tuple[torch.Tensor, ...]) -> tuple[Sequence[torch.Tensor], Features]:
        """Outputs and features for these samples, which are those of the batch."""
        if self._kept is not None:
            return [one[torch.from_numpy(index)].to(batch[0].device) for one in self._kept], {}
        with evaluating(self._module), features_of(self._module, self._names) as features:
            return outputs_of(self._module(*batch)), dict(features)


class _Clock:
    """Steps done and steps in all; with a budget, as many as are affordable at the pace so far."""

    def __init__(self, n_steps: int, budget_s: float | None) -> None:
        self._whole = self.total = n_steps
        self._budget_s = budget_s
        self._start_s = time.perf_counter()
        self.done = 0

    @property
    def over(self) -> bool:
        return self.done >= self.total

    @property
    def progress(self) -> float:
        return self.done / max(self.total, 1)

    @property
    def shortened(self) -> bool:
        return self.total < self._whole

    def tick(self) -> None:
        self.done += 1
        if self._budget_s is None or self.done < min(_TIMED_STEPS, self._whole):
            return
        elapsed_s = time.perf_counter() - self._start_s
        affordable = int((self._budget_s - elapsed_s) * self.done / max(elapsed_s, 1e-9))
        self.total = min(self._whole, self.done + max(affordable, 0))


def _groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay, biases and normalisations do not."""
    trained = [one for one in module.parameters() if one.requires_grad]
    return [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
