"""Small files that a box cannot do without: kept twice, checked when read, set aside when damaged."""

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from edge_agent.disk import Disk, write_durably
from hybrid.errors import StorageError

SPARE: Final = ".spare"
_T = TypeVar("_T")
_log = logging.getLogger("hybrid.agent.trust")


class RecordFiles:
    """A folder of such files.

    Design: every file has a twin and a digest of its own, so that one bad block of a worn card costs nothing; what
    cannot be read is kept beside it for whoever wants to know why.

    Attributes:
        damaged: names of files that were damaged in both copies and were set aside, since this object was made.
    """

    def __init__(self, folder: Path, disk: Disk, *, wall_s: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self._seen: dict[str, bytes | None] = {}
        self._disk = disk
        self._wall_s = wall_s

    def load(self, name: str, parse: Callable[[bytes], _T]) -> _T | None:
        """What a file holds; None when it is not there, or damaged, which is noted.

        Args:
            name: of the file.
            parse: makes a value of its content; raises ValueError for one that is not sound.

        Raises:
            StorageError: the disk cannot be read at all.
        """
        first, was_first = self._read(name, parse)
        self._seen[name] = was_first
        if first is not None:
            return first
        second, was_second = self._read(name + SPARE, parse)
        if second is not None:
            if was_first is not None:
                self._set_aside(name)
            self._copy(was_second or b"", self.folder / name)
            self._seen[name] = was_second
            return second
        for copy, was in ((name, was_first), (name + SPARE, was_second)):
            if was is not None:
                self._set_aside(copy)
        if was_first is not None or was_second is not None:
            self.damaged.append(name)
        return None

    def store(self, name: str, content: bytes) -> None:
        """Keep a content; both copies are on the disk when this returns.

        Raises:
            DiskFull, StorageError: at least one whole copy, old or new, is there.
        """
        whole = hashlib.sha256(content).hexdigest().encode() + b"\n" + content
        self._disk.make_folder(self.folder)
        write_durably(self._disk, self.folder / name, whole)
        self._seen[name] = whole
        write_durably(self._disk, self.folder / (name + SPARE), whole)

    def was_replaced(self, name: str) -> bool:
        """Whether another process has put another content under a name since it was loaded or stored here."""
        try:
            whole: bytes | None = self._disk.read(self.folder / name)
        except OSError:  # gone, or not to be read now: what is known here holds
            return False
        return whole != self._seen.get(name)

    def remove(self, name: str) -> None:
        """Forget a file and its twin."""
        for copy in (name, name + SPARE):
            self._disk.remove(self.folder / copy)
        self._disk.sync(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is something under this name, sound or not."""
        return any(self._disk.size(self.folder / copy) >= 0 for copy in (name, name + SPARE))

    def _read(self, name: str, parse: Callable[[bytes], _T]) -> tuple[_T | None, bytes | None]:
        """The value, None where it is not sound, and the file's bytes, None where there is no file."""
        try:
            whole = self._disk.read(self.folder / name)
        except FileNotFoundError:
            return None, None
        except StorageError:
            raise
        except OSError as exc:
            raise StorageError(
                f"{self.folder / name}: {exc.strerror or exc}; check the disk and its rights",
                path=str(self.folder / name),
            ) from exc
        digest, _, content = whole.partition(b"\n")
        if digest != hashlib.sha256(content).hexdigest().encode():
            return None, whole
        try:
            return parse(content), whole
        except ValueError:
            return None, whole

    def _copy(self, whole: bytes, path: Path) -> None:
        try:
            write_durably(self._disk, path, whole)
        except StorageError as exc:  # the other copy is there
            _log.warning("trust.not_mended path=%s reason=%s", path, exc)

    def _set_aside(self, name: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._wall_s()))
        try:
            self._disk.replace(self.folder / name, self.folder / f"{name}.corrupt-{stamp}")
            self._disk.sync(self.folder)
        except StorageError as exc:
            _log.warning("trust.not_set_aside name=%s reason=%s", name, exc)
        _log.error("trust.damaged name=%s", name)


def json_of(kind: type[_T]) -> Callable[[bytes], _T]:
    """Parses a record that is JSON."""

    def parse(content: bytes) -> _T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ValueError(str(exc)) from exc

    return parse
