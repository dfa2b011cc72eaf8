"""Training a full model with torch, for machines that have it (extra `torch`); the same face as training with numpy.

Design: parameters travel, buffers do not: statistics of normalisation stay as the module was made with them, and
dropout is off, as in training with numpy. What was learned goes home through `hybrid compress`, since the whole model
changes.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.errors import ModelUntrainable, TensorMismatch, TrainingDiverged
from hybrid.federated.campaign import Training
from hybrid.federated.layout import Layout
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.losses import loss_name
from hybrid.federated.learning.training import Start, Trained, check_plan, divided

if TYPE_CHECKING:
    import torch

Factory = Callable[[], "torch.nn.Module"]
_ROWS = 64


def layout_of(module: "torch.nn.Module") -> Layout:
    """Names and shapes of the parameters that learn, in the module's order.

    Raises:
        ModelUntrainable: there are none, or one is not float32.
    """
    import torch

    found = {name: one for name, one in module.named_parameters() if one.requires_grad}
    strange = [name for name, one in found.items() if one.dtype != torch.float32]
    if strange or not found:
        raise ModelUntrainable(
            f"{', '.join(strange[:3])} is not float32" if strange else "no parameter of the module requires a gradient"
        )
    return Layout(names=tuple(found), shapes=tuple(tuple(one.shape) for one in found.values()))


def vector_of(module: "torch.nn.Module") -> np.ndarray:
    """The parameters that learn, as one vector in the order of `layout_of`."""
    arrays = {name: one.detach().numpy() for name, one in module.named_parameters() if one.requires_grad}
    return layout_of(module).vector(arrays)


class TorchTraining:
    """One task's training of a whole module; `pieces` does it, `trained` is what came of it.

    Args:
        factory: makes the module; its only input is a batch of features, its answer the scores.
        examples: inputs and targets.
        plan: how.
        start: what it begins with, in the layout of the module's parameters.

    Raises:
        ModelUntrainable: no torch here, or a module that has nothing to learn.
        TensorMismatch: vectors that do not fit, or no examples.
        BadMessage: a plan that nobody can follow.
    """

    def __init__(self, factory: Factory, examples: Examples, plan: Training, *, start: Start) -> None:
        try:
            import torch
        except ImportError as exc:
            raise ModelUntrainable("full models learn with torch; install hybrid-split[torch]") from exc
        check_plan(plan, examples)
        self._torch = torch
        self._module = factory().eval()
        self._plan, self._start, self._examples = plan, start, examples
        self._shared, self._personal = divided(layout_of(self._module), plan.personal)
        if self._personal is not None and start.personal is None:
            raise TensorMismatch(f"{', '.join(self._personal.names[:5])} never leave the box, and are not here")
        arrays = dict(self._shared.arrays(start.shared))
        if self._personal is not None and start.personal is not None:
            arrays |= self._personal.arrays(start.personal)
        self._parameters = dict(self._module.named_parameters())
        with torch.no_grad():
            for name, array in arrays.items():
                self._parameters[name].copy_(torch.from_numpy(np.array(array)))
        self._added = self._of_shared(start.correction)
        self._anchor = self._of_shared(start.shared) if plan.proximal else {}
        self._random = np.random.default_rng(start.seed)
        self.trained: Trained | None = None

    def pieces(self) -> Iterator[None]:
        """Yields after every batch; all is done when it ends.

        Raises:
            TrainingDiverged: loss or weights are not finite.
        """
        before = yield from self._measured()
        if self._personal is not None:
            yield from self._learn(self._personal)
        n_steps = yield from self._learn(self._shared)
        after = yield from self._measured()
        delta = self._vector(self._shared) - self._start.shared
        personal = np.empty(0, np.float32) if self._personal is None else self._vector(self._personal)
        if not (np.isfinite(delta).all() and np.isfinite(personal).all() and np.isfinite([before, after]).all()):
            raise _diverged(self._plan)
        self.trained = Trained(
            delta=delta, personal=personal, n_samples=len(self._examples), n_steps=n_steps, loss_before=before,
            loss_after=after,
        )  # fmt: skip

    def _of_shared(self, vector: np.ndarray | None) -> dict[str, Any]:
        if vector is None:
            return {}
        return {name: self._torch.from_numpy(np.array(one)) for name, one in self._shared.arrays(vector).items()}

    def _vector(self, layout: Layout) -> np.ndarray:
        return layout.vector({name: self._parameters[name].detach().numpy() for name in layout.names})

    def _loss(self, indices: np.ndarray) -> Any:
        inputs, targets = self._examples.some(indices)
        scores = self._module(self._torch.from_numpy(inputs))
        wanted = self._torch.from_numpy(targets)
        if loss_name(targets) == "cross-entropy":
            return self._torch.nn.functional.cross_entropy(scores.flatten(1), wanted)
        return self._torch.nn.functional.mse_loss(scores, wanted.reshape(scores.shape))

    def _measured(self) -> Generator[None, None, float]:
        total = 0.0
        for first in range(0, len(self._examples), _ROWS):
            indices = np.arange(first, min(first + _ROWS, len(self._examples)))
            with self._torch.no_grad():
                total += float(self._loss(indices)) * len(indices)
            yield
        return total / len(self._examples)

    def _learn(self, layout: Layout) -> Generator[None, None, int]:
        plan, n_steps = self._plan, 0
        learning = [self._parameters[name] for name in layout.names]
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in layout.names)
        optimizer = self._torch.optim.SGD(
            learning, lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay
        )
        for _ in range(plan.epochs):
            order = self._random.permutation(len(self._examples))
            for first in range(0, len(order), plan.batch):
                if plan.max_steps and n_steps >= plan.max_steps:
                    break
                optimizer.zero_grad()
                loss = self._loss(order[first : first + plan.batch])
                if not bool(self._torch.isfinite(loss)):
                    raise _diverged(plan)
                loss.backward()
                if layout is self._shared:
                    self._pull()
                optimizer.step()
                n_steps += 1
                yield
        return n_steps

    def _pull(self) -> None:
        for name, added in self._added.items():
            self._parameters[name].grad += added
        for name, anchor in self._anchor.items():
            self._parameters[name].grad += self._plan.proximal * (self._parameters[name].detach() - anchor)


def _diverged(plan: Training) -> TrainingDiverged:
    return TrainingDiverged(
        f"training at a learning rate of {plan.learning_rate:g} left the finite numbers; nothing of it is sent; lower "
        "the learning rate of the campaign"
    )
