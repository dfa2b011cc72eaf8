"""What quantizing heads call the levels of a tensor, known without loading a graph library."""

from dataclasses import dataclass
from typing import Final

from compression.codecs.affine import channel_axis
from compression.tensor import TensorSpec

LEAST_ELEMENTS: Final = 64
"""Of a smaller tensor the codec finds the levels sooner than the engine has visited the nodes."""

PREFIX: Final = "hybrid/levels"
"""Of every name that quantizing adds to a graph; exporters do not make such names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelNames:
    """What a quantizing graph calls the levels of one tensor.

    Attributes:
        tensor: the float tensor.
        levels: uint8, of its shape.
        scales: float32 `(c,)`; a NaN among them where the tensor held a NaN or an infinity.
        zeros: uint8 `(c,)`.
        axis: of the channels, or None.
    """

    tensor: str
    levels: str
    scales: str
    zeros: str
    axis: int | None


def level_names(spec: TensorSpec) -> LevelNames | None:
    """The names for a tensor that is quantized in a graph: FP32 of known shape, not tiny; else None."""
    if spec.dtype != "FP32" or (spec.n_elements or 0) < LEAST_ELEMENTS:
        return None
    name = spec.name
    return LevelNames(
        tensor=name,
        levels=f"{PREFIX}/{name}",
        scales=f"{PREFIX}/scales/{name}",
        zeros=f"{PREFIX}/zeros/{name}",
        axis=channel_axis(tuple(size or 0 for size in spec.shape)),
    )
