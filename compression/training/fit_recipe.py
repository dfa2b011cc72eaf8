"""How long, how fast and towards what a module is trained; numbers with their reasons."""

import math
from dataclasses import dataclass

from compression.errors import InvalidTrainingSet


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecipe:
    """Settings of one training.

    Attributes:
        epochs: times that every sample is seen, at most.
        batch: samples a step.
        learning_rate: its highest value; it rises from a 25th of it and falls to nothing, along a cosine.
        rise_ratio: share of the steps on which it rises.
        weight_decay: of AdamW, on weights; biases and normalisations are spared.
        temperature: softens scores before they are compared with the teacher's.
        kd_share: how much of the loss is the teacher's, the rest is the labels'; without labels all of it is.
        features: submodules, of these names in both, whose outputs are drawn towards the teacher's.
        feature_weight: what their distance counts beside the rest.
        label_smoothing: of the cross entropy.
        patience: epochs without a better answer on the held out part, past the rise, before it ends.
        held_out_ratio: share of the samples that are only asked, never trained on.
        clip_norm: largest norm of a step's gradient.

    Raises:
        InvalidTrainingSet: a number out of its range.

    Source: Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015; Smith, Topin: Super-convergence,
        2019.
    """

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 2e-3
    rise_ratio: float = 0.3
    weight_decay: float = 1e-3
    temperature: float = 1.0
    kd_share: float = 0.5
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    label_smoothing: float = 0.0
    patience: int = 5
    held_out_ratio: float = 0.1
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("batch", self.batch >= 2, "at least 2 (normalisations need two)")
        for name in ("learning_rate", "temperature", "clip_norm"):
            value = getattr(self, name)
            self._require(name, value > 0 and math.isfinite(value), "a number above 0")
        for name in ("weight_decay", "feature_weight"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("kd_share", "rise_ratio"):
            self._require(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1")
        self._require("held_out_ratio", 0 < self.held_out_ratio <= 0.5, "above 0, at most 0.5")

    def rate(self, progress: float) -> float:
        """The learning rate after this share of the steps (0 to 1)."""
        least = 1 / 25
        if progress < self.rise_ratio:
            rise = progress / self.rise_ratio
            return self.learning_rate * (least + (1 - least) * 0.5 * (1 - math.cos(math.pi * rise)))
        fall = (progress - self.rise_ratio) / max(1 - self.rise_ratio, 1e-9)
        return self.learning_rate * max(0.5 * (1 + math.cos(math.pi * min(fall, 1.0))), 1e-4)

    def _require(self, name: str, right: object, wanted: str) -> None:
        if not right:
            raise InvalidTrainingSet(f"the recipe's {name} is {getattr(self, name)!r}; wanted {wanted}")
