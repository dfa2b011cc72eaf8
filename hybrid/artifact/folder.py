"""Artifacts on a disk: made of a bare model, opened, verified, written."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from devices.tflite_magic import engine_of
from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.digest import digest_of_files, hashed_files
from hybrid.artifact.durable import storing, sync_file, sync_folder, write_atomically
from hybrid.artifact.lineage_note import noted_lineage
from hybrid.artifact.manifest import (
    MAX_MANIFEST_BYTES,
    SCHEMA,
    FileEntry,
    Manifest,
    Variant,
    artifact_digest,
    canonical_bytes,
    parse,
)
from hybrid.artifact.names import ATTACHMENTS_NAME, MANIFEST_NAME, SIGNATURE_NAME, check_relative
from hybrid.artifact.plain_file import read_plain
from hybrid.artifact.signature import MAX_SIGNATURE_BYTES, Signature
from hybrid.errors import BadMessage, Conflict, CorruptContent, ModelInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model version whose files lie in a folder.

    Attributes:
        folder: where the files of the manifest lie, under their names.
        manifest: what it says.
        manifest_bytes: its exact bytes; these are hashed, signed and sent.
        signature: who vouches for them, if anybody.
    """

    folder: Path
    manifest: Manifest
    manifest_bytes: bytes
    signature: Signature | None = None

    @property
    def digest(self) -> str:
        """The artifact digest."""
        return artifact_digest(self.manifest_bytes)

    @property
    def model_path(self) -> Path:
        """The shipped model file."""
        return self.path_of(self.manifest.model_file)

    def path_of(self, name: str) -> Path:
        """Where a file of the manifest lies."""
        return self.folder.joinpath(*PurePosixPath(name).parts)

    def signed(self, signature: Signature) -> "Artifact":
        """The same artifact with a signature."""
        return replace(self, signature=signature)


def from_onnx(path: Path, name: str, version: str, *, sequence: int = 1) -> Artifact:
    """The artifact of a bare model file and its external data; nothing is copied.

    Raises:
        ModelInvalid: missing, not ONNX, unsound external data, or a file name that cannot travel.
        BadMessage: a name or version that is not allowed.
    """
    files = hashed_files(path)
    engine = engine_of(path)
    try:
        check_relative(path.name)
    except BadMessage as exc:
        raise ModelInvalid(f"{path}: {exc}", path=str(path)) from exc
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        sequence=sequence,
        model_digest=digest_of_files(files),
        files={file.name: FileEntry(sha256=file.sha256, size=file.size) for file in files},
        variants=(Variant(id="original", engine=engine, precision="native", files=tuple(file.name for file in files)),),
        lineage=noted_lineage(path) if engine != "tflite" else (),
    )
    return Artifact(folder=path.parent, manifest=manifest, manifest_bytes=canonical_bytes(manifest))


def open_folder(folder: Path) -> Artifact:
    """The artifact in a folder; names and sizes are checked, contents are not: see `verify`.

    Raises:
        ModelInvalid: no manifest there, or files missing, extra or of another size.
        BadMessage: a manifest or signature that does not parse.
    """
    signature_path = folder / SIGNATURE_NAME
    try:
        data = read_plain(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        signature = None
        if signature_path.exists():
            signature = Signature.of_file_bytes(read_plain(signature_path, MAX_SIGNATURE_BYTES))
    except OSError as exc:
        raise ModelInvalid(f"{folder}: no readable {MANIFEST_NAME} ({exc.strerror})", path=str(folder)) from exc
    artifact = Artifact(folder=folder, manifest=parse(data), manifest_bytes=data, signature=signature)
    _check_present(artifact)
    return artifact


def verify(artifact: Artifact) -> None:
    """Read every byte and compare with the manifest.

    Raises:
        CorruptContent: names the first file whose digest is another.
        ModelInvalid: a file is missing, extra or of another size.
    """
    _check_present(artifact)
    for name, entry in artifact.manifest.files.items():
        path = artifact.path_of(name)
        if fresh_sha256(path) != entry.sha256:
            raise CorruptContent(f"{path}: its digest is not the manifest's; fetch or write it again", path=str(path))


def write_folder(artifact: Artifact, destination: Path) -> Artifact:
    """Copy an artifact into a folder of its own that appears whole or not at all.

    Raises:
        DiskFull, StorageError: nothing is left behind.
        CorruptContent: a file changed since the manifest was made.
    """
    wanted_bytes = artifact.manifest.size_bytes
    with storing(destination, wanted_bytes):
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".tmp-"))
        try:
            for name in artifact.manifest.files:
                target = staging.joinpath(*PurePosixPath(name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path_of(name), target)
                sync_file(target)
            verify(replace(artifact, folder=staging))
            write_papers(artifact, staging)
            place_folder(staging, destination)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return replace(artifact, folder=destination)


def write_papers(artifact: Artifact, folder: Path) -> None:
    """Write manifest and signature into a folder, exact bytes."""
    write_atomically(folder / MANIFEST_NAME, artifact.manifest_bytes)
    if artifact.signature is not None:
        write_atomically(folder / SIGNATURE_NAME, artifact.signature.file_bytes)


@contextmanager
def made_at(out: Path) -> Iterator[Path]:
    """A folder to write an artifact into; at the end it is verified and placed as a whole, or nothing is.

    Raises:
        Conflict: something is at its place.
        ModelInvalid, CorruptContent: what was written is no artifact.
        DiskFull, StorageError: there is no room.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} is not empty; name a new folder")
    with storing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=".tmp-"))
        try:
            yield staging
            verify(open_folder(staging))
            if out.is_dir():
                out.rmdir()
            place_folder(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def place_folder(staging: Path, destination: Path) -> None:
    """Rename a finished folder into place; one that somebody else placed meanwhile stays."""
    for folder in {path.parent for path in staging.rglob("*")} | {staging}:
        sync_folder(folder)
    staging.chmod(0o755)
    try:
        staging.rename(destination)
    except OSError:
        if not destination.is_dir() or not any(destination.iterdir()):
            raise
    sync_folder(destination.parent)


def _check_present(artifact: Artifact) -> None:
    """Every file of the manifest is a plain file of its size, and no other file is there (attachments excepted)."""
    manifest, folder = artifact.manifest, artifact.folder
    for name, entry in manifest.files.items():
        path = artifact.path_of(name)
        try:
            found = path.lstat()
        except OSError as exc:
            raise ModelInvalid(f"{path}: {exc.strerror}; the manifest lists it", path=str(path)) from exc
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            raise ModelInvalid(
                f"{path}: {found.st_size} bytes where the manifest says {entry.size}, or no plain file", path=str(path)
            )
    own = folder / MANIFEST_NAME
    if not own.is_file() or own.stat().st_size > MAX_MANIFEST_BYTES or own.read_bytes() != artifact.manifest_bytes:
        return  # a bare model: the folder is not the artifact's own, other files in it are nobody's business
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder and ATTACHMENTS_NAME in folders:
            folders.remove(ATTACHMENTS_NAME)
        for name in names:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if relative not in manifest.files and relative not in (MANIFEST_NAME, SIGNATURE_NAME):
                raise ModelInvalid(f"{folder / relative}: not listed in the manifest; remove it", path=str(folder))
