"""One folder a model digest: the model file and its external data side by side, each byte on the disk once.

Design: engines want external data under its own name beside the model and refuse symbolic links; installers refuse
files with a second hard link. So a blob is linked into a staging folder, the folder gets its name, and the loose name
goes once the registry knows the new place: whatever breaks in between, each byte is found under at least one name.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath

from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.durable import storing, sync_file
from hybrid.artifact.folder import place_folder
from hybrid.artifact.names import check_relative
from hybrid.errors import BadMessage, CorruptContent


class ModelFolders:
    """The folders below `root`, named by model digest."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with storing(root):
            root.mkdir(parents=True, exist_ok=True)

    def path(self, model_digest: str, name: str = ".") -> Path:
        """Where a file of a model lies, or would; the folder itself without a name."""
        return self._root / model_digest / PurePosixPath(name)

    def has(self, model_digest: str, files: Sequence[HashedFile]) -> bool:
        """Whether the folder is there with every file in its size."""
        try:
            return all(self.path(model_digest, file.name).stat().st_size == file.size for file in files)
        except OSError:
            return False

    def place(self, model_digest: str, files: Sequence[HashedFile], find: Callable[[str], Path]) -> None:
        """Make the folder out of blobs: loose ones are linked, those of another model copied.

        Args:
            model_digest: name of the folder.
            files: what shall lie in it.
            find: digest -> a file with these bytes.

        Raises:
            DiskFull, StorageError: nothing is left behind.
            CorruptContent: a copied file is not what its digest says.
        """
        if self.has(model_digest, files):
            return
        with storing(self.path(model_digest), sum(file.size for file in files)):
            self.set_aside(model_digest)
            staging = Path(tempfile.mkdtemp(dir=self._root, prefix=".tmp-"))
            try:
                used: set[Path] = set()
                for file in files:
                    source, target = find(file.sha256), staging / PurePosixPath(file.name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if self._root in source.parents or source in used:
                        _copy(source, target, file.sha256)
                    else:
                        _link(source, target, file.sha256)
                    used.add(source)
                place_folder(staging, self.path(model_digest))
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def set_aside(self, model_digest: str) -> None:
        """Rename a folder that is not what its name says, so that it is never loaded and can be looked at."""
        folder = self.path(model_digest)
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}.corrupt-{time.time_ns()}"))

    def sweep(self) -> None:
        """Remove the staging folders that an interrupted commit left; nothing that has a model's name is removed."""
        for folder in self._root.glob(".tmp-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def sound(self, *, known: Set[str] = frozenset()) -> dict[str, tuple[HashedFile, ...]]:
        """Every unknown folder whose content is what its name says, by reading all of it; others are set aside."""
        found: dict[str, tuple[HashedFile, ...]] = {}
        names = {folder.name for folder in self._root.iterdir() if len(folder.name) == 64}
        for name in sorted(names - known):
            with suppress(BadMessage):  # a file name that no model has
                files = read_files(self.path(name))
                if digest_of_files(files) == name:
                    found[name] = files
                    continue
            self.set_aside(name)
        return found


def read_files(folder: Path) -> tuple[HashedFile, ...]:
    """Every file below a folder, hashed."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = [check_relative(path.relative_to(folder).as_posix()) for path in paths]
    return tuple(
        HashedFile(name=name, size=path.stat().st_size, sha256=fresh_sha256(path))
        for name, path in zip(names, paths, strict=True)
    )


def _link(source: Path, target: Path, sha256: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        _copy(source, target, sha256)


def _copy(source: Path, target: Path, sha256: str) -> None:
    shutil.copyfile(source, target)
    sync_file(target)
    if fresh_sha256(target) != sha256:
        with suppress(OSError):
            target.unlink()
        raise CorruptContent(f"{source}: its bytes are no longer what its digest says; push the model again")
