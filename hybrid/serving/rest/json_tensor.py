"""Tensors as JSON: nested or flat lists into arrays, arrays into flat lists.

Design: each datatype has a typed decoder for its depth of nesting, so that a fraction in an integer tensor, a string in
a number tensor or a ragged list is refused by the parser and never coerced.
"""

from functools import cache
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from compression.tensor import BYTES, NUMPY_OF
from hybrid.errors import TensorMismatch

_MAX_DEPTH: Final = 16

_ELEMENT_OF: Final[dict[str, type]] = {"BOOL": bool, "FP32": float, "FP64": float, BYTES: str}


@cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = _ELEMENT_OF.get(datatype, int)
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def array_of_json(name: str, datatype: str, shape: list[int], data: msgspec.Raw) -> np.ndarray:
    """The array that JSON data stand for; BYTES become an object array of `str`.

    Args:
        name: the tensor's name, for messages.
        datatype: one of the protocol's, checked by the caller.
        shape: declared sizes, each >= 0.
        data: the JSON text of a list, nested as `shape` says or flat.

    Raises:
        TensorMismatch: data of another type, number or nesting than declared, or FP16, which has no JSON form.
    """
    if datatype == "FP16":
        raise TensorMismatch(f"input {name!r}: FP16 has no JSON form; send it as binary data")
    text = bytes(data)
    if not _can_fit(text, datatype, shape):
        raise TensorMismatch(
            f"input {name!r}: data has another number of elements than the declared shape {shape}; send exactly them"
        )
    depth = _depth(text)
    try:
        values = _decoder(datatype, depth).decode(text)
        with np.errstate(over="ignore"):  # _finite says it better than a warning
            array = np.array(values, dtype=NUMPY_OF[datatype])
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError, TypeError) as exc:
        raise TensorMismatch(f"input {name!r}: data is not a {datatype} list of shape {shape}: {exc}") from exc
    nested = array.shape == tuple(shape)
    if not nested and not (depth == 1 and array.size == prod(shape)):
        raise TensorMismatch(
            f"input {name!r}: data has the shape {list(array.shape)}, declared is {shape}; send that or one flat list"
        )
    if not nested:
        array = array.reshape(shape)
    return array if datatype != "FP32" else _finite(name, array)


def list_of_array(name: str, datatype: str, array: np.ndarray) -> list[object]:
    """The flat list of an array's elements, ready for JSON; NaN and infinities read null there.

    Raises:
        TensorMismatch: FP16, or byte strings that are not UTF-8: neither has a JSON form.
    """
    if datatype == "FP16":
        raise TensorMismatch(f"output {name!r} is FP16, which has no JSON form; ask for it with binary_data")
    if datatype == BYTES:
        return [_text(name, element) for element in array.ravel()]
    flat: list[object] = array.ravel().tolist()
    return flat


def _can_fit(text: bytes, datatype: str, shape: list[int]) -> bool:
    """Whether a JSON text may have that shape's elements, by its punctuation and before anything is built of it.

    Lists without empty ones, however nested, have a comma less than numbers. A string begins with a quote that is not
    escaped and has one more; of those that end in a backslash the count sees one, so at most twice as many pass.
    """
    n_elements = prod(shape)
    if datatype == BYTES:
        n_quotes = text.count(b'"')
        return n_quotes - text.count(b'\\"') <= 2 * n_elements <= n_quotes
    n_commas = text.count(b",")
    if n_elements:
        return n_commas + 1 == n_elements
    n_empty = prod(shape[: shape.index(0)])
    return n_commas in (0, n_empty - 1)


def _depth(text: bytes) -> int:
    """How deep the first element is nested; beyond the limit the decoder for the limit will refuse it."""
    depth = 0
    for byte in text:
        if byte == 0x5B:  # [
            depth += 1
            if depth == _MAX_DEPTH:
                break
        elif byte not in b" \t\r\n":
            break
    return max(depth, 1)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    # A JSON number beyond float32 would silently become infinity.
    if not np.isfinite(array).all():
        raise TensorMismatch(f"input {name!r}: a number is beyond the range of FP32")
    return array


def _text(name: str, element: object) -> str:
    if isinstance(element, str):
        return element
    if isinstance(element, bytes):
        try:
            return element.decode()
        except UnicodeDecodeError as exc:
            raise TensorMismatch(f"output {name!r} is not UTF-8; ask for it with binary_data") from exc
    return str(element)
