"""System shared memory regions that clients on this machine register for their tensors.

Source: Triton's system shared memory extension. Linux only: regions are files of /dev/shm.

Design: read and written with pread and pwrite, never mapped, because a client that shrinks a mapped object would end
the service with SIGBUS; the copy is wanted anyway, since the client may write on while the engine reads.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid.errors import BadMessage, Conflict, NotFound, Overloaded, TensorMismatch

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 (the kernel's place for POSIX shared memory, not a temporary file)
_KEY: Final = re.compile(r"/?[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A registered part of a shared memory object."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int


class SharedMemoryRegions:
    """The registered regions by name; `unregister` and `close` close them."""

    def __init__(self, *, max_regions: int = 1024) -> None:
        self._max_regions = max_regions
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a region.

        Args:
            name: what requests will call it.
            key: name of the POSIX shared memory object, such as "/inputs".
            offset: bytes into the object.
            byte_size: size of the region.

        Raises:
            Conflict: the name is taken.
            NotFound: no such object, or it may not be opened.
            BadMessage: an impossible key or range.
            Overloaded: too many regions.
        """
        if name in self._regions:
            raise Conflict(f"shared memory region {name!r} is registered already; unregister it first")
        if len(self._regions) >= self._max_regions:
            raise Overloaded(f"{self._max_regions} shared memory regions are registered; unregister some")
        if not _KEY.fullmatch(key):
            raise BadMessage(f"shared memory key {key[:60]!r} is no name of a POSIX shared memory object")
        descriptor = _opened(key)
        n_bytes = os.fstat(descriptor).st_size
        if offset < 0 or byte_size < 1 or offset + byte_size > n_bytes:
            os.close(descriptor)
            raise BadMessage(f"region {name!r} wants {byte_size} bytes from {offset}; the object {key!r} has {n_bytes}")
        self._regions[name] = Region(name=name, key=key, offset=offset, byte_size=byte_size, descriptor=descriptor)

    def unregister(self, name: str) -> None:
        """Close a region; an unknown name is no error, as with Triton."""
        region = self._regions.pop(name, None)
        if region is not None:
            os.close(region.descriptor)

    def close(self) -> None:
        """Close all regions."""
        for name in list(self._regions):
            self.unregister(name)

    def regions(self, name: str = "") -> list[Region]:
        """All regions, or the one of that name. Raises `NotFound`."""
        if not name:
            return list(self._regions.values())
        return [self._find(name)]

    def read(self, region: str, offset: int, n_bytes: int) -> memoryview:
        """A copy of bytes of a region: its owner may write on while the engine reads.

        Raises:
            NotFound: no such region.
            TensorMismatch: beyond its end.
        """
        found = self._find(region)
        start = self._start(found, offset, n_bytes)
        data = os.pread(found.descriptor, n_bytes, start)
        if len(data) != n_bytes:
            raise TensorMismatch(f"region {region!r} has shrunk: {len(data)} of {n_bytes} bytes were there")
        return memoryview(data)

    def write(self, region: str, offset: int, n_bytes: int, data: bytes | memoryview) -> None:
        """Put an output into a region.

        Raises:
            NotFound: no such region.
            TensorMismatch: beyond its end, or more data than `n_bytes`.
        """
        found = self._find(region)
        start = self._start(found, offset, n_bytes)
        if len(data) > n_bytes:
            raise TensorMismatch(f"an output of {len(data)} bytes does not fit {n_bytes} bytes of region {region!r}")
        if os.pwrite(found.descriptor, data, start) != len(data):
            raise TensorMismatch(f"region {region!r} took only a part of an output of {len(data)} bytes")

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"no shared memory region {name!r} is registered; register it first")
        return region

    def _start(self, region: Region, offset: int, n_bytes: int) -> int:
        if offset < 0 or n_bytes < 0 or offset + n_bytes > region.byte_size:
            raise TensorMismatch(
                f"{n_bytes} bytes from {offset} wanted; region {region.name!r} has {region.byte_size} bytes"
            )
        return region.offset + offset


def _opened(key: str) -> int:
    try:
        return os.open(_FOLDER / key.lstrip("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise NotFound(f"shared memory object {key!r} cannot be opened: {exc.strerror}") from exc
