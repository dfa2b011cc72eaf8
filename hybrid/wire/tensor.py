"""A tensor as it travels: its spec, its codec and its bytes."""

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from compression.codecs.affine import Levels
from compression.errors import CompressionError, UnknownDatatype
from compression.tensor import BYTES, NUMPY_OF, TensorSpec, datatype_of
from hybrid.errors import TensorMismatch

RAW: Final = "none"
"""The codec of raw little-endian bytes."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a message.

    Attributes:
        spec: name, datatype and known shape.
        codec: "none" for raw little-endian bytes, else a name of `compression.codecs.catalog`.
        payload: the bytes; may be a view of the array that the tensor was made of, or of the message that it came in.
    """

    spec: TensorSpec
    codec: str = RAW
    payload: bytes | memoryview = b""

    @property
    def n_bytes(self) -> int:
        """Bytes of the payload."""
        return len(self.payload)

    @classmethod
    def of(cls, name: str, array: Array, codec: str = RAW) -> "Tensor":
        """The tensor of an array.

        With codec "none" a contiguous little-endian array is not copied: leave it unchanged until the request is over.

        Raises:
            TensorMismatch: a numpy dtype, or an element of a string tensor, that does not travel; a codec that does
                not carry it.
        """
        try:
            dtype = datatype_of(array)
        except UnknownDatatype as exc:
            raise TensorMismatch(f"tensor {name!r}: {exc}") from exc
        spec = TensorSpec(name=name, dtype=dtype, shape=tuple(array.shape))
        if codec == RAW:
            return cls(spec=spec, payload=_raw_bytes(spec, array))
        from compression.codecs import catalog

        try:
            return cls(spec=spec, codec=codec, payload=catalog.get(codec).encode(array))
        except CompressionError as exc:
            raise TensorMismatch(f"tensor {name!r} cannot be encoded with codec {codec!r}: {exc}") from exc

    @classmethod
    def of_levels(cls, name: str, levels: Levels, codec: str) -> "Tensor":
        """The tensor of a float32 array that was quantized already, in a graph.

        Raises:
            TensorMismatch: a codec that carries no levels, or levels of something that is not finite.
        """
        from compression.codecs import catalog
        from compression.codecs.quantized import QuantizedCodec

        spec = TensorSpec(name=name, dtype="FP32", shape=tuple(levels.levels.shape))
        found = catalog.get(codec)
        if not isinstance(found, QuantizedCodec):
            raise TensorMismatch(f"tensor {name!r} is quantized, which codec {codec!r} does not carry")
        try:
            return cls(spec=spec, codec=codec, payload=found.pack(levels))
        except CompressionError as exc:
            raise TensorMismatch(f"tensor {name!r} cannot be encoded with codec {codec!r}: {exc}") from exc

    def to_array(self) -> Array:
        """The array: declared dtype and shape, writable, C-contiguous.

        Elements of BYTES tensors are `bytes`, dtype object. Where the payload is an aligned writable view (of a message
        that arrived over the wire) the array shares its memory.

        Raises:
            TensorMismatch: the bytes are not exactly a tensor of this datatype and shape.
        """
        shape = _known_shape(self.spec)
        if self.codec == RAW:
            return _strings(self.spec, shape, self.payload) if self.spec.dtype == BYTES else self._numbers(shape)
        from compression.codecs import catalog

        try:
            array = catalog.get(self.codec).decode(self.payload, self.spec)
        except CompressionError as exc:
            raise TensorMismatch(f"tensor {self.spec.name!r} does not decode with codec {self.codec!r}: {exc}") from exc
        return np.require(array, requirements=["C", "W"])

    def _numbers(self, shape: tuple[int, ...]) -> Array:
        dtype = NUMPY_OF[self.spec.dtype]
        if self.spec.n_bytes != len(self.payload):
            raise TensorMismatch(
                f"tensor {self.spec.name!r} has {len(self.payload)} bytes, {self.spec.dtype} {list(shape)} has "
                f"{self.spec.n_bytes}; the sender must declare what it sends"
            )
        array = np.frombuffer(self.payload, dtype=dtype).reshape(shape)
        if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise TensorMismatch(f"tensor {self.spec.name!r} is BOOL and holds bytes other than 0 and 1; send 0 or 1")
        return np.require(array, requirements=["C", "W", "ALIGNED"])


def _known_shape(spec: TensorSpec) -> tuple[int, ...]:
    if spec.dtype not in NUMPY_OF:
        raise TensorMismatch(f"tensor {spec.name!r} has datatype {spec.dtype!r}; use one of {', '.join(NUMPY_OF)}")
    shape = tuple(size for size in spec.shape if size is not None and size >= 0)
    if len(shape) != len(spec.shape):
        raise TensorMismatch(
            f"tensor {spec.name!r} has shape {list(spec.shape)}; every dimension must be known and >= 0"
        )
    return shape


def _raw_bytes(spec: TensorSpec, array: Array) -> bytes | memoryview:
    if spec.dtype == BYTES:
        return _string_bytes(spec, array)
    little = np.ascontiguousarray(array, dtype=NUMPY_OF[spec.dtype])
    return little.reshape(-1).view(np.uint8).data


def _string_bytes(spec: TensorSpec, array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise TensorMismatch(
                f"tensor {spec.name!r} is a string tensor and holds a {type(element).__name__}; give str or bytes"
            )
        parts += [struct.pack("<I", len(element)), element]
    return b"".join(parts)


def _strings(spec: TensorSpec, shape: tuple[int, ...], payload: bytes | memoryview) -> Array:
    wanted = spec.n_elements or 0
    if len(payload) < 4 * wanted:
        raise TensorMismatch(
            f"string tensor {spec.name!r} of {wanted} elements has {len(payload)} bytes; each needs 4 and its own"
        )
    data = bytes(payload)
    elements: list[bytes] = []
    at = 0
    for _ in range(wanted):
        (size,) = struct.unpack_from("<I", data, at) if at + 4 <= len(data) else (len(data),)
        if at + 4 + size > len(data):
            raise TensorMismatch(f"string tensor {spec.name!r} ends within element {len(elements)} of {wanted}")
        elements.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(data):
        raise TensorMismatch(f"string tensor {spec.name!r} has {len(data) - at} bytes after its last element")
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
