"""How a head answers on labelled samples, alone or beside another one: counts, never samples."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

import numpy as np

from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.losses import is_right, loss_name, loss_of, rows_of_values
from hybrid.federated.learning.pieces import driven, rows_of_piece
from hybrid.federated.learning.program import Arrays, HeadProgram

TOLERANCE: Final = 0.02
"""Relative distance up to which an answer that is no classification counts as right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Answers of one head: samples, right answers, and the mean loss."""

    n: int
    n_right: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of right answers; 0 without samples."""
        return self.n_right / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two heads on the same samples: `n_lost` were right by the base alone, `n_won` by the candidate alone."""

    base: Counts
    candidate: Counts
    n_lost: int
    n_won: int


Between = Callable[[], None]
"""Called after each piece of work; may block while requests are answered, or raise to give up."""


def no_pause() -> None:
    """Nobody else wants the machine."""


def rows_at_once(program: HeadProgram, weights: Arrays, examples: Examples) -> Generator[None, None, int]:
    """Samples that are computed at once, which is what the generator returns; it yields after each piece."""
    if not program.by_torch or not len(examples):
        return rows_of_piece(sum(array.size for array in weights.values()))
    load = yield from program.load_in_pieces(weights, examples.some(np.arange(1))[0])
    return load.rows


def mean_loss(program: HeadProgram, weights: Arrays, examples: Examples) -> Generator[None, None, float]:
    """The mean loss, which is what the generator returns; it yields after each piece."""
    name, total = loss_name(examples.targets), 0.0
    rows = yield from rows_at_once(program, weights, examples)
    for first in range(0, len(examples), rows):
        features, targets = examples.some(np.arange(first, min(first + rows, len(examples))))
        with np.errstate(all="ignore"):
            scores = yield from program.scores_in_pieces(weights, features)
            total += loss_of(name, targets, n=1)(scores)[0]
        yield
    return total / max(len(examples), 1)


def right_of(program: HeadProgram, weights: Arrays, examples: Examples, *, between: Between = no_pause) -> np.ndarray:
    """For each sample whether the answer is right, bool (n,)."""
    found = [right for right, _ in _answers(program, weights, examples, between)]
    return np.concatenate(found) if found else np.zeros(0, bool)


def evaluate(program: HeadProgram, weights: Arrays, examples: Examples, *, between: Between = no_pause) -> Counts:
    """How a head answers."""
    n_right, loss = 0, 0.0
    for right, lost in _answers(program, weights, examples, between):
        n_right += int(right.sum())
        loss += lost
    return Counts(n=len(examples), n_right=n_right, loss=loss / max(len(examples), 1))


def compare(
    program: HeadProgram, base: Arrays, candidate: Arrays, examples: Examples, *, between: Between = no_pause
) -> Comparison:
    """Two heads of one program side by side; samples with a class that the model has not are left out."""
    if len(examples):
        scores = driven(program.scores_in_pieces(base, examples.some(np.arange(1))[0]), between)
        examples = examples.fitting(scores.size)
    before, after = (list(_answers(program, weights, examples, between)) for weights in (base, candidate))
    n_lost = sum(int((old & ~new).sum()) for (old, _), (new, _) in zip(before, after, strict=True))
    n_won = sum(int((new & ~old).sum()) for (old, _), (new, _) in zip(before, after, strict=True))
    n = len(examples)
    counts = [
        Counts(
            n=n,
            n_right=sum(int(right.sum()) for right, _ in found),
            loss=sum(lost for _, lost in found) / max(n, 1),
        )
        for found in (before, after)
    ]
    return Comparison(base=counts[0], candidate=counts[1], n_lost=n_lost, n_won=n_won)


def _answers(
    program: HeadProgram, weights: Arrays, examples: Examples, between: Between
) -> Generator[tuple[np.ndarray, float], None, None]:
    """Of each piece: which answers are right, and the sum of losses."""
    name, rows = loss_name(examples.targets), driven(rows_at_once(program, weights, examples), between)
    for first in range(0, len(examples), rows):
        features, targets = examples.some(np.arange(first, min(first + rows, len(examples))))
        with np.errstate(all="ignore"):
            scores = driven(program.scores_in_pieces(weights, features), between)
            loss = loss_of(name, targets, n=1)(scores)[0]
        yield right_scores(scores, targets), loss
        between()


def right_scores(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For each row whether the scores are right, bool (rows,)."""
    return is_right(scores, targets) if loss_name(targets) == "cross-entropy" else _is_near(scores, targets)


def _is_near(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows = rows_of_values(wanted, values)
    with np.errstate(over="ignore"):
        apart = np.linalg.norm(values.reshape(len(rows), -1) - rows, axis=1)
        near: np.ndarray = apart <= TOLERANCE * np.linalg.norm(rows, axis=1)
    return near
