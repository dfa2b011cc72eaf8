"""Golden files: the arrays of one request and its answer, as an artifact carries them."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.artifact.durable import write_atomically
from hybrid.artifact.manifest import FileEntry, Golden

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]


def write_golden(
    folder: Path, inputs: "Arrays", outputs: "Arrays", tolerance: Mapping[str, float]
) -> tuple[Golden, dict[str, FileEntry]]:
    """Writes one `.npy` file a tensor below `golden/`; what a manifest says of them, and its entries of files.

    Args:
        folder: of the artifact.
        inputs, outputs: by tensor.
        tolerance: how far a box may be off, of the largest value, by engine.

    Raises:
        DiskFull, StorageError: a file was not written.
    """
    entries: dict[str, FileEntry] = {}
    named: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for kind, arrays, names in (("input", inputs, named[0]), ("output", outputs, named[1])):
        for number, (tensor, array) in enumerate(arrays.items()):
            name = f"golden/{kind}-{number}.npy"
            content = npy(array)
            write_atomically(folder / name, content, is_shown=True)
            entries[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            names[tensor] = name
    return Golden(inputs=named[0], outputs=named[1], tolerance=dict(tolerance)), entries


def npy(array: "np.ndarray") -> bytes:
    """An array as an `.npy` file; nothing is pickled."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, dtype=str) if array.dtype.kind == "O" else array, allow_pickle=False)
    return buffer.getvalue()
