"""What a feature codec is: one tensor to bytes and exactly that tensor's shape and datatype back.

Design: a codec is stateless, safe to call from any thread, and knows nothing of graphs or links. Integrity of bytes in
transit is the transport's business; a codec promises that whatever bytes it is given, it either returns an array of
exactly the declared shape and datatype or raises `CorruptPayload`, and that it takes no more memory than a small
multiple of what the declared tensor needs.
"""

from typing import Protocol

import numpy as np

from compression.tensor import TensorSpec

Payload = bytes | bytearray | memoryview
"""Encoded bytes; a memoryview is contiguous, of single bytes."""


class Codec(Protocol):
    """Turns tensors into bytes and back.

    Attributes:
        name: how the wire names it; stable, never reused.
        lossy: whether decoding may give other values than were encoded.
    """

    @property
    def name(self) -> str:
        """How the wire names this codec."""

    @property
    def lossy(self) -> bool:
        """Whether decoding may give other values than were encoded."""

    def encode(self, array: np.ndarray) -> bytes:
        """Bytes of one tensor, of any memory layout and byte order.

        Raises:
            NotEncodable: this codec cannot carry this dtype, shape or these values.
        """

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The tensor, C-contiguous, writable and owning its memory; `spec` has no unknown dimension.

        Raises:
            CorruptPayload: bytes that are not exactly one tensor of this spec.
        """
