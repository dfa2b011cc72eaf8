"""An artifact as one file: a zip whose entries are stored, so that a size is what it says and no bomb fits in."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Final, get_args

from hybrid.artifact.attachments import Kind, attachments_in
from hybrid.artifact.durable import storing, sync_folder, write_atomically
from hybrid.artifact.folder import Artifact, open_folder, place_folder
from hybrid.artifact.manifest import MAX_FILES, MAX_MANIFEST_BYTES, FileEntry, Manifest, artifact_digest, parse
from hybrid.artifact.names import ATTACHMENTS_NAME, MANIFEST_NAME, SIGNATURE_NAME
from hybrid.errors import CorruptContent, ModelInvalid

_BLOCK_BYTES: Final = 1 << 20
_MAX_PAPER_BYTES: Final = 16 << 20
_ATTACHMENT: Final = re.compile(ATTACHMENTS_NAME + r"/[a-z]{1,32}/[a-z0-9][a-z0-9._-]{0,63}/[0-9a-f]{64}\.json(\.sig)?")


def pack(artifact: Artifact, destination: Path, *, extra: Mapping[str, bytes] | None = None) -> None:
    """Write an artifact as one stored zip that appears whole or not at all; the same artifact gives the same bytes.

    Args:
        artifact: what to pack.
        destination: the file.
        extra: further attachments, by name.

    Raises:
        DiskFull, StorageError: nothing is left behind.
    """
    with storing(destination, artifact.manifest.size_bytes):
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=destination.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                _write_entries(artifact, file, extra or {})
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(destination)
        finally:
            Path(name).unlink(missing_ok=True)
        sync_folder(destination.parent)


def unpack(path: Path, under: Path) -> Artifact:
    """Unpack and verify a zip into a folder of `under` named by its artifact digest; found again next time.

    Raises:
        ModelInvalid: no zip, or an entry that is compressed, encrypted, doubled, special, missing or not listed.
        CorruptContent: an entry whose bytes are not the manifest's.
        BadMessage: a manifest that does not parse.
        DiskFull, StorageError: nothing is left behind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(path, archive)
            manifest_bytes = _paper(path, archive, entries, MANIFEST_NAME)
            manifest = parse(manifest_bytes)
            _check_entries(path, entries, manifest)
            destination = under / artifact_digest(manifest_bytes)
            if not destination.is_dir():
                _extract(path, archive, entries, manifest, destination)
            else:
                _add_attachments(archive, entries, destination)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as exc:
        raise ModelInvalid(f"{path}: no sound zip ({exc}); make it again", path=str(path)) from exc
    except FileNotFoundError as exc:
        raise ModelInvalid(f"{path}: {exc.strerror}", path=str(path)) from exc
    return open_folder(destination)


def _write_entries(artifact: Artifact, file: IO[bytes], extra: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_info(MANIFEST_NAME), artifact.manifest_bytes)
        if artifact.signature is not None:
            archive.writestr(_info(SIGNATURE_NAME), artifact.signature.file_bytes)
        for name in sorted(artifact.manifest.files):
            info = _info(name)
            info.file_size = artifact.manifest.files[name].size
            with artifact.path_of(name).open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK_BYTES)
        for content, name in _papers_beside(artifact):
            archive.writestr(_info(name), content)
        for name, content in sorted(extra.items()):
            archive.writestr(_info(name), content)


def _papers_beside(artifact: Artifact) -> Iterator[tuple[bytes, str]]:
    """The content and name of the attachments in the artifact's own folder; broken ones stay behind."""
    if not (artifact.folder / MANIFEST_NAME).is_file():
        return  # a bare model: what lies beside it is nobody's business
    for kind in get_args(Kind):
        for attachment in attachments_in(artifact.folder, artifact.manifest.model_digest, kind):
            yield attachment.content, attachment.relative_path
            if attachment.signature is not None:
                yield attachment.signature.file_bytes, f"{attachment.relative_path}.sig"


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    total_bytes = 0
    for info in archive.infolist():
        name = info.filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name in found or name != info.orig_filename:
            raise _refusal(path, name, "is there twice, or its name hides another")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise _refusal(path, name, "is compressed or encrypted; store it instead (zip -0)")
        if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
            raise _refusal(path, name, "is a link or another special entry")
        total_bytes += info.file_size
        if not info.is_dir():
            found[name] = info
    if len(found) > 2 * MAX_FILES or total_bytes > path.stat().st_size:
        raise ModelInvalid(f"{path}: {len(found)} entries of {total_bytes} bytes overlap or are too many")
    return found


def _check_entries(path: Path, entries: dict[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        if name not in entries or entries[name].file_size != entry.size:
            raise _refusal(path, name, f"is missing, or has not the {entry.size} bytes of the manifest")
    for name, info in entries.items():
        if name in manifest.files or name == MANIFEST_NAME:
            continue
        if name != SIGNATURE_NAME and _ATTACHMENT.fullmatch(name) is None:
            raise _refusal(path, name, "is not listed in the manifest")
        if info.file_size > _MAX_PAPER_BYTES:
            raise _refusal(path, name, f"has more than {_MAX_PAPER_BYTES} bytes")


def _paper(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    info = entries.get(name)
    if info is None or info.file_size > MAX_MANIFEST_BYTES:
        raise _refusal(path, name, "is missing or too large")
    return archive.read(info)


def _extract(
    path: Path,
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    manifest: Manifest,
    destination: Path,
) -> None:
    with storing(destination, manifest.size_bytes):
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".tmp-"))
        try:
            for name, info in entries.items():
                target = staging.joinpath(*PurePosixPath(name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                _extract_one(path, archive, info, target, manifest.files.get(name))
            place_folder(staging, destination)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _add_attachments(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], destination: Path) -> None:
    """What was attached since this version was unpacked; names are digests, so what is there is the same."""
    for name in entries:
        target = destination.joinpath(*PurePosixPath(name).parts)
        if _ATTACHMENT.fullmatch(name) and not target.exists():
            write_atomically(target, archive.read(name))


def _extract_one(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, entry: FileEntry | None
) -> None:
    digest = hashlib.sha256()
    try:
        with archive.open(info) as source, target.open("xb") as file:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, EOFError) as exc:
        raise CorruptContent(f"{path}: entry {info.filename!r} is damaged ({exc})", path=str(path)) from exc
    if entry is not None and digest.hexdigest() != entry.sha256:
        raise CorruptContent(f"{path}: entry {info.filename!r} is not what the manifest says", path=str(path))


def _refusal(path: Path, name: str, reason: str) -> ModelInvalid:
    return ModelInvalid(f"{path}: entry {name[:200]!r} {reason}", path=str(path), entry=name[:200])
