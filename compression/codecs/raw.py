"""The codec `none`: raw little-endian bytes, strings as 4-byte little-endian length and bytes each.

Source: binary tensor data extension of the Open Inference Protocol (lengths before the elements of BYTES tensors).
"""

import struct
from typing import Final

import numpy as np

from compression.codecs.codec import Payload
from compression.errors import CorruptPayload, NotEncodable
from compression.tensor import BYTES, NUMPY_OF, TensorSpec, datatype_of

_LENGTH: Final = struct.Struct("<I")


def canonical(array: np.ndarray) -> tuple[str, np.ndarray]:
    """Datatype, and the same values C-contiguous and little-endian (no copy where they are so already).

    Raises:
        UnknownDatatype: a dtype that the protocol does not name.
    """
    datatype = datatype_of(array)
    if datatype == BYTES:
        return datatype, array
    return datatype, np.asarray(array, dtype=NUMPY_OF[datatype], order="C")


def byte_view(array: np.ndarray) -> np.ndarray:
    """The bytes of a C-contiguous numeric array as a flat uint8 view."""
    return array.reshape(-1).view(np.uint8)


def raw_bytes(array: np.ndarray) -> bytes:
    """Raw form of one tensor.

    Raises:
        NotEncodable: a string tensor with an element that is neither bytes nor str, or is 4 GiB long.
    """
    datatype, values = canonical(array)
    return _string_bytes(values) if datatype == BYTES else values.tobytes()


def from_raw(payload: Payload, spec: TensorSpec) -> np.ndarray:
    """The tensor whose raw form this is, writable and owning its memory.

    Raises:
        CorruptPayload: a length that is not the declared one, or a BOOL byte other than 0 and 1.
    """
    shape = known_shape(spec)
    if spec.dtype == BYTES:
        return _strings(payload, spec, shape)
    expected = spec.n_bytes
    if len(payload) != expected:
        raise CorruptPayload(
            f"{spec.name}: {len(payload)} bytes for {spec.dtype} {list(shape)}, which takes {expected}"
        )
    array = np.empty(shape, NUMPY_OF[spec.dtype])
    byte_view(array)[:] = np.frombuffer(payload, np.uint8)
    return checked(array, spec)


def known_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The declared shape, complete.

    Raises:
        CorruptPayload: a dimension is unknown or negative, so that no size can be checked.
    """
    shape = tuple(size for size in spec.shape if size is not None and size >= 0)
    if len(shape) != len(spec.shape):
        raise CorruptPayload(f"{spec.name}: shape {list(spec.shape)} leaves a dimension open; declare all of them")
    return shape


def checked(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The same array, once its bytes are known to be values of its datatype (only BOOL has others).

    Raises:
        CorruptPayload: a BOOL byte other than 0 and 1.
    """
    if spec.dtype == "BOOL" and array.size and int(byte_view(array).max()) > 1:
        raise CorruptPayload(f"{spec.name}: a BOOL byte is neither 0 nor 1")
    return array


class RawCodec:
    """Codec `none`."""

    name: Final = "none"
    lossy: Final = False

    def encode(self, array: np.ndarray) -> bytes:
        """Raw form of one tensor."""
        return raw_bytes(array)

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The tensor whose raw form this is."""
        return from_raw(payload, spec)


def _string_bytes(array: np.ndarray) -> bytes:
    pieces: list[bytes] = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes) or len(element) > 0xFFFFFFFF:
            raise NotEncodable(f"a string tensor holds {type(element).__name__}; elements are bytes or str below 4 GiB")
        pieces += (_LENGTH.pack(len(element)), element)
    return b"".join(pieces)


def _strings(payload: Payload, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    n_elements = spec.n_elements or 0
    if n_elements * _LENGTH.size > len(payload):
        raise CorruptPayload(f"{spec.name}: {len(payload)} bytes cannot hold {n_elements} strings and their lengths")
    elements: list[bytes] = []
    data = memoryview(payload)
    at = 0
    for _ in range(n_elements):
        if at + _LENGTH.size > len(data):
            raise CorruptPayload(f"{spec.name}: the bytes end after {len(elements)} of {n_elements} strings")
        end = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
        if end > len(data):
            raise CorruptPayload(f"{spec.name}: string {len(elements)} reaches {end - len(data)} bytes past the end")
        elements.append(bytes(data[at + _LENGTH.size : end]))
        at = end
    if at != len(data):
        raise CorruptPayload(f"{spec.name}: {len(data) - at} bytes left over after {n_elements} strings")
    array = np.empty(n_elements, object)
    array[:] = elements
    return array.reshape(shape)
