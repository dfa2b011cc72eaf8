"""The shape key of a request: the shapes of its inputs, which a prepared graph is bound to."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid.errors import BadMessage

MAX_TEXT_BYTES = 16_384
_MAX_INPUTS = 1024
_MAX_RANK = 64
_MAX_SIZE = 2**40


@dataclass(frozen=True, slots=True)
class ShapeKey:
    """Input shapes of a request, sorted by input name.

    Attributes:
        shapes: one (input name, shape) pair an input, sorted by name.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, feeds: Mapping[str, np.ndarray]) -> "ShapeKey":
        """The key of these feeds; anything that is not an array counts as `np.asarray` sees it."""
        return cls(tuple(sorted((name, _shape_of(value)) for name, value in feeds.items())))

    @classmethod
    def parse(cls, text: str) -> "ShapeKey":
        """The key that `text` spells: a JSON object of input name to list of sizes.

        Raises:
            BadMessage: not such an object, or sizes that no tensor has.
        """
        if len(text) > MAX_TEXT_BYTES:
            raise BadMessage(f"shape key of {len(text)} characters; at most {MAX_TEXT_BYTES} are read")
        try:
            decoded = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as exc:
            raise BadMessage(f'shape key is not JSON ({exc}); want an object like {{"x":[1,3,640,640]}}') from exc
        if not isinstance(decoded, dict) or len(decoded) > _MAX_INPUTS:
            raise BadMessage('shape key must be an object of input name to sizes, like {"x":[1,3,640,640]}')
        return cls(tuple(sorted((name, _checked_shape(name, sizes)) for name, sizes in decoded.items())))

    @property
    def text(self) -> str:
        """Canonical JSON: names sorted by code point, no spaces, UTF-8 not escaped."""
        return json.dumps(dict(self.shapes), separators=(",", ":"), ensure_ascii=False)

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 over `text` in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _shape_of(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", None)
    if callable(shape):  # onnxruntime's OrtValue
        return tuple(shape())
    return tuple(np.shape(value) if shape is None else shape)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise BadMessage("shape key names an input twice; name each input once")
    return decoded


def _checked_shape(name: str, sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > _MAX_RANK:
        raise BadMessage(f"shape of input {name!r} must be a list of at most {_MAX_RANK} sizes")
    for size in sizes:
        if type(size) is not int or not 0 <= size <= _MAX_SIZE:
            raise BadMessage(f"shape of input {name!r} holds {size!r}; want whole numbers from 0 to {_MAX_SIZE}")
    return tuple(sizes)
