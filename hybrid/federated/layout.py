"""What a round learns, as one vector: names and shapes of its tensors, and where each lies in it."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from hybrid.errors import BadMessage, TensorMismatch

MAX_TENSORS: Final = 4096
MAX_ELEMENTS: Final = 1 << 31

_REMEMBERED: Final = 32


@lru_cache(maxsize=_REMEMBERED)
def _sizes(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape) for shape in shapes)


@lru_cache(maxsize=_REMEMBERED)
def _n_elements(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(_sizes(shapes))


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors in their order, row-major, one behind the other; all float32.

    Attributes:
        names: unique.
        shapes: one for each name; `()` is a scalar.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Raises `BadMessage` for what no model can have."""
        if not 1 <= len(self.names) <= MAX_TENSORS or len(self.names) != len(self.shapes):
            raise BadMessage(f"a layout has {len(self.names)} names and {len(self.shapes)} shapes")
        if len(set(self.names)) != len(self.names):
            raise BadMessage("a layout names a tensor twice")
        if any(size < 1 for shape in self.shapes for size in shape) or self.n_elements > MAX_ELEMENTS:
            raise BadMessage(f"a layout of {self.n_elements} elements: sizes are 1 or more, {MAX_ELEMENTS} in all")

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Layout":
        """The layout of these arrays, in their order."""
        return cls(names=tuple(arrays), shapes=tuple(tuple(array.shape) for array in arrays.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor."""
        return _sizes(self.shapes)

    @property
    def n_elements(self) -> int:
        """Elements of all tensors."""
        return _n_elements(self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 of names and shapes, in hex."""
        return hashlib.sha256(msgspec.json.encode([self.names, self.shapes])).hexdigest()

    def places(self) -> Iterator[tuple[str, tuple[int, ...], slice]]:
        """Name, shape and place in the vector of each tensor."""
        start = 0
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            yield name, shape, slice(start, start + size)
            start += size

    def vector(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """All tensors as one new float32 vector (n_elements,).

        Raises:
            TensorMismatch: one is missing, too many, or of another shape or datatype.
        """
        if set(arrays) != set(self.names):
            differing = sorted(set(arrays) ^ set(self.names))
            raise TensorMismatch(f"these tensors are not the layout's: {', '.join(differing[:5])}")
        vector = np.empty(self.n_elements, np.float32)
        for name, shape, place in self.places():
            array = arrays[name]
            if array.shape != shape or array.dtype != np.float32:
                raise TensorMismatch(f"{name!r} is {array.dtype} {array.shape}, the layout says float32 {shape}")
            vector[place] = array.ravel()
        return vector

    def arrays(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors of a vector, as views of it.

        Raises:
            TensorMismatch: it has not the layout's length, or is not float32.
        """
        if vector.shape != (self.n_elements,) or vector.dtype != np.float32:
            raise TensorMismatch(
                f"a vector is {vector.dtype} {vector.shape}, the layout has {self.n_elements} elements"
            )
        return {name: vector[place].reshape(shape) for name, shape, place in self.places()}
