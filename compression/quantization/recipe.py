"""How a model becomes int8, as data, and what comes out."""

from dataclasses import dataclass
from typing import Literal, get_args

import onnx

from compression.errors import NotQuantizable

ByteType = Literal["uint8", "int8"]
Operators = Literal["auto", "all", "products"]
Ranges = Literal["minmax", "entropy", "percentile", "mse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Recipe:
    """One way of quantizing; every field has a part in the bytes that come out, nothing else has.

    Attributes:
        activations: bytes of what flows between layers; `uint8` is what x86 kernels are fast with.
        weights: bytes of the weights, symmetric; `int8` on x86 and Arm.
        per_channel: a scale for each output channel of a weight instead of one for all.
        reduce_range: weights of 7 bits, for x86 without VNNI, whose 16-bit sums would saturate.
        ranges: how the range of an activation follows from the samples: their extremes; or with the rarest values
            cut off so that the divergence of the distributions is least (`entropy`), at 99.99 % of the values
            (`percentile`), or where the expected squared error is least (`mse`).
        equalized: cross-layer equalisation before anything else.
        bias_corrected: fold the mean error of each channel into its bias, where that helps.
        smoothed: SmoothQuant's alpha, 0 to 1, or None for none.
        operators: what is computed in int8: `all` that the engine can, so that bytes flow from layer to layer, or
            the `products` by constant weights alone, each of which rounds its own input. `auto` takes `all` for
            convnets and `products` for transformers, whose additions and normalisations int8 makes worse and slower.
        wide_stems: see `stems`: the same numbers, sooner.
        kept_float: names of nodes (of the prepared model) that stay float.
    """

    activations: ByteType = "uint8"
    weights: ByteType = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    ranges: Ranges = "minmax"
    equalized: bool = False
    bias_corrected: bool = False
    smoothed: float | None = None
    operators: Operators = "auto"
    wide_stems: bool = True
    kept_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no recipe can mean.

        Raises:
            NotQuantizable: a field outside of its values.
        """
        for field, value, known in (
            ("activations", self.activations, get_args(ByteType)),
            ("weights", self.weights, get_args(ByteType)),
            ("ranges", self.ranges, get_args(Ranges)),
            ("operators", self.operators, get_args(Operators)),
        ):
            if value not in known:
                raise NotQuantizable(f"recipe: {field} is {value!r}, wanted one of {', '.join(known)}")
        if self.smoothed is not None and not 0.0 <= self.smoothed <= 1.0:
            raise NotQuantizable(f"recipe: smoothed is {self.smoothed}, wanted an alpha from 0 to 1, or None")
        names: object = self.kept_float
        if isinstance(names, str):
            raise NotQuantizable(f"recipe: kept_float is one string, {names!r}; wanted a tuple of node names")

    @property
    def pair(self) -> str:
        """The type pair as tables name it: `U8S8`."""
        return "".join({"uint8": "U8", "int8": "S8"}[kind] for kind in (self.activations, self.weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantized model.

    Attributes:
        model: with QuantizeLinear and DequantizeLinear around what is computed in int8.
        n_int8: convolutions and matrix products that an engine can compute in int8.
        n_float: those that stay float.
        notes: what was done, skipped and why, one sentence each.
    """

    model: onnx.ModelProto
    n_int8: int
    n_float: int
    notes: tuple[str, ...] = ()
