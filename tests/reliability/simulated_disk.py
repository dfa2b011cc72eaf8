"""A disk for the agent that fills up, fails, and loses its power between or within any two operations.

image = Image()                              # what survives (page_cache.py)
disk = SimulatedDisk(image, Random(7))       # one life of one process on it; hand it to what takes a `Disk`
disk.cut_after = 12                          # the 12th operation from now raises PowerCut, and the mount is dead
image.cut_power(Random(7))                   # only what was synced is sure to be there
connect = connecting(disk)                   # sqlite3.connect on the same image: simulated_sqlite.py
"""

import errno
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from hybrid.artifact.durable import storing
from tests.reliability.page_cache import File, Folder, Image, weight
from tests.reliability.virtual_loop import PowerCut


class SimulatedDisk:
    """A `Disk` on an image, for one life of one process.

    Attributes:
        cut_after: operations that still succeed before the power goes, or the process dies; None: all.
        on_cut: called when that happens, before `PowerCut` is raised.
        eio_ratio: share of reads, writes and syncs that the disk refuses with an I/O error.
        is_dead: its process is no more: nothing that a handler of it still does reaches the image.
        n_operations: that could have been cut, so far.
    """

    def __init__(self, image: Image, rng: Random) -> None:
        self.image = image
        self.rng = rng
        self.cut_after: int | None = None
        self.on_cut: Callable[[], None] = lambda: None
        self.eio_ratio = 0.0
        self.is_dead = False
        self.n_operations = 0

    # -- faults

    def step(self) -> None:
        """One operation begins: the moment at which the process may end."""
        if self.is_dead:
            raise PowerCut
        self.n_operations += 1
        if self.cut_after is None:
            return
        self.cut_after -= 1
        if self.cut_after < 0:
            self.is_dead = True
            self.on_cut()
            raise PowerCut

    def is_last_step(self) -> bool:
        """Whether the power goes within this very operation: half of it may be done."""
        return self.cut_after == 0 and self.rng.random() < 0.5

    def refuse(self) -> None:
        """Fail now and then.

        Raises:
            OSError: EIO.
        """
        if self.eio_ratio and self.rng.random() < self.eio_ratio:
            raise OSError(errno.EIO, "Input/output error")

    def room(self, file: File, end: int) -> tuple[int, int]:
        """How many bytes a write up to `end` would add, and how many of them there is room for."""
        wanted = max(0, end - len(file.live))
        return wanted, min(wanted, max(0, self.image.capacity_bytes - self.image.used_bytes))

    def _write(self, file: File, offset: int, content: bytes) -> None:
        """As much as there is room for."""
        wanted, granted = self.room(file, offset + len(content))
        part = content[: len(content) - wanted + granted]
        self.image.used_bytes += granted
        self.image.written_bytes += len(part)
        file.write(offset, part)
        if granted < wanted:
            raise OSError(errno.ENOSPC, "No space left on device")

    # -- Disk

    def read(self, path: Path) -> bytes:
        self.refuse()
        return bytes(self._file(path).live)

    def read_at(self, path: Path, offset: int, n_bytes: int) -> bytes:
        self.refuse()
        return bytes(self._file(path).live[offset : offset + n_bytes])

    def append(self, path: Path, content: bytes) -> None:
        self.step()
        with storing(path, len(content)):
            self.refuse()
            folder = self.image.make_folder(path.parent)
            file = folder.live.get(path.name)
            if file is None:
                file = File()
                self.image.link(folder, path.name, file)
            if not isinstance(file, File):
                raise IsADirectoryError(errno.EISDIR, "Is a directory")
            self._write(file, len(file.live), content)

    def sync(self, path: Path) -> None:
        self.step()
        with storing(path):
            node = self.image.find(path)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            try:
                self.refuse()
            except OSError:
                if isinstance(node, File):
                    node.lose()
                raise
            node.sync()

    def replace(self, source: Path, target: Path) -> None:
        self.step()
        with storing(target):
            self.image.rename(source, target)

    def make_folder(self, path: Path) -> None:
        self.step()
        with storing(path):
            self.image.make_folder(path)

    def remove(self, path: Path) -> None:
        self.step()
        node = self.image.find(path)
        if node is None:
            return
        if isinstance(node, Folder):
            for name in sorted(node.live):
                self.remove(path / name)
        self.image.unlink(self.image.folder_of(path), path.name)

    def names(self, path: Path) -> Iterable[str]:
        node = self.image.find(path)
        return sorted(node.live) if isinstance(node, Folder) else ()

    def size(self, path: Path) -> int:
        node = self.image.find(path)
        return weight(node) if isinstance(node, File) else -1

    def is_plain(self, path: Path) -> bool:
        return isinstance(self.image.find(path), File)

    def is_folder(self, path: Path) -> bool:
        return isinstance(self.image.find(path), Folder)

    def sha256(self, path: Path) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()

    def copy(self, source: Path, target: Path) -> None:
        content = self.read(source)
        self.remove(target)
        self.append(target, content)

    def free_bytes(self, path: Path) -> int:
        return max(0, self.image.capacity_bytes - self.image.used_bytes)

    def _file(self, path: Path) -> File:
        node = self.image.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        return node
