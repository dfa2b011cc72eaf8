"""A file read in small pages, so that a parser may walk it like a memory map without being killed when it shrinks."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, overload

from hybrid.errors import StorageError

_PAGE_BYTES: Final = 1 << 16
_N_PAGES: Final = 32
ReadAt = Callable[[Path, int, int], bytes]
"""So many bytes of a file from an offset on; fewer only at its end."""


def read_at(path: Path, offset: int, n_bytes: int) -> bytes:
    """So many bytes of a file from an offset on; fewer only at its end."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        parts = []
        while n_bytes > 0 and (part := file.read(n_bytes)):
            parts.append(part)
            n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class FileView:
    """Bytes of a file of known size; a few pages are kept.

    Reading beyond the end raises `StorageError`: the file is shorter than it was.
    """

    def __init__(self, path: Path, size: int, read: ReadAt = read_at) -> None:
        self._path, self._size, self._read = path, size, read
        self._pages: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Bytes in all."""
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> bytes: ...

    def __getitem__(self, at: int | slice) -> int | bytes:
        """One byte, or a short run of them, without a step."""
        if isinstance(at, slice):
            start, stop, _ = at.indices(self._size)
            return self.read(start, max(0, stop - start))
        if not 0 <= at < self._size:
            raise IndexError(at)
        page, place = divmod(at, _PAGE_BYTES)
        found = self._pages.get(page)
        if found is None:
            found = self.read(page * _PAGE_BYTES, min(_PAGE_BYTES, self._size - page * _PAGE_BYTES))
            if len(self._pages) >= _N_PAGES:
                self._pages.clear()
            self._pages[page] = found
        return found[place]

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Exactly so many bytes.

        Raises:
            StorageError: the file cannot be read, or is shorter than it was.
        """
        try:
            content = self._read(self._path, offset, n_bytes)
        except OSError as exc:
            raise StorageError(f"{self._path}: {exc.strerror or exc}; it was being read", path=str(self._path)) from exc
        if len(content) != n_bytes:
            raise StorageError(
                f"{self._path}: it ends before byte {offset + n_bytes}; it changed while it was read",
                path=str(self._path),
            )
        return content
