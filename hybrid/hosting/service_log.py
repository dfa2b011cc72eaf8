"""A service's log: on stderr in the form that the reader wants, and in a file that is turned over, off the event loop.

Design: what a service does must never wait for its log. Records go into a bounded queue; a thread writes them. A full
disk or a reader that stopped reading costs records, which are counted and told, never a request.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Self

LEVELS: Final = ("debug", "info", "warning", "error")
_MOST_WAITING: Final = 10_000
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JournalFormatter(logging.Formatter):
    """One line a record with the priority that the journal reads from its first characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines of one priority; the journal knows the time."""
        mark = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class _Overflowing(logging.Handler):
    """Puts records into a queue, and counts those that found no room."""

    def __init__(self, records: "SimpleQueue[logging.LogRecord | None]") -> None:
        super().__init__()
        self._records = records
        self.n_lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it for the writer."""
        if self._records.qsize() >= _MOST_WAITING:
            self.n_lost += 1
            return
        try:
            record.message = record.getMessage()
        except Exception:  # noqa: BLE001 (a line that does not fit its arguments is no fault of who is served)
            self.handleError(record)
            return
        record.msg, record.args = record.message, None  # what the arguments hold may change, or be large
        self._records.put(record)


class _File(RotatingFileHandler):
    """A file that is turned over; a full disk costs records and is not a traceback on stderr for each of them."""

    n_failed = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 (the base class calls it so)
        """Count it; the next record tries again."""
        self.n_failed += 1


class ServiceLog:
    """A context manager: the log of `hybrid` goes where a service's operator looks.

    Args:
        level: one of `LEVELS`.
        file: also into this file; None: none.
        max_bytes: of one file, before it becomes `FILE.1`.
        n_files: how many old ones are kept.
        environment: says whether the journal reads stderr.
    """

    def __init__(
        self,
        level: str,
        file: Path | None = None,
        *,
        max_bytes: int = 10 << 20,
        n_files: int = 5,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._records: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._inlet = _Overflowing(self._records)
        self._outlets: list[logging.Handler] = [_stderr(environment)]
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            handler = _File(file, maxBytes=max_bytes, backupCount=n_files, encoding="utf-8", delay=True)
            handler.setFormatter(_dated())
            self._outlets.append(handler)
        self._logger = logging.getLogger("hybrid")
        self._before: tuple[int, list[logging.Handler]] = (logging.NOTSET, [])
        self._writer = threading.Thread(target=self._write, name="hybrid-log", daemon=True)
        self._level = level

    @property
    def n_lost(self) -> int:
        """Records that were not written: too many at once, or a disk without room."""
        return self._inlet.n_lost + sum(outlet.n_failed for outlet in self._outlets if isinstance(outlet, _File))

    def set_level(self, level: str) -> None:
        """From now on this much; see `LEVELS`."""
        self._logger.setLevel(level.upper())

    def __enter__(self) -> Self:
        """Take the place of the handlers that were there."""
        self._before = (self._logger.level, list(self._logger.handlers))
        self._logger.handlers[:] = [self._inlet]
        self.set_level(self._level)
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, for two seconds at most."""
        self._logger.handlers[:] = self._before[1]
        self._logger.setLevel(self._before[0])
        self._records.put(None)
        self._writer.join(2.0)
        for outlet in self._outlets:
            with suppress(OSError):  # a full disk, once more
                outlet.close()

    def _write(self) -> None:
        told_lost = 0
        while (record := self._records.get()) is not None:
            for outlet in self._outlets:
                outlet.handle(record)
            if self._inlet.n_lost > told_lost and self._records.empty():
                n_lost, told_lost = self._inlet.n_lost - told_lost, self._inlet.n_lost
                lost = logging.LogRecord("hybrid.log", logging.WARNING, "", 0, "log.lost n_records=%d", (n_lost,), None)
                for outlet in self._outlets:
                    outlet.handle(lost)


def _stderr(environment: Mapping[str, str]) -> logging.Handler:
    handler = logging.StreamHandler()
    if environment.get("JOURNAL_STREAM") and not sys.stderr.isatty():
        handler.setFormatter(JournalFormatter("%(name)s %(message)s"))
    else:
        handler.setFormatter(_dated())
    return handler


def _dated() -> logging.Formatter:
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
