"""The content of a slot: which files lie in it, whether they are the manifest's, and how a version comes into it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from edge_agent.disk import Disk
from edge_agent.install.rules import Papers
from hybrid.artifact.manifest import MAX_MANIFEST_BYTES, Manifest, artifact_digest
from hybrid.artifact.names import MANIFEST_NAME, SIGNATURE_NAME
from hybrid.artifact.signature import MAX_SIGNATURE_BYTES, Signature
from hybrid.errors import BadMessage, CorruptContent, StorageError

_PAPERS: Final = (MANIFEST_NAME, SIGNATURE_NAME)
_MOST_ENTRIES: Final = 20_000
_TRIES: Final = 3


def path_of(folder: Path, name: str) -> Path:
    """Where a file of a manifest lies in a folder."""
    return folder.joinpath(*PurePosixPath(name).parts)


def entries(disk: Disk, folder: Path) -> dict[str, bool]:
    """Everything below a folder that is no folder itself, by relative name: whether it is a plain file.

    A link to a folder and an empty folder are entries that are not plain.
    """
    found: dict[str, bool] = {}

    def look(inside: Path, above: str) -> None:
        for name in disk.names(inside):
            path, relative = inside / name, f"{above}{name}"
            if disk.is_folder(path) and list(disk.names(path)):
                look(path, f"{relative}/")
            else:
                found[relative] = disk.is_plain(path)
            if len(found) > _MOST_ENTRIES:
                raise CorruptContent(f"{folder}: more than {_MOST_ENTRIES} files; it is set aside", path=str(folder))

    if disk.is_folder(folder):
        look(folder, "")
    return found


def read_papers(disk: Disk, folder: Path) -> Papers:
    """Manifest and signature of a slot.

    Raises:
        CorruptContent: not there, no plain files, too large, or a signature that does not parse.
    """
    manifest = _read_plain(disk, folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if disk.size(folder / SIGNATURE_NAME) < 0:
        return Papers(manifest=manifest, signature=None)
    try:
        signature = Signature.of_file_bytes(_read_plain(disk, folder / SIGNATURE_NAME, MAX_SIGNATURE_BYTES))
    except BadMessage as exc:
        raise CorruptContent(f"{folder / SIGNATURE_NAME}: {exc}", path=str(folder)) from exc
    return Papers(manifest=manifest, signature=signature)


def check_content(disk: Disk, folder: Path, digest: str, manifest: Manifest) -> None:
    """Read every byte of a slot and compare it with the manifest of that digest.

    Raises:
        CorruptContent: names the first file that is missing, damaged, extra, or no plain file with one name.
    """
    data = _read_plain(disk, folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if artifact_digest(data) != digest:
        raise CorruptContent(f"{folder / MANIFEST_NAME}: not the manifest that was installed", path=str(folder))
    found = entries(disk, folder)
    for name in sorted(found.keys() | manifest.files.keys()):
        if name in _PAPERS and found.get(name):
            continue
        if name not in manifest.files:
            raise CorruptContent(f"{folder / name}: not listed in the manifest", path=str(folder))
        if not is_whole(disk, folder, manifest, name):
            raise CorruptContent(
                f"{path_of(folder, name)}: missing, damaged, or no plain file with one name", path=str(folder)
            )


def is_whole(disk: Disk, folder: Path, manifest: Manifest, name: str) -> bool:
    """Whether a file of the manifest lies in a folder as it should, by its digest."""
    path, entry = path_of(folder, name), manifest.files[name]
    parents = [parent for parent in path.parents if parent.is_relative_to(folder)]
    if not all(map(disk.is_folder, parents)) or not disk.is_plain(path) or disk.size(path) != entry.size:
        return False
    for _ in range(_TRIES):
        try:
            return disk.sha256(path) == entry.sha256
        except OSError:
            continue
    return False


def empty_but(disk: Disk, folder: Path, manifest: Manifest) -> None:
    """Remove what is not the manifest's: other names, other sizes, links; what stays may still be damaged."""
    for name, is_plain in entries(disk, folder).items():
        entry = manifest.files.get(name)
        path = path_of(folder, name)
        if entry is None or not is_plain or disk.size(path) != entry.size:
            _remove_entry(disk, folder, path)


