"""The ring that masked values live in: as wide as the sum needs, packed bit by bit, and masks added to it.

Design: values are computed in words of 16 or 32 bits, where overflow is harmless because the ring's size divides the
word's; only what travels is packed.
"""

from typing import Final

import numpy as np

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.secure.cipher import keystream

MAX_BITS: Final = 32
_PIECE_BYTES: Final = 1 << 17
_ZEROS: Final = bytes(_PIECE_BYTES)


def ring_bits(n_levels: int, n_devices: int) -> int:
    """Bits of an element: the fewest that hold every sum of so many devices' levels, -n_levels to n_levels each.

    Raises:
        BadMessage: more than 32.
    """
    bits = (2 * n_levels * n_devices).bit_length()
    if bits > MAX_BITS:
        raise BadMessage(f"sums of {n_devices} devices with {n_levels} levels need {bits} bits; {MAX_BITS} at most")
    return bits


def packed_size(n_elements: int, bits: int) -> int:
    """Bytes of so many packed elements."""
    return (n_elements * bits + 7) // 8


def words_of(levels: np.ndarray, bits: int) -> np.ndarray:
    """Signed levels (n,) as new words of the ring."""
    words: np.ndarray = levels.astype(_word(bits))
    return words


def signed(words: np.ndarray, bits: int) -> np.ndarray:
    """Words of the ring as the signed numbers that they stand for, int64 (n,)."""
    values: np.ndarray = (words & _word(bits).type((1 << bits) - 1)).astype(np.int64)
    values[values >= 1 << (bits - 1)] -= 1 << bits
    return values


def zeros(n_elements: int, bits: int) -> np.ndarray:
    """So many words of zero."""
    return np.zeros(n_elements, _word(bits))


def add_mask(words: np.ndarray, key: bytes, *, sign: int) -> None:
    """Add (`sign` 1) or subtract (-1) in place the mask that follows from a key of 32 bytes."""
    stream = keystream(key)
    buffer = bytearray(_PIECE_BYTES)
    piece = np.frombuffer(buffer, words.dtype)
    operation = np.add if sign > 0 else np.subtract
    for start in range(0, len(words), len(piece)):
        part = words[start : start + len(piece)]
        n_bytes = part.nbytes
        stream.update_into(memoryview(_ZEROS)[:n_bytes], memoryview(buffer)[:n_bytes])
        operation(part, piece[: len(part)], out=part)


def packed(words: np.ndarray, bits: int) -> bytes:
    """The low `bits` of each word, the first word's lowest bit first, without gaps; zeros at the end."""
    n_groups = (len(words) + 7) // 8
    groups = np.zeros((n_groups, 8), np.uint32)
    groups.reshape(-1)[: len(words)] = words
    groups &= np.uint32((1 << bits) - 1)
    columns = np.ascontiguousarray(groups.T)
    out = np.zeros((n_groups, bits), np.uint8)
    for place in range(bits):
        for element in range(8 * place // bits, min(8, -(-8 * (place + 1) // bits))):
            shift = element * bits - 8 * place
            column = columns[element]
            out[:, place] |= (column << shift if shift >= 0 else column >> -shift).astype(np.uint8)
    return out.tobytes()[: packed_size(len(words), bits)]


def check_packed(content: bytes, n_elements: int, bits: int) -> None:
    """Return if these bytes can be so many packed elements.

    Raises:
        TensorMismatch: another length, or bits set behind the last element.
    """
    if len(content) != packed_size(n_elements, bits):
        raise TensorMismatch(
            f"a masked vector of {len(content)} bytes; {n_elements} elements of {bits} bits have "
            f"{packed_size(n_elements, bits)}"
        )
    if content and content[-1] >> ((n_elements * bits - 1) % 8 + 1):
        raise TensorMismatch("a masked vector has bits set behind its last element")


def unpacked(content: bytes, n_elements: int, bits: int) -> np.ndarray:
    """The words of packed content. Raises `TensorMismatch` as `check_packed`."""
    check_packed(content, n_elements, bits)
    n_groups = (n_elements + 7) // 8
    raw = np.zeros(n_groups * bits, np.uint8)
    raw[: len(content)] = np.frombuffer(content, np.uint8)
    columns = np.ascontiguousarray(raw.reshape(n_groups, bits).T).astype(np.uint32)
    words = np.zeros((n_groups, 8), np.uint32)
    for element in range(8):
        for place in range(element * bits // 8, (element * bits + bits + 7) // 8):
            shift = 8 * place - element * bits
            words[:, element] |= columns[place] << shift if shift >= 0 else columns[place] >> -shift
    words &= np.uint32((1 << bits) - 1)
    return words.reshape(-1)[:n_elements].astype(_word(bits))


def _word(bits: int) -> np.dtype:
    return np.dtype("<u2") if bits <= 16 else np.dtype("<u4")
