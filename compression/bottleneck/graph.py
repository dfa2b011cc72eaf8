"""Encoders and decoders as ONNX graphs, written node by node: a crossing tensor to `latent` and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.errors import NotTrainable

LATENT: Final = "latent"
_INSIDE: Final = "bottleneck/"
"""What names of tensors inside begin with, so that none is the crossing tensor's."""

OPSET: Final = 17
IR_VERSION: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """The tensor at the cut.

    Attributes:
        name: in the model's graph.
        shape: (n, c, h, w); or (n, t, c), whose vectors are compressed one by one; or (n, c).

    Raises:
        NotTrainable: another shape, or a name that the latent has.
    """

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.shape) <= 4 or min(self.shape) < 1:
            raise NotTrainable(
                f"a crossing tensor of shape {self.shape}; (n, c), (n, t, c) or (n, c, h, w) was expected"
            )
        if not self.name or self.name == LATENT:
            raise NotTrainable(f"a crossing tensor called {self.name!r}; give it a name that the latent has not")

    @property
    def planes(self) -> tuple[int, int, int, int]:
        """The shape as (n, c, h, w): vectors of a sequence lie below each other, a single one is one point."""
        n, *rest = self.shape
        if len(rest) == 1:
            return n, rest[0], 1, 1
        if len(rest) == 2:
            return n, rest[1], rest[0], 1
        return n, rest[0], rest[1], rest[2]

    def as_planes(self, array: np.ndarray) -> np.ndarray:
        """Any number of such tensors, one after another, as (n, c, h, w)."""
        ordered = array.transpose(0, 2, 1) if len(self.shape) == 3 else array
        return np.ascontiguousarray(ordered).reshape((len(array), *self.planes[1:]))


class Chain:
    """A graph that grows by one node at its end; every method names what the chain ends with then."""

    def __init__(self, source: str) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self.end = source

    def node(self, operator: str, *more: str, made: str = "", **attributes: Any) -> str:
        """One node that takes the end and, if named, more."""
        name = made or f"{_INSIDE}{operator}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, [self.end, *more], [name], name=name, **attributes))
        self.end = name
        return name

    def constant(self, array: np.ndarray) -> str:
        """An initializer's name."""
        name = f"{_INSIDE}constant{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def convolve(
        self,
        weight: np.ndarray,
        bias: np.ndarray,
        *,
        stride: int = 1,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
        transposed: bool = False,
    ) -> str:
        """A convolution, or a transposed one; pads are top, left, bottom, right."""
        return self.node(
            "ConvTranspose" if transposed else "Conv",
            self.constant(weight.astype(np.float32)),
            self.constant(bias.astype(np.float32)),
            strides=[stride, stride],
            pads=list(pads),
            group=groups,
            kernel_shape=list(weight.shape[2:]),
        )

    def quantize(self, step: float) -> str:
        """Ends in `latent`: int8, halves to even, beyond the range its ends."""
        constants = self.constant(np.array(step, np.float32)), self.constant(np.array(0, np.int8))
        return self.node("QuantizeLinear", *constants, made=LATENT)

    def dequantize(self, step: float) -> str:
        """Floats of `latent`."""
        return self.node(
            "DequantizeLinear", self.constant(np.array(step, np.float32)), self.constant(np.array(0, np.int8))
        )

    def into_planes(self, crossing: Crossing) -> str:
        """The crossing tensor as (n, c, h, w)."""
        if len(crossing.shape) == 3:
            self.node("Transpose", perm=[0, 2, 1])
        if len(crossing.shape) < 4:
            self.node("Unsqueeze", self.constant(np.arange(len(crossing.shape), 4)))
        return self.end

    def out_of_planes(self, crossing: Crossing) -> str:
        """(n, c, h, w), cut to the crossing tensor's height and width, in its own form and name."""
        _, _, height, width = crossing.planes
        ends = (self.constant(np.array(one, np.int64)) for one in ([0, 0], [height, width], [2, 3]))
        self.node("Slice", *ends)
        if len(crossing.shape) < 4:
            self.node("Squeeze", self.constant(np.arange(len(crossing.shape), 4)))
        return self.node("Transpose" if len(crossing.shape) == 3 else "Identity", made=crossing.name, **_perm(crossing))

    def model(
        self, source: tuple[str, int, Sequence[int | str]], made: tuple[str, int, Sequence[int | str]], title: str
    ) -> onnx.ModelProto:
        """The checked graph; source and result as name, element type and shape."""
        graph = helper.make_graph(
            self._nodes,
            title,
            [helper.make_tensor_value_info(source[0], source[1], list(source[2]))],
            [helper.make_tensor_value_info(made[0], made[1], list(made[2]))],
            self._weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="hybrid"
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _perm(crossing: Crossing) -> dict[str, list[int]]:
    return {"perm": [0, 2, 1]} if len(crossing.shape) == 3 else {}


def encoder_model(chain: Chain, crossing: Crossing, latent: tuple[int, int, int, int]) -> onnx.ModelProto:
    """A chain that began at the crossing tensor and ends in `latent`."""
    return chain.model(
        (crossing.name, TensorProto.FLOAT, crossing.shape), (LATENT, TensorProto.INT8, latent), "encoder"
    )


def decoder_model(chain: Chain, crossing: Crossing, latent: tuple[int, int, int, int]) -> onnx.ModelProto:
    """A chain that began at `latent` and ends in the crossing tensor."""
    return chain.model(
        (LATENT, TensorProto.INT8, latent), (crossing.name, TensorProto.FLOAT, crossing.shape), "decoder"
    )


def with_batch(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """A copy of an encoder or decoder for another number of rows, or with a word for any number."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        size = value.type.tensor_type.shape.dim[0]
        if isinstance(batch, str):
            size.dim_param = batch
        else:
            size.dim_value = batch
    return copy
