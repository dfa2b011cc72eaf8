"""Under which names a gateway's models were pulled, so that they open by name when it is out of reach."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hybrid.artifact.durable import write_atomically
from hybrid.artifact.folder import Artifact, open_folder
from hybrid.artifact.names import check_word
from hybrid.errors import HybridError
from hybrid.transport.registry_client import VersionInfo


def artifact_folder(cache: Path, artifact_digest: str) -> Path:
    """Where the cache keeps an artifact."""
    return cache / "artifacts" / artifact_digest


def cached_model(name: str, version: str | None, cache: Path, *, url: str | None = None) -> Path | None:
    """The model file that was cached under a name, if it is still whole.

    Args:
        name: the model's name.
        version: None is the newest that was seen.
        cache: as for `pull`.
        url: only what this gateway called so; None: any gateway, the last seen first.
    """
    check_word(name)
    if url is not None:
        notes = [_note_path(cache, url, name)]
    else:
        notes = sorted(cache.glob(f"names/*/{name}.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in notes:
        note = _read_note(path)
        digest = note.versions.get(version or note.newest)
        artifact = open_whole(artifact_folder(cache, digest)) if digest else None
        if artifact is not None:
            return artifact.model_path
    return None


def cached_versions(name: str, cache: Path) -> tuple[Artifact, ...]:
    """Every version of a name that lies in the cache whole, from any gateway, the highest sequence first."""
    digests: set[str] = set()
    for path in cache.glob(f"names/*/{check_word(name)}.json"):
        digests.update(_read_note(path).versions.values())
    found = [open_whole(artifact_folder(cache, digest)) for digest in sorted(digests)]
    whole = [artifact for artifact in found if artifact is not None]
    return tuple(sorted(whole, key=lambda artifact: artifact.manifest.sequence, reverse=True))


def open_whole(folder: Path) -> Artifact | None:
    """The artifact that lies there whole, or None."""
    if not folder.is_dir():
        return None
    try:
        return open_folder(folder)
    except HybridError:
        return None


@dataclass(slots=True)
class _Note:
    """Under which digests a gateway knew a name; `newest` is the last version that it called so."""

    newest: str
    versions: dict[str, str]


def remember(cache: Path, url: str, info: VersionInfo, *, is_newest: bool) -> None:
    """Note the name of a pulled version; a note that cannot be written costs offline use, not the pull."""
    path = _note_path(cache, url, info.name)
    note = _read_note(path)
    note.versions[info.version] = info.artifact_digest
    if is_newest or not note.newest:
        note.newest = info.version
    with suppress(HybridError):
        write_atomically(path, msgspec.json.encode(note))


def _read_note(path: Path) -> _Note:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return _Note(newest="", versions={})


def _note_path(cache: Path, url: str, name: str) -> Path:
    gateway = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return cache / "names" / gateway / f"{check_word(name)}.json"
