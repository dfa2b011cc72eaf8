"""The model digest: which files a model is made of, and the one name of their bytes."""

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from devices.tflite_magic import is_tflite
from hybrid.artifact.cache import file_sha256
from hybrid.artifact.external_data import external_data
from hybrid.artifact.names import check_relative
from hybrid.errors import BadMessage, ModelInvalid

BYTES_NAME = "model.onnx"
TFLITE_BYTES_NAME = "model.tflite"


def bytes_name(data: bytes) -> str:
    """Relative name of a model that was given as bytes."""
    return TFLITE_BYTES_NAME if is_tflite(data) else BYTES_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model.

    Attributes:
        name: relative to the model file's folder, `/` between parts.
        path: where it lies.
        size: bytes.
    """

    name: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedFile:
    """A file's part in a digest: relative name, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def files_of_model(path: Path) -> tuple[ModelFile, ...]:
    """The model file, then its external data sorted by name; no weight is read.

    Raises:
        ModelInvalid: missing, not ONNX, or external data that is missing, too short, or not a plain file with one name
            inside the model's folder. Names the file. onnxruntime itself is laxer in one point, hard links: a caller
            that only runs the model here can go on without a digest.
    """
    wanted_bytes: dict[str, int] = {}
    for place in external_data(path):
        wanted_bytes[place.location] = max(place.end_bytes, wanted_bytes.get(place.location, 0))
    external = [_external_file(path, location, least) for location, least in sorted(wanted_bytes.items())]
    return (ModelFile(name=path.name, path=path, size=path.stat().st_size), *external)


def hashed_files(path: Path) -> tuple[HashedFile, ...]:
    """`files_of_model` with each file's SHA-256, remembered between calls.

    Raises:
        ModelInvalid: as `files_of_model`, or a file that vanished meanwhile.
    """
    try:
        return tuple(
            HashedFile(name=file.name, size=file.size, sha256=file_sha256(file.path)) for file in files_of_model(path)
        )
    except OSError as exc:
        raise ModelInvalid(f"{path}: {exc.strerror or exc} ({exc.filename}) while hashing", path=str(path)) from exc


def model_digest(path: Path) -> str:
    """The model digest of an ONNX file and its external data, or of a TensorFlow Lite file.

    Raises:
        ModelInvalid: as `files_of_model`.
    """
    return digest_of_files(hashed_files(path))


def digest_of_bytes(data: bytes) -> str:
    """The model digest of a model given as bytes: one file, named `model.onnx` or `model.tflite`."""
    return digest_of_files([HashedFile(name=bytes_name(data), size=len(data), sha256=_sha256(data))])


def digest_of_files(files: Iterable[HashedFile]) -> str:
    """SHA-256 of the canonical JSON `[[name, size, sha256], …]`, sorted by name."""
    entries = sorted([file.name, file.size, file.sha256] for file in files)
    return _sha256(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode())


def _sha256(data: bytes) -> str:
    import hashlib  # brings OpenSSL with it

    return hashlib.sha256(data).hexdigest()


def _external_file(model: Path, location: str, least_bytes: int) -> ModelFile:
    folder = model.parent
    try:
        check_relative(location)
        at = folder
        for part in location.split("/"):
            at /= part
            found = at.lstat()
            if stat.S_ISLNK(found.st_mode):
                raise _refusal(model, location, "is, or lies behind, a symbolic link")
    except BadMessage as exc:
        raise _refusal(model, location, "is no plain relative name") from exc
    except OSError as exc:
        raise _refusal(model, location, f"cannot be had ({exc.strerror or exc})") from exc
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(model, location, "is no regular file")
    if found.st_nlink != 1:
        raise _refusal(model, location, f"has {found.st_nlink} hard links where one is allowed; copy the file")
    if found.st_size < least_bytes:
        raise _refusal(model, location, f"has {found.st_size} bytes where {least_bytes} are needed; cut off?")
    return ModelFile(name=location, path=at, size=found.st_size)


def _refusal(model: Path, location: str, reason: str) -> ModelInvalid:
    return ModelInvalid(
        f"{model}: its external data {location[:200]!r} {reason}; a plain file inside {model.parent} is wanted",
        path=str(model),
        external=location[:200],
    )
