"""A module with a bottleneck in it, asked: crossing tensors, latents, and what answers and bytes become."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch

from compression.bottleneck.graph import LATENT, Crossing
from compression.bottleneck.learning import Parts
from compression.bottleneck.prior import Prior
from compression.bottleneck.submodules import Place, replaced
from compression.errors import NotExportable, NotTrainable
from compression.training.answering import arguments, evaluating, outputs_of
from compression.training.training_set import TrainingSet

_BATCH: Final = 64
_TOLERANCE: Final = 1e-3
_MAX_ROUNDED_OTHERWISE: Final = 0.002
"""Share of a latent that an engine may round to the other side: sums in another order end on a half elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What was seen of a bottleneck on samples that it was not trained on.

    Attributes:
        at: the submodule at the cut.
        step: of the rounding, relative to the trained one.
        n_held_out: samples that these numbers are of.
        payload_bytes: mean of one sample's payload.
        bits_per_element: of the crossing tensor, from the payloads.
        cut_distance: mean squared error at the cut over the tensor's variance.
        agreement: share of answers whose highest score stays; of other outputs 1 less their relative distance.
        accuracy: share of right answers with the bottleneck, None without classes as labels.
        accuracy_before: the same without it.
        beta: weight of bits in the loss at the end.
        n_steps: of both stages.
        seconds: of the training.
    """

    at: str
    step: float
    n_held_out: int
    payload_bytes: float
    bits_per_element: float
    cut_distance: float
    agreement: float
    accuracy: float | None
    accuracy_before: float | None
    beta: float
    n_steps: int
    seconds: float


class Examined(NamedTuple):
    """Sums over the samples asked."""

    payload_bytes: float
    bits_per_element: float
    cut_distance: float
    agreement: float
    accuracy: float | None
    accuracy_before: float | None


class Examiner:
    """Asks a training set's module with and without what stands at its cut."""

    def __init__(self, training_set: TrainingSet, at: str) -> None:
        self._set, self._at = training_set, at

    def crossed(self, index: np.ndarray) -> np.ndarray:
        """The submodule's own output for some samples.

        Raises:
            NotTrainable: it does not run, or makes no float32 tensor.
        """
        found = []
        with self._open() as place:
            for start in range(0, len(index), _BATCH):
                self._answer(index[start : start + _BATCH])
                own = place.seen()
                if own is None:
                    raise NotTrainable(f"{self._at} does not run when the module answers; name another submodule")
                found.append(own.cpu().numpy())
        return np.concatenate(found)

    def latents(self, index: np.ndarray, parts: Parts, step: float) -> np.ndarray:
        """What the encoder makes of them: int8."""
        found = []
        with torch.no_grad():
            for start in range(0, len(index), _BATCH):
                own = torch.from_numpy(self.crossed(index[start : start + _BATCH]))
                found.append(parts.whole(own, step).cpu().numpy().astype(np.int8))
        return np.concatenate(found)

    def examined(self, index: np.ndarray, parts: Parts, step: float, prior: Prior) -> Examined:
        """Bytes, errors and answers of these samples."""
        n_bytes = n_elements = 0
        squares, spreads, same = 0.0, 0.0, 0.0
        right: list[np.ndarray] = []
        right_before: list[np.ndarray] = []
        with self._open() as place:
            for start in range(0, len(index), _BATCH):
                chosen = index[start : start + _BATCH]
                place.through = None
                before = self._answer(chosen)
                own = place.own
                assert own is not None
                latent = parts.whole(own, step)
                restored = parts.restored(latent * step, own)
                place.through = lambda _own, restored=restored: restored
                after = self._answer(chosen)
                n_bytes += sum(len(prior.encode(one[None])) for one in latent.cpu().numpy().astype(np.int8))
                n_elements += own.numel()
                squares += float(((restored - own) ** 2).sum())
                spreads += float(((own - own.mean()) ** 2).sum())
                same += agreement(before, after) * len(chosen)
                right.append(self._right(after, chosen))
                right_before.append(self._right(before, chosen))
        accuracies = [float(np.concatenate(many).mean()) if many[0].size else None for many in (right, right_before)]
        return Examined(
            payload_bytes=n_bytes / len(index),
            bits_per_element=8 * n_bytes / n_elements,
            cut_distance=squares / max(spreads, 1e-12),
            agreement=same / len(index),
            accuracy=accuracies[0],
            accuracy_before=accuracies[1],
        )

    def _right(self, scores: torch.Tensor, chosen: np.ndarray) -> np.ndarray:
        if self._set.labels is None or self._set.loss is not None:
            return np.zeros(0, bool)
        return np.asarray(scores.argmax(1).cpu().numpy() == self._set.labels[chosen]).ravel()

    @contextmanager
    def _open(self) -> Iterator[Place]:
        with evaluating(self._set.module) as module, replaced(module, self._at) as place:
            yield place

    def _answer(self, chosen: np.ndarray) -> torch.Tensor:
        return outputs_of(self._set.module(*arguments(self._set.module, self._set.inputs, chosen)))[0]


def agreement(before: torch.Tensor, after: torch.Tensor) -> float:
    """The share of answers whose highest score stays; without scores 1 less the relative distance."""
    if before.ndim >= 2 and before.shape[1] > 1:
        return float((before.argmax(1) == after.argmax(1)).float().mean())
    return 1 - float(((before - after) ** 2).mean() / (before.var(unbiased=False) + 1e-12))


def require_same(
    parts: Parts, own: np.ndarray, step: float, graphs: tuple[onnx.ModelProto, onnx.ModelProto], crossing: Crossing
) -> None:
    """Returns where encoder and decoder answer in onnxruntime as in torch.

    Raises:
        NotExportable: they do not.
    """
    parts = copy.deepcopy(parts).cpu()  # a GPU may multiply in fewer bits (TF32): one latent value in a hundred differs
    encoder, decoder = (onnxruntime.InferenceSession(graph.SerializeToString()) for graph in graphs)
    (seen,) = encoder.run(None, {crossing.name: own})
    with torch.no_grad():
        wanted = parts.whole(torch.from_numpy(own), step).numpy()
        latent = torch.from_numpy(seen.astype(np.float32)) * step
        restored = parts.restored(latent, torch.from_numpy(own)).numpy()
    away = np.abs(seen.astype(np.int16) - wanted)
    n_otherwise = int(np.count_nonzero(away))
    if away.max() > 1 or n_otherwise > max(1, _MAX_ROUNDED_OTHERWISE * seen.size):
        raise NotExportable(f"the encoder's graph rounds {n_otherwise} of {seen.size} values otherwise than torch")
    (made,) = decoder.run(None, {LATENT: seen})
    distance = float(np.abs(made - restored).max()) / max(float(np.abs(restored).max()), 1e-12)
    if distance > _TOLERANCE:
        raise NotExportable(f"the decoder's graph is {distance:.2g} of its largest value away from torch's")
