"""What a user's script gives for training: the trained torch module, its inputs and labels, and what else it knows.

Design: nothing here imports torch before it is used, so that whoever only passes a training set on stays light. The
inputs are arrays by name in the order of the module's own arguments; samples lie along the first axis of each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from compression.errors import InvalidTrainingSet, TrainingNeeded

if TYPE_CHECKING:
    import torch

Augment = Callable[["tuple[torch.Tensor, ...]", "torch.Generator"], "tuple[torch.Tensor, ...]"]
"""One batch of inputs (the module's arguments) to another of the same shapes; all chance comes from the generator."""

Loss = Callable[[Any, "torch.Tensor"], "torch.Tensor"]
"""What the module returned and the labels of the batch to one number, the smaller the better."""

LEAST_SAMPLES: Final = 8
DTYPES: Final = ("float32", "float16", "int64", "int32", "uint8", "int8", "bool")
_PROBED: Final = 4


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A trained module and the samples that it can be trained on further; the fields are checked when it is made.

    Attributes:
        module: a trained `torch.nn.Module`; it is never changed.
        inputs: by name, in the order of the module's arguments; `(n, ...)`, as the module takes them.
        labels: `(n, ...)`: whole numbers from 0 for scores `(n, classes, ...)`, or whatever `loss` takes; None: the
            module itself is the only teacher.
        augment: makes other samples of a batch of inputs, or None.
        loss: in place of cross entropy, or None.
        student: makes a smaller module of the same inputs and outputs, or None.
        output_names: what the module's outputs are called in ONNX; empty: `output`, or `output_0`, `output_1`, ...

    Raises:
        InvalidTrainingSet: a field that is not as said; the message names it.
        TrainingNeeded: torch is not installed.
    """

    module: "torch.nn.Module"
    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    augment: Augment | None = None
    loss: Loss | None = None
    student: "Callable[[], torch.nn.Module] | None" = None
    output_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_torch()
        _require_module(self.module)
        _require_inputs(self.inputs)
        if self.labels is not None:
            _require_labels(self.labels, self.n_samples, whole=self.loss is None)
        for name in ("augment", "loss", "student"):
            given: object = getattr(self, name)
            if given is not None and not callable(given):
                raise InvalidTrainingSet(f"{name} is of type {type(given).__name__}; give a function, or leave it out")
        if self.loss is not None and self.labels is None:
            raise InvalidTrainingSet("a loss was given and no labels; give the labels that it takes, or leave it out")

    @property
    def n_samples(self) -> int:
        """How many samples each input has."""
        return len(next(iter(self.inputs.values())))

    def example(self, n: int = _PROBED, start: int = 0) -> "tuple[torch.Tensor, ...]":
        """Some samples as the module's arguments, on the module's own device."""
        from compression.training.answering import arguments

        return arguments(self.module, self.inputs, slice(start, start + n))

    def part(self, index: np.ndarray) -> "TrainingSet":
        """The same with these samples alone."""
        labels = None if self.labels is None else self.labels[index]
        return TrainingSet(
            module=self.module,
            inputs={name: values[index] for name, values in self.inputs.items()},
            labels=labels,
            augment=self.augment,
            loss=self.loss,
            student=self.student,
            output_names=self.output_names,
        )


def require_torch() -> None:
    """Returns where torch can be imported.

    Raises:
        TrainingNeeded: it is not installed.
    """
    if find_spec("torch") is None:
        raise TrainingNeeded("training needs torch, which is not installed: pip install 'hybrid-split[compression]'")


def _require_module(module: object) -> None:
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InvalidTrainingSet(f"module is of type {type(module).__name__}; give a trained torch.nn.Module")


def _require_inputs(inputs: object) -> None:
    if not isinstance(inputs, Mapping) or not inputs:
        raise InvalidTrainingSet(
            "inputs is not a dictionary of arrays by name; give one entry an argument of the module"
        )
    lengths = {}
    for name, values in inputs.items():
        if not isinstance(name, str) or not name:
            raise InvalidTrainingSet(f"inputs has the key {name!r}; give each input a name")
        if not isinstance(values, np.ndarray):
            raise InvalidTrainingSet(f"input {name!r} is of type {type(values).__name__}; give a numpy array")
        if values.dtype.name not in DTYPES:
            raise InvalidTrainingSet(
                f"input {name!r} has dtype {values.dtype}; convert it to one of {', '.join(DTYPES)}"
            )
        if values.ndim == 0 or values.size == 0:
            raise InvalidTrainingSet(f"input {name!r} has shape {values.shape}; give one sample a row")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InvalidTrainingSet(f"input {name!r} holds NaN or infinity; remove those samples")
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        raise InvalidTrainingSet(f"the inputs differ in their number of samples: {lengths}; give each the same")
    if min(lengths.values()) < LEAST_SAMPLES:
        raise InvalidTrainingSet(f"{min(lengths.values())} samples; give at least {LEAST_SAMPLES}, better thousands")


def _require_labels(labels: object, n_samples: int, *, whole: bool) -> None:
    if not isinstance(labels, np.ndarray) or labels.ndim == 0:
        raise InvalidTrainingSet(f"labels is of type {type(labels).__name__}; give an array with one row a sample")
    if len(labels) != n_samples:
        raise InvalidTrainingSet(f"{len(labels)} labels for {n_samples} samples; give one a sample, in their order")
    if labels.dtype.kind not in "biuf":
        raise InvalidTrainingSet(f"labels have dtype {labels.dtype}; give numbers (classes count from 0)")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InvalidTrainingSet("labels hold NaN or infinity; remove those samples")
    if not whole:
        return
    if labels.dtype.kind not in "iu":
        raise InvalidTrainingSet(
            f"labels have dtype {labels.dtype}; classes are whole numbers, anything else needs a loss"
        )
    if labels.min() < 0:
        raise InvalidTrainingSet(f"the smallest label is {labels.min()}; classes count from 0")
