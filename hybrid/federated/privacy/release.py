"""The gateway's side of a private release: a sum of bounded updates on a grid, and noise before anyone sees it.

Noise is added to the sum, at the size of one device's bound; the sum is then divided by the campaign's goal, however
many came. A device that drops out so makes the step smaller, never the noise: were the sum divided by those who came,
and the noise meant for the goal, each dropout would raise what the others' updates show.
"""

from typing import Final

import msgspec
import numpy as np

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.campaign import Privacy
from hybrid.federated.privacy.clipping import clipped, next_clip, split_noise
from hybrid.federated.privacy.noise import gaussian_integers

_STEPS: Final = 1 << 20
"""Grid steps in the bound, or in the noise's standard deviation where that is smaller."""


class Released(msgspec.Struct, frozen=True):
    """What may leave the gateway.

    Attributes:
        mean: float32 (n_elements,): the noised sum over the denominator.
        clip_norm: the bound of the next release.
        n_boxes: how many took part; each spends the campaign's cost.
    """

    mean: np.ndarray
    clip_norm: float
    n_boxes: int


class PrivateSum:
    """Bounded updates added up in int64, one after the other; O(model) memory, and no order matters.

    What a device sends is bounded here once more: a device that does not clip harms nobody's privacy.
    """

    def __init__(self, privacy: Privacy, clip_norm: float, n_elements: int) -> None:
        self._privacy = privacy
        self._clip_norm = clip_norm
        self._step = clip_norm * (min(1.0, privacy.noise) or 1.0) / _STEPS
        self._total = np.zeros(n_elements, np.int64)
        self._bits = 0
        self.n_boxes = 0

    def add(self, vector: np.ndarray, *, bit: int = 0, weight: float = 1.0) -> None:
        """Takes in one device's update; a device adds at most one to a sum.

        Args:
            vector: float32 (n_elements,).
            bit: 1 where its norm was within the bound, -1 where not, 0 where nobody asked.
            weight: by staleness alone, above 0 and up to 1; never by a device's data.

        Raises:
            TensorMismatch: of another length, or not finite.
            BadMessage: a bit or a weight that would break the bound.
        """
        if vector.shape != self._total.shape:
            raise TensorMismatch(f"an update has {vector.shape}, the sum {self._total.shape}")
        if bit not in {-1, 0, 1} or not 0.0 < weight <= 1.0:
            raise BadMessage(f"bit {bit} and weight {weight}: -1, 0 or 1 and a weight above 0 and up to 1 are wanted")
        within, _ = clipped(vector, self._clip_norm)
        self._total += np.trunc(within * (weight / self._step)).astype(np.int64)  # towards zero: never longer
        self._bits += bit
        self.n_boxes += 1

    def release(self, seed: bytes, denominator: int) -> Released:
        """The noised mean and the next bound.

        Args:
            seed: 32 bytes from the operating system, used for this release alone and never kept.
            denominator: the campaign's goal, however many took part.
        """
        return released(
            self._privacy,
            self._total,
            step=self._step,
            clip_norm=self._clip_norm,
            bits=self._bits,
            n_boxes=self.n_boxes,
            seed=seed,
            denominator=denominator,
        )


def released(
    privacy: Privacy,
    total: np.ndarray,
    *,
    step: float,
    clip_norm: float,
    bits: int,
    n_boxes: int,
    seed: bytes,
    denominator: int,
) -> Released:
    """A sum in whole steps (masked ones come so: each summand of norm clip_norm / step or less), noised and divided.

    Raises:
        BadMessage: nobody took part, or there is nothing to divide by.
    """
    if n_boxes < 1 or denominator < 1:
        raise BadMessage(f"{n_boxes} boxes over {denominator}: at least one of each is wanted")
    update_noise, bits_noise = split_noise(privacy.noise) if privacy.is_adaptive else (privacy.noise, 0.0)
    noise = gaussian_integers(seed, "update", len(total), update_noise * clip_norm / step)
    mean = ((total + noise) * (step / denominator)).astype(np.float32)
    if not privacy.is_adaptive:
        return Released(mean, clip_norm, n_boxes)
    noised_bits = bits + int(gaussian_integers(seed, "bits", 1, bits_noise)[0])
    return Released(mean, next_clip(clip_norm, noised_bits, n_boxes), n_boxes)
