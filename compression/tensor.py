"""What a tensor is on the wire and in a cut: a name, a datatype of the Open Inference Protocol, a shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from compression.errors import UnknownDatatype

BYTES: Final = "BYTES"
"""Datatype of string tensors: elements are byte strings, numpy dtype object."""

NUMPY_OF: Final[dict[str, np.dtype]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(object),
}
"""The datatypes that travel, each with its little-endian numpy dtype."""

ONNX_OF: Final[dict[str, int]] = {
    "FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, BYTES: 8,
    "BOOL": 9, "FP16": 10, "FP64": 11, "UINT32": 12, "UINT64": 13,
}  # fmt: skip
"""TensorProto.DataType of each datatype (ONNX IR, onnx.proto)."""

DATATYPE_OF_ONNX: Final = {number: name for name, number in ONNX_OF.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, datatype and shape of one tensor.

    Attributes:
        name: the tensor's name in its graph.
        dtype: a datatype of the Open Inference Protocol, a key of `NUMPY_OF`.
        shape: one entry a dimension; None where the size is known only at run time.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def n_elements(self) -> int | None:
        """How many elements, or None while a dimension is unknown."""
        known = [size for size in self.shape if size is not None]
        return prod(known) if len(known) == len(self.shape) else None

    @property
    def n_bytes(self) -> int | None:
        """Bytes of the raw little-endian form; None for strings and for unknown dimensions."""
        if self.dtype == BYTES or self.n_elements is None:
            return None
        return self.n_elements * NUMPY_OF[self.dtype].itemsize

    def accepts(self, dtype: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this dtype and shape fits: equal, unknown dimensions matching any size."""
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(mine is None or mine == theirs for mine, theirs in zip(self.shape, shape, strict=True))
        )


def datatype_of(array: np.ndarray) -> str:
    """Datatype of a numpy array; strings of any numpy kind are BYTES.

    Raises:
        UnknownDatatype: numpy holds it, the protocol has no name for it (complex, datetime, void).
    """
    if array.dtype.kind in "OSU":
        return BYTES
    try:
        return _DATATYPE_OF_NUMPY[array.dtype.kind, array.dtype.itemsize]
    except KeyError:
        raise UnknownDatatype(
            f"numpy dtype {array.dtype} has no datatype in the inference protocol; use one of {', '.join(NUMPY_OF)}"
        ) from None


_DATATYPE_OF_NUMPY: Final = {(dtype.kind, dtype.itemsize): name for name, dtype in NUMPY_OF.items() if name != BYTES}
