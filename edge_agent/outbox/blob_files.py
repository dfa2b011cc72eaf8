"""Bodies too large for a row: one file each, on the disk before the row that names it, gone after it."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from edge_agent.disk import Disk
from hybrid.errors import CorruptContent, HybridError, StorageError


class Sealer(Protocol):
    """Makes what lies on the disk unreadable to who has only the disk."""

    @property
    def key_id(self) -> str:
        """Names the key, without giving it away."""
        ...

    def knows(self, key_id: str) -> bool:
        """Whether what that key sealed can be opened."""
        ...

    def seal(self, content: bytes, about: bytes) -> bytes:
        """The sealed content, bound to what it is about."""
        ...

    def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """The content. Raises `CorruptContent` where it was changed, or sealed with another key."""
        ...


class Open:
    """Seals nothing: for stores whose owner asked for no encryption."""

    key_id = ""

    def knows(self, key_id: str) -> bool:
        """See `Sealer`."""
        return not key_id

    def seal(self, content: bytes, about: bytes) -> bytes:  # noqa: ARG002 (a Sealer)
        """See `Sealer`."""
        return content

    def unseal(self, sealed: bytes, about: bytes) -> bytes:  # noqa: ARG002 (a Sealer)
        """See `Sealer`."""
        return sealed


class BlobFiles:
    """Files named by the SHA-256 of their content, below one folder."""

    def __init__(self, folder: Path, disk: Disk, vault: Sealer) -> None:
        self._folder = folder
        self._disk = disk
        self._vault = vault
        self._doubtful: set[str] = set()

    def write(self, contents: Mapping[str, bytes]) -> list[str]:
        """Bring contents onto the disk by digest; the names that were not there before.

        Raises:
            DiskFull, StorageError: none of those that were not there before is left.
        """
        wanted = {
            name: content
            for name, content in contents.items()
            if name in self._doubtful or self._disk.size(self._folder / name) < 0
        }
        if not wanted:
            return []
        self._doubtful |= set(wanted)
        self._disk.make_folder(self._folder)
        try:
            for name, content in wanted.items():
                draft = self._folder / f".{name}.draft"
                self._disk.remove(draft)
                self._disk.append(draft, self._vault.seal(content, name.encode()))
                self._disk.sync(draft)
                self._disk.replace(draft, self._folder / name)
            self._disk.sync(self._folder)
        except Exception:
            for name in wanted:
                with suppress(OSError):  # on a failing disk; the name stays doubtful and is written anew
                    self._disk.remove(self._folder / f".{name}.draft")
                    self._disk.remove(self._folder / name)
            raise
        self._doubtful -= set(wanted)
        return list(wanted)

    def read(self, name: str) -> bytes:
        """A content.

        Raises:
            CorruptContent: it is gone or damaged.
        """
        path = self._folder / name
        try:
            content = self._vault.unseal(self._disk.read(path), name.encode())
        except FileNotFoundError as exc:
            raise CorruptContent(f"{path} is gone", path=str(path)) from exc
        except OSError as exc:
            if isinstance(exc, HybridError):
                raise
            raise StorageError(f"{path} cannot be read now: {exc.strerror or exc}", path=str(path)) from exc
        if sha256(content).hexdigest() != name:
            raise CorruptContent(f"{path} is damaged: its bytes have another digest", path=str(path))
        return content

    def remove(self, names: Collection[str]) -> None:
        """Remove contents; being gone already is fine."""
        for name in names:
            self._disk.remove(self._folder / name)

    def keep_only(self, names: Collection[str]) -> int:
        """Remove everything else, such as what a power cut left half-written; how many that were."""
        stray = [name for name in self._disk.names(self._folder) if name not in names]
        self.remove(stray)
        return len(stray)
