"""Golden inputs and outputs for a model that is pushed: computed here, compared by each box before it uses them."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from hybrid.errors import GoldenDiffers, ModelInvalid, TensorMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from hybrid.artifact.folder import Artifact
    from hybrid.serving.engines.session import EngineSession

RANDOM: Final = "random"
_SEED: Final = 0


def with_golden(
    artifact: "Artifact", staging: Path, given: str, tolerance: float, others: "Mapping[str, float] | None" = None
) -> "Artifact":
    """A bare model's artifact with golden files; its folder is `staging`, where the model's own files are linked to.

    Args:
        artifact: of the bare model.
        staging: an empty folder.
        given: an `.npz` file with an array for each input, or `random`.
        tolerance: how far a box's outputs may be off, of the largest value, by the first variant's engine.
        others: the same by engine, for those of other variants.

    Raises:
        ModelInvalid: the model does not open, or the file is no `.npz` of arrays.
        TensorMismatch: arrays that the model does not take.
        GoldenDiffers: its outputs differ from run to run.
    """
    from hybrid.artifact.folder import Artifact
    from hybrid.artifact.manifest import FileEntry, Golden, canonical_bytes
    from hybrid.serving.engines.model_facts import facts_of
    from hybrid.serving.engines.opening import EngineSettings, open_engine

    path = artifact.model_path
    session = open_engine(path, EngineSettings(), facts_of(path))
    feeds = _drawn(session) if given == RANDOM else _read(Path(given), session)
    outputs = dict(zip(session.output_names, session.run(feeds), strict=True))
    _check_steady(session, feeds, outputs)
    files = dict(artifact.manifest.files)
    paths: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for kind, arrays, named in (("input", feeds, paths[0]), ("output", outputs, paths[1])):
        for number, (tensor, array) in enumerate(arrays.items()):
            name = f"golden/{kind}-{number}.npy"
            content = _npy(array)
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
            files[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            named[tensor] = name
    for name in artifact.manifest.files:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(artifact.path_of(name).resolve())
    engine = artifact.manifest.variants[0].engine
    golden = Golden(inputs=paths[0], outputs=paths[1], tolerance={**(others or {}), engine: tolerance})
    manifest = msgspec.structs.replace(artifact.manifest, files=files, golden=golden)
    return Artifact(folder=staging, manifest=manifest, manifest_bytes=canonical_bytes(manifest))


def _drawn(session: "EngineSession") -> "dict[str, np.ndarray]":
    """The same random inputs for the same model; free dimensions are one."""
    import numpy as np

    from compression.tensor import BYTES, NUMPY_OF

    random = np.random.default_rng(_SEED)
    feeds: dict[str, np.ndarray] = {}
    for spec in session.signature.inputs:
        if spec.dtype == BYTES:
            raise TensorMismatch(f"input {spec.name!r} is text, which nobody can draw; give --golden FILE.npz")
        shape = [1 if size is None else size for size in spec.shape]
        dtype = np.dtype(NUMPY_OF[spec.dtype])
        drawn = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        feeds[spec.name] = np.asarray(drawn).astype(dtype)
    session.check(feeds)
    return feeds


def _read(path: Path, session: "EngineSession") -> "dict[str, np.ndarray]":
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            feeds = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as exc:
        raise ModelInvalid(
            f"{path}: no .npz file of arrays ({exc}); np.savez(FILE, NAME=array, …) writes one, `random` needs none",
            path=str(path),
        ) from exc
    session.check(feeds)
    return feeds


def _check_steady(session: "EngineSession", feeds: "dict[str, np.ndarray]", outputs: "dict[str, np.ndarray]") -> None:
    import numpy as np

    for tensor, again in zip(session.output_names, session.run(feeds), strict=True):
        if not np.array_equal(outputs[tensor], again, equal_nan=again.dtype.kind == "f"):
            raise GoldenDiffers(
                f"output {tensor!r} differs from run to run on the same inputs; push it without --golden", tensor=tensor
            )


def _npy(array: "np.ndarray") -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, dtype=str) if array.dtype.kind == "O" else array, allow_pickle=False)
    return buffer.getvalue()
