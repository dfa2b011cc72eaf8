"""Golden inputs and outputs of a version: read without trust, compared within the tolerance of the engine."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from hybrid.artifact.manifest import CascadeRule, Golden, Manifest
from hybrid.errors import GoldenDiffers, ModelInvalid

DEFAULT_TOLERANCE: Final = 1e-4
"""Of the largest magnitude of an output, where the manifest names no tolerance for the engine."""

_MOST_BYTES: Final = 256 << 20


def golden_arrays(read: Callable[[Path], bytes], folder: Path, paths: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of golden inputs or outputs, by tensor.

    Raises:
        ModelInvalid: a file that is no array of numbers.
    """
    return {tensor: _array(read(folder / path), path) for tensor, path in sorted(paths.items())}


def compare(found: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray], tolerance: float, what: str) -> None:
    """Refuse outputs that are not the golden ones.

    Raises:
        GoldenDiffers: names the first tensor that differs, and by how much.
    """
    for tensor, wanted in sorted(golden.items()):
        if tensor not in found:
            raise GoldenDiffers(f"{what} has no output {tensor!r}, which its golden outputs name", tensor=tensor)
        seen = np.asarray(found[tensor])
        if seen.shape != wanted.shape or seen.dtype.kind not in _COMPARABLE.get(wanted.dtype.kind, wanted.dtype.kind):
            raise GoldenDiffers(
                f"{what}: output {tensor!r} is {seen.dtype} {list(seen.shape)}, golden is {wanted.dtype} "
                f"{list(wanted.shape)}",
                tensor=tensor,
            )
        error = difference(seen, wanted)
        if not error <= tolerance:
            raise GoldenDiffers(
                f"{what}: output {tensor!r} differs by {error:.3g} of its largest value, {tolerance:.3g} is allowed",
                tensor=tensor,
            )


def difference(seen: np.ndarray, wanted: np.ndarray) -> float:
    """max |seen - wanted| over max |wanted|; infinite where one is not a number and the other is."""
    if wanted.size == 0:
        return 0.0
    if wanted.dtype.kind in "SUO":
        return 0.0 if np.array_equal(seen.astype(str), wanted.astype(str)) else float("inf")
    a, b = seen.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if bool(same.all()):
        return 0.0
    finite = np.isfinite(a) & np.isfinite(b)
    if not bool((finite | same).all()):
        return float("inf")
    largest = float(np.max(np.abs(b[finite]), initial=0.0))
    worst = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    return worst / largest if largest else float("inf")


def golden_of(manifest: Manifest, variant_id: str) -> Golden | None:
    """What a variant must give; None for the small one of a cascade: the golden outputs are the large one's."""
    rule = manifest.cascade
    is_small = isinstance(rule, CascadeRule) and rule.small == variant_id
    return None if is_small else manifest.golden


def tolerance_of(manifest: Manifest, engine: str) -> float:
    """How far an engine's outputs may be from the golden ones."""
    if manifest.golden is None:
        return DEFAULT_TOLERANCE
    return manifest.golden.tolerance.get(engine, DEFAULT_TOLERANCE)


_COMPARABLE: Final = {"S": "SUO", "U": "SUO", "O": "SUO"}


def _array(data: bytes, path: str) -> np.ndarray:
    if len(data) > _MOST_BYTES:
        raise ModelInvalid(f"golden file {path}: more than {_MOST_BYTES} bytes", path=path)
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # .npy alone: no archive
    except (ValueError, TypeError, OSError, EOFError, SyntaxError, MemoryError, OverflowError) as exc:
        raise ModelInvalid(f"golden file {path}: no array in .npy form without objects ({exc})", path=path) from exc
    return array
