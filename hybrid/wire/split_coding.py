"""How what crosses a cut travels by a split: through its encoder and entropy coder, or by an ordinary codec."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Protocol

import numpy as np

from compression.errors import CompressionError
from compression.tensor import TensorSpec
from hybrid.errors import ModelInvalid, TensorMismatch
from hybrid.wire.tensor import Tensor

MOST_LATENT_RATIO: Final = 4
"""A latent has at most so many values for each value of what crosses: nobody learns a longer one."""

Run = Callable[..., Sequence[np.ndarray]]
"""`run(output_names, feeds, run_options)`, as onnxruntime's."""


class LatentPrior(Protocol):
    """What both sides know of a latent's levels before they see them (`compression.bottleneck`)."""

    def encode(self, latent: np.ndarray) -> bytes:
        """The bytes of an int8 latent."""
        ...

    def decode(self, payload: bytes | bytearray | memoryview, shape: tuple[int, ...]) -> np.ndarray:
        """The int8 latent of this shape; raises `CorruptPayload` on bytes of any other."""
        ...


def read_prior(data: bytes) -> LatentPrior:
    """The prior of these tables.

    Raises:
        ModelInvalid: they are none.
    """
    from compression.bottleneck.prior import Prior

    try:
        prior: LatentPrior = Prior.from_json(data)
    except (CompressionError, ValueError) as exc:
        raise ModelInvalid(f"the prior of a split cannot be read: {exc}; make the split anew") from exc
    return prior


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An open encoder or decoder: its run, its one input and its one output."""

    run: Run
    input: str
    output: str

    def of(self, array: np.ndarray) -> np.ndarray:
        """What it makes of an array."""
        return self.run([self.output], {self.input: array}, None)[0]


class Port(Protocol):
    """An input or output of an open graph."""

    @property
    def name(self) -> str:
        """Of its tensor."""
        ...

    @property
    def shape(self) -> Sequence[object]:
        """Its sizes; numbers where they are known."""
        ...


class Graph(Protocol):
    """An open graph, as onnxruntime has it."""

    def get_inputs(self) -> Sequence[Port]:
        """What it takes."""
        ...

    def get_outputs(self) -> Sequence[Port]:
        """What it gives."""
        ...


def step_of(graph: Graph, run: Run, what: str) -> Step:
    """An open encoder or decoder as a step.

    Raises:
        ModelInvalid: it has not one input and one output.
    """
    inputs, outputs = graph.get_inputs(), graph.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelInvalid(
            f"{what} has {len(inputs)} inputs and {len(outputs)} outputs; one each is wanted, make the split anew"
        )
    return Step(run=run, input=inputs[0].name, output=outputs[0].name)


def require_encodable(tensors: Sequence[TensorSpec], codec: str) -> None:
    """Refuse an encoder at a cut where it would not do.

    Raises:
        ModelInvalid: something else than one FP32 tensor crosses.
    """
    if len(tensors) != 1 or tensors[0].dtype != "FP32":
        shown = ", ".join(f"{spec.name} {spec.dtype}" for spec in tensors[:5])
        raise ModelInvalid(f"{codec} encodes one FP32 tensor, but {shown} cross here; make the split for another cut")


def require_head(graph: Graph, inputs: Collection[str], outputs: Collection[str], codec: str) -> None:
    """Refuse a head that is not one of this cut.

    Raises:
        ModelInvalid: it takes something else than the model's inputs, or lacks something that a head must give.
    """
    taken, given = {port.name for port in graph.get_inputs()}, {port.name for port in graph.get_outputs()}
    if not taken <= set(inputs) or not given >= set(outputs):
        raise ModelInvalid(
            f"the head of {codec} takes {sorted(taken)[:5]} and gives {sorted(given)[:5]}; of {sorted(inputs)[:5]} it"
            f" should give {sorted(outputs)[:5]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCoder:
    """Encodes what crosses; made once a split.

    Attributes:
        codec: what reports call it, `split:ID`.
        digest: of the split.
        carrier: the codec that is used where there is no encoder.
        encoder: the open encoder, None where there is none.
        prior: with an encoder.
    """

    codec: str
    digest: str
    carrier: str
    encoder: Step | None = None
    prior: LatentPrior | None = None

    @property
    def named(self) -> str:
        """What a request must say of the split: its digest where the other side decodes by it, else nothing."""
        return self.digest if self.encoder is not None else ""

    def encoded(self, crossing: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
        """The crossing tensors; what an encoder was not made for (no finite numbers) goes raw."""
        if self.encoder is None or self.prior is None:
            return tuple(carried(name, array, self.carrier)[0] for name, array in crossing.items())
        return tuple(self._learned(name, array) for name, array in crossing.items())

    def _learned(self, name: str, array: np.ndarray) -> Tensor:
        assert self.encoder is not None
        assert self.prior is not None
        if array.dtype != np.float32 or not np.isfinite(array).all():
            return Tensor.of(name, array)
        spec = TensorSpec(name=name, dtype="FP32", shape=tuple(array.shape))
        payload = self.prior.encode(self.encoder.of(array))
        return Tensor(spec=spec, codec=self.codec, payload=payload)


def carried(name: str, array: np.ndarray, codec: str) -> tuple[Tensor, bool]:
    """The tensor, and whether the codec carries it; else it is raw."""
    if codec == "none":
        return Tensor.of(name, array), True
    try:
        return Tensor.of(name, array, codec), True
    except TensorMismatch:
        return Tensor.of(name, array), False


def latent_of(tensor: Tensor, prior: LatentPrior, shape: tuple[int, ...]) -> np.ndarray:
    """The latent in a tensor's payload.

    Raises:
        TensorMismatch: the bytes are none of this shape.
    """
    try:
        latent = prior.decode(tensor.payload, shape)
    except CompressionError as exc:
        raise TensorMismatch(f"tensor {tensor.spec.name!r} does not decode with codec {tensor.codec!r}: {exc}") from exc
    if latent.dtype != np.int8 or latent.shape != shape:
        raise TensorMismatch(f"tensor {tensor.spec.name!r}: its latent is no INT8 {list(shape)}")
    return latent


def latent_shape(given: Sequence[object], crossing: TensorSpec, what: str) -> tuple[int, ...]:
    """The shape of a decoder's input, where it is one that a latent of this tensor can have.

    Args:
        given: sizes as an engine declares them.
        crossing: what is decoded to.
        what: names the decoder in messages.

    Raises:
        ModelInvalid: open sizes, or far more values than cross.
    """
    shape = tuple(size for size in given if isinstance(size, int) and size >= 0)
    if len(shape) != len(given) or prod(shape) > MOST_LATENT_RATIO * (crossing.n_elements or 0):
        raise ModelInvalid(
            f"{what}: its latent is {list(given)[:8]}; known sizes and at most {MOST_LATENT_RATIO} values for each of"
            f" {list(crossing.shape)} are wanted"
        )
    return shape
