"""What a bottleneck looks like and how long it is trained; numbers with their reasons."""

import math
from dataclasses import dataclass

from compression.errors import NotTrainable


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckShape:
    """Sizes of an encoder and a decoder.

    Attributes:
        channels: of the latent.
        stride: how many points of the crossing tensor's height and width one of the latent stands for.
        kernel: side of the encoder's window, at least the stride; 0: the stride. Wider ones cost the device more.
        hidden: channels between the encoder's two convolutions; 0: it is a single one, the cheapest.
        width: channels inside the decoder, which runs where there is power.
        blocks: residual blocks of the decoder; 0: it is linear.

    Raises:
        NotTrainable: a number out of its range.
    """

    channels: int = 12
    stride: int = 1
    kernel: int = 0
    hidden: int = 0
    width: int = 64
    blocks: int = 2

    def __post_init__(self) -> None:
        for name, least in (("channels", 1), ("stride", 1), ("hidden", 0), ("width", 1), ("blocks", 0)):
            _require(name, getattr(self, name) >= least, f"at least {least}")
        _require("kernel", self.kernel == 0 or self.kernel >= self.stride, "0, or at least the stride")

    @property
    def window(self) -> int:
        """Side of the encoder's window."""
        return self.kernel or self.stride


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckRecipe:
    """Settings of one training; the two stages are those of Entropic Student.

    Attributes:
        bits_per_element: what a crossing tensor's element may take of the payload; the weight of bits in the loss is
            steered towards it. It is met on average, not by each payload.
        epochs: of the first stage: encoder, decoder and prior towards the teacher's features, within the wanted bits.
        decoder_epochs: of the second: the decoder alone, towards labels and the teacher's outputs.
        batch: samples a step.
        learning_rate: its highest value; it falls to nothing along a cosine.
        cut_weight: what the distance at the cut counts in the first stage.
        feature_weight: what the mean distance at the later submodules counts.
        output_weight: what the distance of the outputs counts.
        n_features: how many later submodules are compared, evenly spread; 0: none.
        kd_share: how much of the second stage's loss is the teacher's; without labels all of it is.
        temperature: softens scores before they are compared with the teacher's.
        steps: rounding steps, relative to the trained one, for which bottlenecks are wanted: a larger one takes fewer
            bits. The decoder learns all of them in the second stage.
        held_out_ratio: share of the samples that are only measured with.
        clip_norm: largest norm of a step's gradient.

    Raises:
        NotTrainable: a number out of its range.

    Source: Matsubara et al.: SC2 Benchmark, 2023, and Supervised Compression for Resource-Constrained Edge Computing
        Systems (Entropic Student), 2022.
    """

    bits_per_element: float = 0.25
    epochs: int = 4
    decoder_epochs: int = 3
    batch: int = 64
    learning_rate: float = 2e-3
    cut_weight: float = 0.3
    feature_weight: float = 1.0
    output_weight: float = 1.0
    n_features: int = 3
    kd_share: float = 0.5
    temperature: float = 2.0
    steps: tuple[float, ...] = (1.0,)
    held_out_ratio: float = 0.1
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        _require("bits_per_element", 0 < self.bits_per_element <= 8, "above 0, at most 8")
        for name, least in (("epochs", 1), ("decoder_epochs", 0), ("batch", 2), ("n_features", 0)):
            _require(name, getattr(self, name) >= least, f"at least {least}")
        for name in ("learning_rate", "temperature", "clip_norm"):
            _require(name, 0 < getattr(self, name) < math.inf, "a number above 0")
        for name in ("cut_weight", "feature_weight", "output_weight"):
            _require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        _require("kd_share", 0 <= self.kd_share <= 1, "from 0 to 1")
        _require("held_out_ratio", 0 < self.held_out_ratio < 1, "between 0 and 1")
        _require("steps", bool(self.steps) and all(0 < one < math.inf for one in self.steps), "numbers above 0")


def _require(name: str, held: bool, wanted: str) -> None:  # noqa: FBT001
    if not held:
        raise NotTrainable(f"{name} of a bottleneck must be {wanted}")
