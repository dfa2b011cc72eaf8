"""What lies on a disk and what only in the page cache: files and folders whose unsynced parts a power cut tears.

Design: after ALICE (Pillai et al. 2014). Of a file's unsynced writes a cut keeps all, none, a prefix or any set of
sectors; of a folder's unsynced entries a prefix; files and folders are independent of one another. What was synced
stays. A file's name needs a sync of its folder, whatever was done to its bytes.
"""

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

SECTOR_BYTES = 512


class File:
    """Bytes as programs see them, and as the disk holds them."""

    def __init__(self) -> None:
        self.live = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []
        """Writes at an offset; None: cut to that length."""

    def write(self, offset: int, content: bytes) -> None:
        _write(self.live, offset, content)
        self.pending.append((offset, bytes(content)))

    def truncate(self, n_bytes: int) -> None:
        _truncate(self.live, n_bytes)
        self.pending.append((n_bytes, None))

    def sync(self) -> None:
        for offset, content in self.pending:
            _apply(self.durable, offset, content)
        self.pending.clear()

    def lose(self) -> None:
        """A failed sync: the kernel calls these pages clean, and the disk never sees them."""
        self.pending.clear()

    def after_cut(self, rng: Random) -> "File":
        """The file that the next start finds."""
        kept = File()
        kept.durable = bytearray(self.durable)
        style = rng.choice(("all", "none", "prefix", "sectors"))
        pending = self.pending if style != "none" else []
        if style == "prefix" and pending:
            n_whole = rng.randrange(len(pending) + 1)
            torn = pending[n_whole : n_whole + 1]
            pending = pending[:n_whole] + [(at, _torn(content, rng)) for at, content in torn]
        for offset, content in pending:
            if style != "sectors":
                _apply(kept.durable, offset, content)
            elif content is not None:
                _scatter(kept.durable, offset, content, rng)
            elif rng.random() < 0.5:
                _truncate(kept.durable, offset)
        kept.live = bytearray(kept.durable)
        return kept


def _torn(content: bytes | None, rng: Random) -> bytes | None:
    return content if content is None else content[: rng.randrange(len(content) + 1)]


