"""Smaller modules that learn from a larger one: the script's own, or a narrower copy of its architecture."""

import copy
from collections.abc import Callable

import torch

from compression.errors import NotTrainable, TrainingNeeded
from compression.training.answering import seeded
from compression.training.training_set import TrainingSet
from compression.training.trial import require_same_answers, student_given

Narrowed = Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], torch.nn.Module]
"""A module and example arguments to a copy of it with fewer channels: structured pruning, handed in by the caller."""


def student(
    training_set: TrainingSet, *, seed: int = 0, narrowed: Narrowed | None = None, inherit: bool = True
) -> torch.nn.Module:
    """A module to be trained with the training set's module as its teacher.

    Args:
        training_set: whose `student()` makes it, where `narrowed` is not given.
        seed: of its fresh weights.
        narrowed: makes a narrower copy of the training set's module instead.
        inherit: whether a narrower copy keeps the weights that are left in it; else they are drawn anew.

    Raises:
        TrainingNeeded: neither is there.
        NotTrainable: no smaller than the module, or nothing in it can be drawn anew.
        InvalidTrainingSet: its outputs have other shapes than the module's.
    """
    if narrowed is None and training_set.student is None:
        raise TrainingNeeded("the training set has no student; give one there, or let a narrower copy be made")
    with seeded(seed):
        if narrowed is None:
            made = student_given(training_set)
        else:
            made = narrowed(training_set.module, training_set.example())
            require_same_answers(training_set, made, "the narrower copy")
            made = made if inherit else fresh(made)
    sizes = [sum(one.numel() for one in module.parameters()) for module in (made, training_set.module)]
    if sizes[0] >= sizes[1]:
        raise NotTrainable(f"the student has {sizes[0]:,} parameters, its teacher {sizes[1]:,}; make a smaller one")
    return made


def fresh(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose parts have drawn their weights anew.

    Raises:
        NotTrainable: no part of it knows how, or a parameter belongs to none that does.
    """
    made = copy.deepcopy(module)
    drawn: set[str] = set()
    for name, part in made.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
            drawn |= {f"{name}.{own}" if name else own for own, _ in part.named_parameters(recurse=False)}
    left = [name for name, _ in made.named_parameters() if name not in drawn]
    if left:
        raise NotTrainable(
            f"the weights {', '.join(left[:5])} cannot be drawn anew: their module has no reset_parameters();"
            " inherit the teacher's instead"
        )
    return made
