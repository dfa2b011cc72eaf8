"""What a learner is drawn towards: labels, a teacher's softened scores or plain outputs, a teacher's features.

Design: only scores whose labels are classes are compared as distributions; every other output by its squared distance,
relative to the teacher's variance, so that nothing is guessed about what a number means.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch.nn import functional

from compression.errors import InvalidTrainingSet
from compression.training.answering import outputs_of
from compression.training.fit_recipe import FitRecipe
from compression.training.training_set import Loss, TrainingSet

Features = dict[str, torch.Tensor]
_LEAST: Final = 1e-8


class Objective:
    """The loss of a batch, a smaller one being better.

    Args:
        training_set: whose labels and loss count.
        recipe: shares and temperature.
        with_teacher: whether a teacher's answers will be there.
        probabilities: whether the first output holds probabilities rather than scores.
    """

    def __init__(
        self, training_set: TrainingSet, recipe: FitRecipe, *, with_teacher: bool, probabilities: bool = False
    ) -> None:
        self._recipe = recipe
        self._loss: Loss | None = training_set.loss
        self.classes = training_set.labels is not None and training_set.loss is None
        self._probabilities = probabilities
        self._share = 0.0 if not with_teacher else recipe.kd_share if training_set.labels is not None else 1.0

    def __call__(
        self,
        answer: Any,
        labels: torch.Tensor | None,
        teacher: Sequence[torch.Tensor],
        features: tuple[Features, Features],
    ) -> torch.Tensor:
        """One number of what the learner returned, the labels, the teacher's outputs, and both features."""
        outputs = outputs_of(answer)
        loss = outputs[0].new_zeros(())
        if self._share < 1 and labels is not None:
            loss = loss + (1 - self._share) * self._hard(answer, outputs, labels)
        if self._share > 0 and teacher:
            loss = loss + self._share * self._soft(outputs, teacher)
        mine, wanted = features
        for name, feature in mine.items():
            loss = loss + self._recipe.feature_weight / len(mine) * feature_distance(feature, wanted[name])
        return loss

    def _hard(self, answer: Any, outputs: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        if self._loss is not None:
            return self._loss(answer, labels)
        return functional.cross_entropy(self._scores(outputs[0]), labels, label_smoothing=self._recipe.label_smoothing)

    def _soft(self, outputs: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = [relative_distance(mine, wanted) for mine, wanted in zip(outputs, teacher, strict=True)]
        if self.classes:
            parts[0] = soft_cross_entropy(self._scores(outputs[0]), self._scores(teacher[0]), self._recipe.temperature)
        return torch.stack(parts).sum()

    def _scores(self, output: torch.Tensor) -> torch.Tensor:
        return output.clamp_min(_LEAST).log() if self._probabilities else output


def soft_cross_entropy(mine: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence of two rows of scores at this temperature, by its square, so that gradients keep their size."""
    log_mine, log_wanted = ((scores / temperature).log_softmax(1) for scores in (mine, wanted))
    by_row = (log_wanted.exp() * (log_wanted - log_mine)).sum(1)
    return by_row.mean() * temperature**2


def relative_distance(mine: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared difference, relative to the variance of what is wanted; 0 for outputs that are no numbers."""
    if not mine.is_floating_point():
        return mine.new_zeros((), dtype=torch.float32)
    return functional.mse_loss(mine, wanted) / (wanted.var(unbiased=False) + _LEAST)


def feature_distance(mine: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Distance of two features; of maps of attention (mean squares over the channels) where their channels differ.

    Source: Romero et al.: FitNets, 2015; Zagoruyko, Komodakis: Paying more attention to attention, 2017, section 3.1.

    Raises:
        InvalidTrainingSet: they differ in more than channels.
    """
    if mine.shape == wanted.shape:
        return relative_distance(mine, wanted)
    if mine.ndim < 3 or mine.shape[2:] != wanted.shape[2:]:
        raise InvalidTrainingSet(
            f"a feature of shape {tuple(mine.shape)} cannot be drawn towards {tuple(wanted.shape)}:"
            " only channels may differ; name other features"
        )
    maps = [functional.normalize(one.pow(2).mean(1).flatten(1), dim=1) for one in (mine, wanted)]
    return (maps[0] - maps[1]).pow(2).sum(1).mean()


@contextmanager
def features_of(module: torch.nn.Module, names: Sequence[str]) -> Iterator[Features]:
    """A dictionary that holds, after each run inside, what the submodules of these names answered.

    Raises:
        InvalidTrainingSet: no submodule has one of the names.
    """
    seen: Features = {}
    parts = dict(module.named_modules())
    with ExitStack() as hooks:
        for name in names:
            if name not in parts:
                raise InvalidTrainingSet(
                    f"there is no submodule {name!r}; it has {', '.join(filter(None, parts))[:300]}"
                )
            hooks.callback(parts[name].register_forward_hook(_keeping(seen, name)).remove)
        yield seen


def _keeping(seen: Features, name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
    def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        seen[name] = outputs_of(output)[0]

    return keep


def holds_probabilities(scores: torch.Tensor) -> bool:
    """Whether the rows of a first output are probabilities: none negative, each sum 1."""
    if scores.ndim < 2 or not scores.is_floating_point() or bool((scores < 0).any()):
        return False
    sums = scores.sum(1)
    return bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
