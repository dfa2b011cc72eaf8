"""What was decided for the last requests and what came of it: a ring in memory, and JSON lines where a file is named.

Design: a line holds all that the decision rested on, so that `hybrid why` can make it once more. Neither inputs nor
outputs nor tokens are ever in it. The file is bounded: at its limit it becomes `PATH.1` and begins anew. A log that
cannot be written is given up with a warning; no request fails for its sake.
"""

import logging
import os
import re
import stat
import time
from collections import deque
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from hybrid.errors import CorruptContent, NotFound
from hybrid.schedule.beliefs import Decision, TableRecord
from hybrid.schedule.table import Table
from hybrid.session.report import RunReport

try:
    import fcntl
except ImportError:  # Windows: two processes that fill the file at the same moment may put aside too much
    fcntl = None  # type: ignore[assignment]

VARIABLE: Final = "HYBRID_DECISION_LOG"
LIMIT_VARIABLE: Final = "HYBRID_DECISION_LOG_BYTES"
LIMIT_BYTES: Final = 32 * 1024 * 1024
N_KEPT: Final = 256

_ADVICE: Final = f"Name a file that {VARIABLE} named; programs that run with it write one."
_CREDENTIALS = re.compile(rb"//[^/\"\s]*@")

log = logging.getLogger("hybrid.session")


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """One request: what was decided, and what happened.

    Attributes:
        n: its number in this process's log, from 1 on.
        at_s: wall clock (Unix seconds) of its answer.
        process: id of the process.
        shape: id of its shape key.
        decision: with all that it rested on; `inputs` is None where the placement was forced.
        report: what the session reported.
    """

    n: int
    at_s: float
    process: int
    shape: str
    decision: Decision
    report: RunReport


Line = TableRecord | RequestRecord
"""What a decision log holds, one JSON object a line."""


class DecisionLog:
    """The decisions of one session; safe between threads."""

    def __init__(self) -> None:
        self._recent: deque[tuple[Decision, RunReport]] = deque(maxlen=N_KEPT)
        self._file = _file()

    @property
    def recent(self) -> tuple[tuple[Decision, RunReport], ...]:
        """The last requests, oldest first."""
        return tuple(self._recent)

    def put(self, shape: str, table: Table | None, decision: Decision, report: RunReport) -> None:
        """Keeps one request; `table` is the one that the decision refers to, None where it is not known any more."""
        self._recent.append((decision, report))
        if self._file is not None:
            self._file.write(shape, table, decision, report)


class _File:
    """The log file of this process, shared by its sessions."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._lock = Lock()
        self._descriptor: int | None = None
        self._process = 0
        self._n = 0
        self._tables: set[str] = set()
        self._encoder = msgspec.json.Encoder()
        self._is_broken = False

    def write(self, shape: str, table: Table | None, decision: Decision, report: RunReport) -> None:
        """Appends a line, and the table's before it where it is new."""
        with self._lock:
            if self._is_broken:
                return
            try:
                self._write(shape, table, decision, report)
            except OSError as exc:
                self._is_broken = True
                log.warning("decision_log.failed path=%s reason=%s", self._path, exc)

    def forked(self) -> None:
        """In a forked child: whoever held the lock stayed with the parent, perhaps in the middle of opening a file."""
        self._lock = Lock()
        self._descriptor = None

    def _write(self, shape: str, table: Table | None, decision: Decision, report: RunReport) -> None:
        # Others may write to the same file: only the file itself knows how large it is.
        if self._descriptor is None or os.fstat(self._descriptor).st_size >= self._limit_bytes:
            self._open()
        self._n += 1
        lines = b""
        if table is not None and table.id not in self._tables:
            self._tables.add(table.id)
            lines = self._encoder.encode(table.record()) + b"\n"
        lines += self._encoder.encode(
            RequestRecord(
                n=self._n, at_s=time.time(), process=os.getpid(), shape=shape, decision=decision, report=report
            )
        )
        if b"@" in lines:
            lines = _CREDENTIALS.sub(b"//", lines)  # https://user:password@gateway
        os.write(self._descriptor or 0, lines + b"\n")

    def _open(self) -> None:
        """Opens the file, or begins a new one where it is full; a forked child opens its own."""
        if self._process != os.getpid():
            self._process, self._n = os.getpid(), 0
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        descriptor = _opened(self._path)
        if os.fstat(descriptor).st_size >= self._limit_bytes:
            try:
                _put_aside(self._path, descriptor)
            finally:
                os.close(descriptor)
            descriptor = _opened(self._path)
        self._descriptor = descriptor
        self._tables.clear()


def _opened(path: Path) -> int:
    """A descriptor to append to; a pipe would block the first request for ever, a link write where nobody named."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no plain file")
    return descriptor


def _put_aside(path: Path, descriptor: int) -> None:
    """Renames the full file, unless another process just did: its lock is held from looking to renaming."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # goes with the descriptor
    try:
        full, named = os.fstat(descriptor), path.lstat()
        if (full.st_dev, full.st_ino) == (named.st_dev, named.st_ino):
            path.replace(path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return


_files: dict[str, _File] = {}


def _in_child() -> None:
    for file in _files.values():
        file.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _file() -> _File | None:
    """The file that the environment names, None where it names none."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return None
    if path not in _files:
        text = os.environ.get(LIMIT_VARIABLE, "")
        _files[path] = _File(Path(path), int(text) if text.isdecimal() and int(text) > 0 else LIMIT_BYTES)
    return _files[path]


def read_log(path: Path) -> tuple[list[RequestRecord], dict[str, Table]]:
    """The requests of a log, oldest first, and the tables that their decisions refer to.

    Raises:
        NotFound: no such file.
        CorruptContent: a line is not one of a decision log; the last one may be cut off, as after a power cut.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise NotFound(
            f"{path}: {exc.strerror or exc}; name a file that {VARIABLE} named", advice=_ADVICE, name=str(path)
        ) from exc
    decoder = msgspec.json.Decoder(Line)
    requests: list[RequestRecord] = []
    tables: dict[str, Table] = {}
    for at, line in enumerate(lines, 1):
        try:
            found = decoder.decode(line)
        except msgspec.MsgspecError as exc:
            if at == len(lines) > 1:
                break
            raise CorruptContent(
                f"{path}: line {at} is none of a decision log ({exc})", advice=_ADVICE, path=str(path)
            ) from exc
        if isinstance(found, RequestRecord):
            requests.append(found)
        else:
            tables[found.id] = Table.of(found)
    return requests, tables