def fill(
    disk: Disk,
    folder: Path,
    papers: Papers,
    manifest: Manifest,
    sources: Callable[[str], Iterable[Path]],
    *,
    may_move: Callable[[Path], bool],
) -> None:
    """Make a slot of files that are here: those that lie in it already stay, others are moved or copied in.

    Everything is on the disk when this returns; the caller then reads it all again.

    Args:
        sources: paths of files that were verified to have a digest, given the digest; the first is taken.
        may_move: whether a path may be moved; else it is copied (a file of the other slot has one name and keeps it).

    Raises:
        CorruptContent: a file that nobody has.
        DiskFull, StorageError: as the disk says.
    """
    if not disk.is_folder(folder):
        disk.remove(folder)
    disk.make_folder(folder)
    empty_but(disk, folder, manifest)
    kept = {name for name in manifest.files if is_whole(disk, folder, manifest, name)}
    last_use = {entry.sha256: name for name, entry in sorted(manifest.files.items()) if name not in kept}
    for name, entry in sorted(manifest.files.items()):
        if name in kept:
            continue
        source = next(iter(sources(entry.sha256)), None)
        if source is None:
            raise CorruptContent(f"{name} of {manifest.name}:{manifest.version} is not here although it was fetched")
        target = path_of(folder, name)
        _make_way(disk, folder, target)
        if may_move(source) and last_use[entry.sha256] == name:
            disk.replace(source, target)
        else:
            disk.copy(source, target)
        disk.sync(target)
    _write(disk, folder / MANIFEST_NAME, papers.manifest)
    if papers.signature is not None:
        _write(disk, folder / SIGNATURE_NAME, papers.signature.file_bytes)
    for inside in sorted(_folders(folder, manifest), reverse=True):
        disk.sync(inside)
    disk.sync(folder.parent)


def set_aside(disk: Disk, path: Path, at_s: float) -> Path:
    """Rename something damaged to `NAME.corrupt-TIME`, where nothing reads it; an earlier one of its kind goes."""
    for name in disk.names(path.parent):
        if name.startswith(f"{path.name}.corrupt-"):
            disk.remove(path.parent / name)
    aside = path.with_name(f"{path.name}.corrupt-{max(0, int(at_s))}")
    disk.replace(path, aside)
    disk.sync(path.parent)
    return aside


def quarantined(disk: Disk, folder: Path) -> Sequence[Path]:
    """What was set aside in a folder."""
    return [folder / name for name in disk.names(folder) if ".corrupt-" in name]


def read_patiently(disk: Disk, path: Path) -> bytes:
    """A file's content; a disk that fails once may do better the next time.

    Raises:
        StorageError: it failed several times.
    """
    for is_last in (False,) * (_TRIES - 1) + (True,):
        try:
            return disk.read(path)
        except OSError as exc:
            if is_last:
                raise StorageError(f"{path}: cannot be read ({exc})", path=str(path)) from exc
    raise AssertionError


def _folders(folder: Path, manifest: Manifest) -> set[Path]:
    found = {folder}
    for name in manifest.files:
        found |= {parent for parent in path_of(folder, name).parents if parent.is_relative_to(folder)}
    return found


def _make_way(disk: Disk, folder: Path, target: Path) -> None:
    """Folders where folders should be, and nothing where the file should be."""
    for parent in reversed([parent for parent in target.parents if parent.is_relative_to(folder)]):
        if not disk.is_folder(parent):
            disk.remove(parent)
            disk.make_folder(parent)
    disk.remove(target)


def _remove_entry(disk: Disk, folder: Path, path: Path) -> None:
    disk.remove(path)
    for parent in path.parents:
        if parent == folder or list(disk.names(parent)):
            return
        disk.remove(parent)


def _write(disk: Disk, path: Path, content: bytes) -> None:
    disk.remove(path)
    disk.append(path, content)
    disk.sync(path)


def _read_plain(disk: Disk, path: Path, most_bytes: int) -> bytes:
    if not disk.is_plain(path) or disk.size(path) > most_bytes:
        raise CorruptContent(f"{path}: missing, too large, or no plain file", path=str(path.parent))
    try:
        return read_patiently(disk, path)
    except StorageError as exc:
        raise CorruptContent(f"{path}: cannot be read ({exc})", path=str(path.parent)) from exc
