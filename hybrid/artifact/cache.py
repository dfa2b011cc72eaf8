"""Where this user's cache lies, and the digests of files that were hashed before."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from io import BufferedReader

_SETTLED_NS: Final = 2_000_000_000
_MAX_ENTRIES: Final = 4096


def cache_dir() -> Path:
    """Folder of everything that can be had again: `HYBRID_CACHE`, else where the platform keeps caches."""
    own = os.environ.get("HYBRID_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hybrid"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hybrid" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybrid"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, from the cache when device, inode, size and times are those of last time.

    Streams; the interpreter's lock is free while a block is read or hashed.
    """
    before = path.stat()
    entry = cache_dir() / "hashes" / _key(before)
    with suppress(OSError, ValueError):
        known = entry.read_text("ascii")
        if len(known) == 64 and int(known, 16) >= 0:
            return known
    with path.open("rb") as file:
        digest = _sha256(file)
        after = os.fstat(file.fileno())
    is_settled = time.time_ns() - after.st_mtime_ns > _SETTLED_NS
    if is_settled and _key(after) == _key(before):
        with suppress(OSError):
            _remember(entry, digest)
    return digest


def fresh_sha256(path: Path) -> str:
    """SHA-256 of the bytes that the disk gives now; what a verification wants."""
    with path.open("rb") as file:
        return _sha256(file)


def _sha256(file: "BufferedReader") -> str:
    import hashlib

    return hashlib.file_digest(file, "sha256").hexdigest()


def _key(stat: os.stat_result) -> str:
    import hashlib

    facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _remember(entry: Path, digest: str) -> None:
    """Write atomically, so that no other process reads half an entry; forget the oldest when there are many."""
    import tempfile

    entry.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=entry.parent)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(digest)
    Path(name).replace(entry)
    entries = list(entry.parent.iterdir())
    if len(entries) > _MAX_ENTRIES:
        for old in sorted(entries, key=_age)[: _MAX_ENTRIES // 4]:
            old.unlink(missing_ok=True)


def _age(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0
