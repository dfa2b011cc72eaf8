"""Tensors as raw little-endian bytes: views of received buffers, and buffers to send.

Source: Triton's binary tensor data extension. A string element is a 4-byte little-endian length and its bytes.
"""

import struct
from math import prod
from typing import Final

import numpy as np

from compression.tensor import BYTES, NUMPY_OF
from hybrid.errors import TensorMismatch

_LENGTH: Final = struct.Struct("<I")


def array_of_bytes(name: str, datatype: str, shape: list[int], data: memoryview) -> np.ndarray:
    """The array that raw bytes stand for: a view without a copy, except for strings, flags and unaligned bytes.

    Raises:
        TensorMismatch: more or fewer bytes than datatype and shape say.
    """
    if datatype == BYTES:
        return text_array(name, _strings(name, shape, data))
    kind = NUMPY_OF[datatype]
    wanted = prod(shape) * kind.itemsize
    if len(data) != wanted:
        raise TensorMismatch(
            f"tensor {name!r} has {len(data)} bytes of data; {datatype} of shape {shape} has exactly {wanted}"
        )
    if datatype == "BOOL":
        # Any non-zero byte is true to the sender; numpy and the engine know only 0 and 1.
        flags: np.ndarray = np.frombuffer(data, dtype=np.uint8) != 0
        return flags.reshape(shape)
    array = np.frombuffer(data, dtype=kind).reshape(shape)
    return array if array.flags.aligned else array.copy()


def bytes_of_array(array: np.ndarray, datatype: str) -> bytes | memoryview:
    """The raw form of an array, without a copy where it is contiguous."""
    if datatype == BYTES:
        parts: list[bytes] = []
        for element in array.ravel():
            text = element if isinstance(element, bytes) else str(element).encode()
            parts += (_LENGTH.pack(len(text)), text)
        return b"".join(parts)
    array = np.ascontiguousarray(array, dtype=NUMPY_OF[datatype])
    if array.nbytes < 4096:  # small buffers are joined with the header anyway
        return array.tobytes()
    return memoryview(array).cast("B")


def text_array(name: str, array: np.ndarray) -> np.ndarray:
    """Byte strings as the `str` that engines want.

    Raises:
        TensorMismatch: an element is not UTF-8, and onnxruntime's strings are.
    """
    found = np.empty(array.size, dtype=object)
    for index, element in enumerate(array.ravel()):
        try:
            found[index] = element.decode() if isinstance(element, bytes) else str(element)
        except UnicodeDecodeError as exc:
            raise TensorMismatch(f"tensor {name!r}: string {index} is not UTF-8, which strings are here") from exc
    return found.reshape(array.shape)


def _strings(name: str, shape: list[int], data: memoryview) -> np.ndarray:
    n_elements = prod(shape)
    if n_elements * _LENGTH.size > len(data):
        raise TensorMismatch(f"tensor {name!r} has {len(data)} bytes of data; {n_elements} strings need more")
    array = np.empty(n_elements, dtype=object)
    position = 0
    for index in range(n_elements):
        if position + _LENGTH.size > len(data):
            raise TensorMismatch(f"tensor {name!r} ends before string {index} of {n_elements}")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise TensorMismatch(f"tensor {name!r}: string {index} claims {length} bytes beyond the end of the data")
        array[index] = bytes(data[position : position + length])
        position += length
    if position != len(data):
        raise TensorMismatch(f"tensor {name!r} has {len(data) - position} bytes after its {n_elements} strings")
    return array.reshape(shape)
