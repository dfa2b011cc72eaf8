"""One use of an operator: the node of the graph, the arrays that it is given, and which of them want a gradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np

from hybrid.errors import ModelUntrainable

INSTALL_TORCH: Final = "pip install 'hybrid-split[torch]'"

Gradients = Sequence[np.ndarray | None]
Pull = Callable[[np.ndarray], Gradients]
"""From the gradient of what an operator answered to that of each input; None where none is wanted or flows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A node of a head.

    Attributes:
        op: its operator.
        name: for messages.
        inputs: names of tensors; empty where an optional one is left out.
        output: name of its first output, the only one that is used.
        attributes: of the node.
        opset: of the model.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17


class Call:
    """A step with its arrays; `needs` says for each input whether a gradient is wanted."""

    __slots__ = ("arrays", "needs", "step")

    def __init__(self, step: Step, arrays: Sequence[np.ndarray | None], needs: Sequence[bool]) -> None:
        self.step, self.arrays, self.needs = step, arrays, needs

    def __getitem__(self, at: int) -> np.ndarray:
        found = self.given(at)
        if found is None:
            self.refuse(f"lacks input {at}")
        return found

    def given(self, at: int) -> np.ndarray | None:
        """An optional input."""
        return self.arrays[at] if at < len(self.arrays) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or what stands for it."""
        return self.step.attributes.get(name, default)

    def numbers(self, at: int, name: str) -> list[int] | None:
        """Whole numbers that newer opsets take as an input and older ones as an attribute."""
        found = self.given(at)
        if found is None:
            found = self.attribute(name)
        return None if found is None else [int(one) for one in np.atleast_1d(found)]

    def refuse(self, why: str) -> NoReturn:
        """Raises `ModelUntrainable`."""
        raise ModelUntrainable(
            f"{self.step.op} at {self.step.name!r} {why}, which training on a box cannot do; choose a feature tensor "
            "behind it",
            operator=self.step.op,
        )


Operator = Callable[[Call], tuple[np.ndarray, Pull]]


def to_shape(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of an array that was broadcast: summed over what it was spread over."""
    if gradient.shape == shape:
        return gradient
    leading = gradient.ndim - len(shape)
    if leading:
        gradient = gradient.sum(axis=tuple(range(leading)))
    spread = tuple(axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis] != 1)
    return gradient.sum(axis=spread, keepdims=True) if spread else gradient


def no_gradient(_gradient: np.ndarray) -> Gradients:
    """Nothing flows back: the answer is made of whole numbers, or does not follow the inputs' values."""
    return ()
