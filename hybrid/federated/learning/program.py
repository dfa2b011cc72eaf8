"""A head as a numpy program: from the feature tensor to the scores, and gradients back to what learns.

Design: one step a node, each with a closure that carries a gradient back; what hangs on constants alone is computed
once. The scores are what a final Softmax or LogSoftmax is made of, since a loss on those is exact where one on
probabilities is not. Steps that numpy has not are torch's (`operators/by_torch.py`); the program is the same.
"""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from hybrid.errors import ModelUntrainable
from hybrid.federated.learning.operators.call import Call, Pull, Step
from hybrid.federated.learning.operators.catalog import SHAPES_ONLY, needs_torch, operator_of
from hybrid.federated.learning.pieces import Load, Meter, driven, products_of

Arrays = Mapping[str, np.ndarray]
Form = Literal["scores", "probabilities", "log-probabilities"]
LossAt = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""From the scores of some rows to the loss and its gradient in the scores."""

_FORMS: Final[Mapping[str, Form]] = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities"}
_PASSED: Final = ("Identity", "Dropout")
_ROW_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadProgram:
    """The part of a model behind its feature tensor.

    Attributes:
        feature: name of the tensor that it begins with; (rows, …).
        steps: in the order of computation, those of the named output alone.
        constants: what stays.
        trainable: names of what may learn.
        output: the model's output that the scores belong to.
        scores: tensor that a loss is taken of; (rows, …).
        form: what the output makes of the scores.
        by_torch: operators that only torch computes, each once; empty where numpy is enough.
    """

    feature: str
    steps: tuple[Step, ...]
    constants: Arrays
    trainable: tuple[str, ...]
    output: str
    scores: str
    form: Form
    by_torch: tuple[str, ...] = ()
    _needs: dict[frozenset[str], tuple[tuple[bool, ...], ...]] = field(default_factory=dict, repr=False)
    _loads: dict[tuple[int, ...], Load] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, steps: Sequence[Step], constants: Arrays, *, feature: str, trainable: Sequence[str], output: str
    ) -> "HeadProgram":
        """The program of some steps in any order; those that the output does not need are left out.

        Raises:
            ModelUntrainable: an operator that is not in the catalog, or something else than features and constants
                is read.
        """
        ordered = _ordered(steps, {feature, *constants, *trainable}, output)
        for step in ordered:
            if operator_of(step) is None:
                raise ModelUntrainable(
                    f"{step.op} at {step.name!r} has no gradient here; choose a feature tensor behind it",
                    operator=step.op,
                )
        folded, rest = _folded(ordered, constants)
        used = {name for step in rest for name in step.inputs} | {output}
        unused = [name for name in trainable if name not in used]
        if unused:
            raise ModelUntrainable(
                f"{', '.join(unused[:3])} may learn, but output {output!r} does not hang on it behind {feature!r}; "
                "choose an earlier feature tensor"
            )
        scores, form = _scores(rest, output)
        kept = {name: array for name, array in folded.items() if name in used}
        return cls(
            feature=feature, steps=tuple(rest), constants=kept, trainable=tuple(trainable), output=output,
            scores=scores,
            form=form,
            by_torch=tuple(sorted({step.op for step in rest if needs_torch(step)})),
        )  # fmt: skip

    def answer(self, weights: Arrays, features: np.ndarray) -> np.ndarray:
        """The model's own output for rows of features, (rows, …)."""
        return driven(self._run(weights, features, self.output))

    def scores_of(self, weights: Arrays, features: np.ndarray) -> np.ndarray:
        """The scores of rows of features, (rows, …)."""
        return driven(self._run(weights, features, self.scores))

    def scores_in_pieces(self, weights: Arrays, features: np.ndarray) -> Generator[None, None, np.ndarray]:
        """As `scores_of`, which the generator returns; it yields between steps."""
        return self._run(weights, features, self.scores)

    def n_scores(self, weights: Arrays, features: np.ndarray) -> int:
        """How many scores a sample gets, seen from one or more rows of features."""
        scores = self.scores_of(weights, features)
        return scores.size // max(len(features), 1)

    def gradients(
        self, weights: Arrays, features: np.ndarray, loss_at: LossAt, wanted: frozenset[str]
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Loss of some rows, and its gradient in each wanted tensor that it hangs on.

        Args:
            weights: all that may learn.
            features: (rows, …).
            loss_at: gives the loss of the scores.
            wanted: names among `trainable`.
        """
        return driven(self.gradients_in_pieces(weights, features, loss_at, wanted))

    def gradients_in_pieces(
        self, weights: Arrays, features: np.ndarray, loss_at: LossAt, wanted: frozenset[str]
    ) -> Generator[None, None, tuple[float, dict[str, np.ndarray]]]:
        """As `gradients`, which the generator returns; it yields between steps, after a few milliseconds each time."""
        values: dict[str, np.ndarray] = {**self.constants, **weights, self.feature: features}
        pulls: list[tuple[Step, tuple[bool, ...], Pull, int]] = []
        meter = Meter()
        for step, needs in zip(self.steps, self._needs_of(wanted), strict=True):
            values[step.output], pull = _apply(step, values, needs)
            n_products = products_of(step, values)
            if any(needs):
                pulls.append((step, needs, pull, n_products))
            if meter.is_full(n_products):
                yield
            if step.output == self.scores:
                break
        loss, gradient = loss_at(values[self.scores])
        values.clear()
        found: dict[str, np.ndarray] = {self.scores: gradient}
        while pulls:  # each way back is let go once it was gone: what it holds is the largest part of the memory
            step, needs, pull, n_products = pulls.pop()
            arrived = found.pop(step.output, None)
            if arrived is not None:
                _collect(found, step, needs, pull(arrived))
                if meter.is_full(2 * n_products):
                    yield
        return loss, {name: found[name] for name in wanted if name in found}

    def load_in_pieces(self, weights: Arrays, features: np.ndarray) -> Generator[None, None, Load]:
        """What a sample costs, seen from one; the generator returns it, and yields between steps."""
        key = features.shape[1:]
        if key not in self._loads:
            values: dict[str, np.ndarray] = {**self.constants, **weights, self.feature: features[:1]}
            most, n_bytes, meter = 0, 0, Meter()
            for step, needs in zip(self.steps, self._needs_of(frozenset()), strict=True):
                values[step.output] = _apply(step, values, needs)[0]
                n_products = products_of(step, values)
                most, n_bytes = max(most, n_products), n_bytes + values[step.output].nbytes
                if meter.is_full(n_products):
                    yield
            self._loads[key] = Load(n_products=most, n_bytes=n_bytes)
        return self._loads[key]

    def check_rows(self, weights: Arrays, features: np.ndarray) -> None:
        """See that a row's scores do not hang on the rows beside it.

        Raises:
            ModelUntrainable: they do, as in a model that was exported for one sample and reshapes by fixed sizes.
        """
        driven(self.checked_in_pieces(weights, features))

    def checked_in_pieces(self, weights: Arrays, features: np.ndarray) -> Generator[None, None, None]:
        """As `check_rows`; it yields between steps."""
        if len(features) < 2:
            return
        both = yield from self.scores_in_pieces(weights, features[:2])
        alone = yield from self.scores_in_pieces(weights, features[1:2])
        if both.shape[0] != 2 or not np.allclose(both[1:], alone, _ROW_TOLERANCE, _ROW_TOLERANCE, equal_nan=True):
            raise ModelUntrainable(
                f"the head behind {self.feature!r} mixes the samples of a batch; export the model with an open batch "
                "size"
            )

    def _run(self, weights: Arrays, features: np.ndarray, wanted: str) -> Generator[None, None, np.ndarray]:
        values: dict[str, np.ndarray] = {**self.constants, **weights, self.feature: features}
        meter = Meter()
        for step, needs in zip(self.steps, self._needs_of(frozenset()), strict=True):
            if wanted in values:
                break
            values[step.output] = _apply(step, values, needs)[0]
            if meter.is_full(products_of(step, values)):
                yield
        return values[wanted]

    def _needs_of(self, wanted: frozenset[str]) -> tuple[tuple[bool, ...], ...]:
        found = self._needs.get(wanted)
        if found is None:
            learning, rows = set(wanted), []
            for step in self.steps:
                needs = tuple(name in learning and step.op not in SHAPES_ONLY for name in step.inputs)
                rows.append(needs)
                if any(needs):
                    learning.add(step.output)
            found = self._needs[wanted] = tuple(rows)
        return found


def _apply(step: Step, values: Arrays, needs: tuple[bool, ...]) -> tuple[np.ndarray, Pull]:
    call = Call(step, [values[name] if name else None for name in step.inputs], needs)
    try:
        operator = operator_of(step)
        assert operator is not None
        return operator(call)
    except (ValueError, IndexError, TypeError) as exc:
        shapes = [list(values[name].shape) for name in step.inputs if name]
        raise ModelUntrainable(
            f"{step.op} at {step.name!r} does not take arrays of {shapes} ({exc}); export the model with an open batch "
            "size, or choose a feature tensor behind it",
            operator=step.op,
        ) from exc


def _collect(
    found: dict[str, np.ndarray], step: Step, needs: tuple[bool, ...], parts: Sequence[np.ndarray | None]
) -> None:
    for name, is_needed, part in zip(step.inputs, needs, parts, strict=False):
        if is_needed and part is not None:
            found[name] = found[name] + part if name in found else part


def _ordered(steps: Sequence[Step], known: Collection[str], output: str) -> list[Step]:
    """What the output needs, makers before readers."""
    makers = {step.output: step for step in steps}
    done, ordered, waiting = set(known), [], [output]
    seen: set[str] = set()
    while waiting:
        name = waiting[-1]
        if name in done or not name:
            waiting.pop()
            continue
        step = makers.get(name)
        if step is None or (name in seen and not set(step.inputs) - {""} <= done):
            why = "hangs on itself" if step is not None else "is neither a feature nor a constant"
            raise ModelUntrainable(f"output {output!r} needs {name!r}, which {why}; choose another feature tensor")
        missing = [one for one in step.inputs if one and one not in done]
        if missing:
            seen.add(name)
            waiting += missing
            continue
        waiting.pop()
        done.add(name)
        ordered.append(step)
    return ordered


def _folded(steps: Sequence[Step], constants: Arrays) -> tuple[dict[str, np.ndarray], list[Step]]:
    """Constants with all that hangs on them alone, and the other steps."""
    values, rest = dict(constants), []
    for step in steps:
        if all(not name or name in values for name in step.inputs) and not needs_torch(step):
            values[step.output] = _apply(step, values, (False,) * len(step.inputs))[0]
        else:
            rest.append(step)
    return values, rest


def _scores(steps: Sequence[Step], output: str) -> tuple[str, Form]:
    makers = {step.output: step for step in steps}
    name = output
    while name in makers and makers[name].op in _PASSED:
        name = makers[name].inputs[0]
    step = makers.get(name)
    if step is not None and step.op in _FORMS:
        return step.inputs[0], _FORMS[step.op]
    return output, "scores"
