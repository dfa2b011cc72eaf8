"""Whatever a path holds: an artifact's folder, its zip, or a bare model."""

from pathlib import Path

from hybrid.artifact.cache import cache_dir
from hybrid.artifact.folder import Artifact, from_onnx, open_folder
from hybrid.artifact.names import BUNDLE_SUFFIX, MANIFEST_NAME
from hybrid.errors import ModelInvalid, ModelMissing


def open_artifact(path: Path) -> Artifact:
    """The artifact in a folder, or in a stored zip (unpacked into the cache at first).

    Names and sizes are checked, contents are not: see `folder.verify`.

    Raises:
        ModelInvalid: no artifact there, or files missing, extra or of another size.
        BadMessage: a manifest or signature that does not parse.
        CorruptContent: a zip whose contents are not what its manifest says.
    """
    if path.is_dir():
        return open_folder(path)
    if _is_zip(path) and path.is_file():
        from hybrid.artifact.stored_zip import unpack

        return unpack(path, cache_dir() / "unpacked")
    raise ModelInvalid(f"{path}: no artifact; a folder with {MANIFEST_NAME} or a .zip of one is wanted", path=str(path))


def open_any(path: Path, name: str, version: str) -> tuple[Artifact, bool]:
    """The artifact at a path, and whether it was made here of a bare model under this name and version.

    Raises:
        ModelMissing: nothing there.
        ModelInvalid: neither model nor artifact; names the file.
        BadMessage, CorruptContent: as `open_artifact`.
    """
    if not path.exists():
        raise ModelMissing(f"{path}: no such file; give the path of an ONNX model or an artifact", path=str(path))
    if path.is_dir() or _is_zip(path):
        return open_artifact(path), False
    return from_onnx(path, name, version), True


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() in (".zip", BUNDLE_SUFFIX)