def _scatter(into: bytearray, offset: int, content: bytes, rng: Random) -> None:
    """Some sectors of a write, in no order; what lies between reads as zeros or as what was there."""
    at = 0
    while at < len(content):
        end = min(len(content), (offset + at) // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES - offset)
        if rng.random() < 0.6:
            _write(into, offset + at, content[at:end])
        at = end


def _apply(into: bytearray, offset: int, content: bytes | None) -> None:
    if content is None:
        _truncate(into, offset)
    else:
        _write(into, offset, content)


def _write(into: bytearray, offset: int, content: bytes) -> None:
    if len(into) < offset:
        into.extend(bytes(offset - len(into)))
    into[offset : offset + len(content)] = content


def _truncate(into: bytearray, n_bytes: int) -> None:
    del into[n_bytes:]
    if len(into) < n_bytes:
        into.extend(bytes(n_bytes - len(into)))


@dataclass(frozen=True, eq=False)
class Entry:
    """A change of a folder: `name` now means `node`, or nothing; a rename also takes it from where it was."""

    order: int
    name: str
    node: "File | Folder | None"
    source: "Folder | None" = None
    source_name: str = ""


class Folder:
    """Names as programs see them, and as the disk holds them."""

    def __init__(self) -> None:
        self.live: dict[str, File | Folder] = {}
        self.durable: dict[str, File | Folder] = {}
        self.pending: list[Entry] = []

    def sync(self) -> None:
        for entry in self.pending:
            _enter(self, entry)
        self.pending.clear()


def _enter(folder: Folder, entry: Entry) -> None:
    if entry.node is None:
        folder.durable.pop(entry.name, None)
        return
    folder.durable[entry.name] = entry.node
    if entry.source is not None and entry.source.durable.get(entry.source_name) is entry.node:
        del entry.source.durable[entry.source_name]


class Image:
    """A disk's content: survives its processes, and a power cut as far as a disk does.

    Attributes:
        capacity_bytes: what all files together may hold.
        written_bytes: what was written since it was made, a measure of wear.
    """

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.root = Folder()
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.written_bytes = 0
        self._order = count()

    def find(self, path: Path) -> File | Folder | None:
        """What is there now."""
        node: File | Folder | None = self.root
        for part in path.parts[1:]:
            node = node.live.get(part) if isinstance(node, Folder) else None
        return node

    def make_folder(self, path: Path) -> Folder:
        """A folder and those above it, on the disk at once, as `Disk.make_folder` promises.

        Raises:
            NotADirectoryError: a file is in the way.
        """
        at = self.root
        for part in path.parts[1:]:
            below = at.live.get(part)
            if below is None:
                below = Folder()
                self.link(at, part, below)
                at.sync()
            if isinstance(below, File):
                raise NotADirectoryError(str(path))
            at = below
        return at

    def folder_of(self, path: Path) -> Folder:
        """The folder that holds a path.

        Raises:
            FileNotFoundError: there is none.
        """
        found = self.find(path.parent)
        if not isinstance(found, Folder):
            raise FileNotFoundError(str(path))
        return found

    def link(self, folder: Folder, name: str, node: File | Folder) -> None:
        """Give a name."""
        folder.live[name] = node
        folder.pending.append(Entry(next(self._order), name, node))

    def unlink(self, folder: Folder, name: str) -> None:
        """Take a name away, with all below it."""
        self.used_bytes -= weight(folder.live.pop(name))
        folder.pending.append(Entry(next(self._order), name, None))

    def rename(self, source: Path, target: Path) -> None:
        """Move a name; both folders know of it together."""
        source_folder, target_folder = self.folder_of(source), self.folder_of(target)
        node = source_folder.live.pop(source.name, None)
        if node is None:
            raise FileNotFoundError(str(source))
        replaced = target_folder.live.get(target.name)
        if isinstance(replaced, Folder) and (isinstance(node, File) or replaced.live):
            source_folder.live[source.name] = node
            raise IsADirectoryError(str(target)) if isinstance(node, File) else OSError(39, "Directory not empty")
        if replaced is not None:
            self.used_bytes -= weight(replaced)
        target_folder.live[target.name] = node
        target_folder.pending.append(Entry(next(self._order), target.name, node, source_folder, source.name))

    def cut_power(self, rng: Random) -> None:
        """From here on the disk holds only what the cut left."""
        folders: list[Folder] = []
        _reachable(self.root, folders)
        kept = [entry_of for folder in folders for entry_of in _prefix(folder, rng)]
        for folder, entry in sorted(kept, key=lambda pair: pair[1].order):
            _enter(folder, entry)
        survivors: dict[int, File | Folder] = {}
        self.root = _rebuilt(self.root, rng, survivors)
        self.used_bytes = weight(self.root)

    def flip_bits(self, path: Path, rng: Random, n_bits: int = 1) -> None:
        """Rot: bits of what lies on the disk change."""
        node = self.find(path)
        if isinstance(node, File) and node.live:
            node.sync()
            for _ in range(n_bits):
                at = rng.randrange(len(node.live))
                node.live[at] ^= 1 << rng.randrange(8)
                node.durable[at] = node.live[at]

    def copy(self) -> "Image":
        """A clone, as of an SD card: what is on the disk, with nothing pending."""
        other = Image(self.capacity_bytes)
        other.root = _rebuilt(self.root, None, {})
        other.used_bytes = weight(other.root)
        return other


def weight(node: File | Folder) -> int:
    """Bytes of a file, or of all files below a folder."""
    return len(node.live) if isinstance(node, File) else sum(map(weight, node.live.values()))


def _reachable(folder: Folder, found: list[Folder]) -> None:
    if folder in found:
        return
    found.append(folder)
    pending = [entry.node for entry in folder.pending if entry.node is not None]
    for node in (*folder.live.values(), *folder.durable.values(), *pending):
        if isinstance(node, Folder):
            _reachable(node, found)


def _prefix(folder: Folder, rng: Random) -> list[tuple[Folder, Entry]]:
    n_kept = rng.randrange(len(folder.pending) + 1)
    kept = [(folder, entry) for entry in folder.pending[:n_kept]]
    folder.pending.clear()
    return kept


def _rebuilt(folder: Folder, rng: Random | None, survivors: dict[int, File | Folder]) -> Folder:
    """A new tree of what is durable; without `rng`, of what is live."""
    new = Folder()
    survivors[id(folder)] = new
    for name, node in sorted((folder.durable if rng else folder.live).items()):
        if id(node) not in survivors:
            survivors[id(node)] = _rebuilt(node, rng, survivors) if isinstance(node, Folder) else _file(node, rng)
        new.live[name] = new.durable[name] = survivors[id(node)]
    return new


def _file(file: File, rng: Random | None) -> File:
    if rng is not None:
        return file.after_cut(rng)
    copy = File()
    copy.live, copy.durable = bytearray(file.live), bytearray(file.live)
    return copy
