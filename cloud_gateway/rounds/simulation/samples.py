"""Samples of a simulated fleet: a set divided among boxes, or one that is made up."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from hybrid.errors import BadMessage

Split = Literal["dirichlet", "shards", "even"]
N_CLASSES: Final = 10
N_FEATURES: Final = 32
N_TEST: Final = 2000
_SPREAD: Final = 4.8
"""Distance of the classes' centres from zero, in standard deviations: 32 hidden units come to about 0.92."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs of a model, float32 (n, …), and class numbers, int64 (n,)."""

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: np.ndarray) -> "Samples":
        """Some of them."""
        return Samples(inputs=self.inputs[indices], labels=self.labels[indices])


def made_up(n_samples: int, seed: int) -> Samples:
    """Ten classes, each with two centres in 32 dimensions, so that no straight line parts them."""
    rng = np.random.default_rng([seed, 1])
    centres = rng.normal(size=(N_CLASSES, 2, N_FEATURES))
    centres *= _SPREAD / np.linalg.norm(centres, axis=2, keepdims=True)
    labels = rng.integers(N_CLASSES, size=n_samples)
    inputs = centres[labels, rng.integers(2, size=n_samples)] + rng.normal(size=(n_samples, N_FEATURES))
    return Samples(inputs=inputs.astype(np.float32), labels=labels.astype(np.int64))


def apart(samples: Samples, seed: int, n_test: int) -> tuple[Samples, Samples]:
    """What boxes learn from, and what the gateway measures with."""
    learned, test = _parted(len(samples), seed, n_test)
    return samples.at(learned), samples.at(test)


def held_out(n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of what boxes learn from, and of a fifth (2000 at most) that the gateway measures with."""
    return _parted(n_samples, seed, min(N_TEST, max(1, n_samples // 5)))


def _parted(n_samples: int, seed: int, n_test: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([seed, 2]).permutation(n_samples)
    return order[n_test:], order[:n_test]


def divided(
    labels: np.ndarray, n_boxes: int, split: Split, *, alpha: float, n_shards: int, seed: int
) -> list[np.ndarray]:
    """Indices of each box's samples, at least one a box.

    Args:
        labels: of all samples.
        n_boxes: at most as many as samples.
        split: `dirichlet`: every class dealt out in shares drawn from Dirichlet(alpha); `shards`: the samples sorted by
            class, cut into pieces, `n_shards` a box; `even`: at random.
        alpha: smaller is more unlike.
        n_shards: of a box.
        seed: of the draw.

    Raises:
        BadMessage: fewer samples than boxes.
    """
    if len(labels) < n_boxes:
        raise BadMessage(
            f"{len(labels)} samples to learn from for {n_boxes} boxes: at least one a box is wanted",
            advice="Give fewer --boxes, or more samples.",
        )
    rng = np.random.default_rng([seed, 3])
    if split == "even":
        held = np.array_split(rng.permutation(len(labels)), n_boxes)
    elif split == "shards":
        pieces = np.array_split(np.argsort(labels, kind="stable"), n_shards * n_boxes)
        order = rng.permutation(len(pieces)).reshape(n_boxes, n_shards)
        held = [np.concatenate([pieces[piece] for piece in mine]) for mine in order]
    else:
        dealt: list[list[np.ndarray]] = [[] for _ in range(n_boxes)]
        for label in np.unique(labels):
            indices = rng.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(rng.dirichlet([alpha] * n_boxes)) * len(indices)).astype(int)
            for box, share in zip(dealt, np.split(indices, cuts[:-1]), strict=True):
                box.append(share)
        held = [np.concatenate(shares) for shares in dealt]
    return [indices if len(indices) else rng.integers(len(labels), size=1) for indices in held]
