"""A training set tried out on a few samples, so that what does not fit is said before an hour of training."""

from collections.abc import Callable
from typing import Final, TypeVar

import torch

from compression.errors import CompressionError, InvalidTrainingSet
from compression.training.answering import evaluating, outputs_of, seeded
from compression.training.training_set import TrainingSet

_Made = TypeVar("_Made")
_PROBED: Final = 4


def checked(given: TrainingSet) -> TrainingSet:
    """The same training set, after its module, loss, augmentation and student have been tried on the first samples.

    Raises:
        InvalidTrainingSet: an answer, a label or a shape that does not fit.
    """
    example = given.example(_PROBED)
    with seeded(0) as chance, evaluating(given.module):
        answer = _tried("the module", lambda: given.module(*example))
        outputs = outputs_of(answer)
        _require_outputs(given, outputs, len(example[0]))
        if given.augment is not None:
            augment = given.augment
            _require_same(example, _tried("augment", lambda: augment(example, chance)))
        if given.labels is not None and given.loss is not None:
            labels, loss = torch.from_numpy(given.labels[:_PROBED].copy()).to(outputs[0].device), given.loss
            _require_number(_tried("loss", lambda: loss(answer, labels)))
        elif given.labels is not None:
            _require_classes(given, outputs[0])
    if given.student is not None:
        _tried("student", lambda: student_given(given))
    return given


def student_given(given: TrainingSet) -> torch.nn.Module:
    """What the script's `student()` makes, after it has answered as the module does.

    Raises:
        InvalidTrainingSet: it makes something else, or its outputs have other shapes.
    """
    assert given.student is not None
    student = given.student()
    if not isinstance(student, torch.nn.Module):
        raise InvalidTrainingSet(f"student() returned {type(student).__name__}; it must make a torch.nn.Module")
    require_same_answers(given, student, "the student")
    return student


def require_same_answers(given: TrainingSet, other: torch.nn.Module, what: str) -> None:
    """Returns where another module takes the same inputs and its outputs have the same shapes.

    Raises:
        InvalidTrainingSet: they have not.
    """
    example = given.example()
    with evaluating(given.module), evaluating(other):
        wanted = [tuple(one.shape) for one in outputs_of(given.module(*example))]
        seen = [tuple(one.shape) for one in outputs_of(_tried(what, lambda: other(*example)))]
    if seen != wanted:
        raise InvalidTrainingSet(f"{what} answers with the shapes {seen}, the module with {wanted}; make them equal")


def _tried(what: str, call: Callable[[], _Made]) -> _Made:
    try:
        return call()
    except CompressionError:
        raise
    except Exception as error:  # the user's own code may raise anything
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidTrainingSet(f"{what} failed on the first samples: {line}") from error


def _require_outputs(given: TrainingSet, outputs: tuple[torch.Tensor, ...], n: int) -> None:
    for at, output in enumerate(outputs):
        if output.ndim == 0 or len(output) != n:
            raise InvalidTrainingSet(
                f"output {at} has shape {tuple(output.shape)} for {n} samples; samples must lie along the first axis"
            )
        if output.is_floating_point() and not bool(torch.isfinite(output).all()):
            raise InvalidTrainingSet(f"output {at} holds NaN or infinity for the first samples; train the module first")
    if given.output_names and len(given.output_names) != len(outputs):
        raise InvalidTrainingSet(f"{len(given.output_names)} output names for {len(outputs)} outputs; name each once")
    if not outputs[0].is_floating_point():
        raise InvalidTrainingSet(f"output 0 is of type {outputs[0].dtype}; training needs scores, not chosen classes")


def _require_same(before: tuple[torch.Tensor, ...], after: object) -> None:
    if not isinstance(after, tuple) or not all(isinstance(one, torch.Tensor) for one in after):
        raise InvalidTrainingSet(f"augment returned {type(after).__name__}; it must return a tuple of tensors")
    seen, wanted = ([(tuple(one.shape), str(one.dtype)) for one in many] for many in (after, before))
    if seen != wanted:
        raise InvalidTrainingSet(f"augment made {seen} of {wanted}; shapes and types must stay")


def _require_number(loss: object) -> None:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
        raise InvalidTrainingSet(f"loss returned {str(loss)[:80]}; it must return one finite number as a tensor")


def _require_classes(given: TrainingSet, scores: torch.Tensor) -> None:
    assert given.labels is not None
    if scores.ndim < 2 or scores.shape[1] < 2:
        raise InvalidTrainingSet(
            f"output 0 has shape {tuple(scores.shape)}; labels without a loss need scores (n, classes): give a loss"
        )
    if given.labels.shape[1:] != tuple(scores.shape[2:]):
        raise InvalidTrainingSet(
            f"labels have shape {given.labels.shape}, scores {tuple(scores.shape)}; wanted one label a row of scores"
        )
    if given.labels.max() >= scores.shape[1]:
        raise InvalidTrainingSet(
            f"the largest label is {given.labels.max()}, the module has {scores.shape[1]} classes (they count from 0)"
        )
