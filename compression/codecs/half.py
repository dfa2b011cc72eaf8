"""The codec `fp16`: floats rounded to 16 bits.

Design: a finite value beyond 65504 is refused, not turned into infinity: the caller takes another codec, where an
infinity would be a wrong answer without a sign of it. Infinities and NaNs that were there stay; NaN payloads and values
below 2**-25 do not.
"""

from typing import Final

import numpy as np

from compression.codecs import raw
from compression.codecs.codec import Payload
from compression.errors import CorruptPayload, NotEncodable
from compression.tensor import NUMPY_OF, TensorSpec

_FLOATS: Final = ("FP16", "FP32", "FP64")
_MAX: Final = 65504.0
_OVERFLOWS: Final = 65520.0
"""The smallest magnitude that rounds to infinity."""


class HalfCodec:
    """Codec `fp16`."""

    name: Final = "fp16"
    lossy: Final = True

    def encode(self, array: np.ndarray) -> bytes:
        """Two bytes a value, rounded to nearest, ties to even.

        Raises:
            NotEncodable: not a float tensor, or a finite value beyond 65504.
        """
        datatype, values = raw.canonical(array)
        if datatype not in _FLOATS:
            raise NotEncodable(f"fp16 carries {', '.join(_FLOATS)}, not {datatype}; use 'lossless'")
        if datatype == "FP16":
            return values.tobytes()
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            halves = values.astype("<f2")
        if (np.abs(values) >= _OVERFLOWS).any() and not np.array_equal(np.isinf(halves), np.isinf(values)):
            raise NotEncodable(f"a value beyond ±{_MAX:.0f} does not fit fp16; use 'lossless'")
        return halves.tobytes()

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The rounded values, in the declared float datatype."""
        shape = raw.known_shape(spec)
        if spec.dtype not in _FLOATS:
            raise CorruptPayload(f"{spec.name}: fp16 carries {', '.join(_FLOATS)}, not {spec.dtype}")
        expected = 2 * (spec.n_elements or 0)
        if len(payload) != expected:
            raise CorruptPayload(f"{spec.name}: {len(payload)} bytes of fp16 for {list(shape)}, which takes {expected}")
        return np.frombuffer(payload, "<f2").astype(NUMPY_OF[spec.dtype]).reshape(shape)
