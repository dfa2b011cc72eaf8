"""Writes to one database that share transactions: calls that come together are synced together."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from hybrid.errors import HybridError, Overloaded, StorageError
from hybrid.hosting.database import Database

MOST_WAITING: Final = 4096
_GROUP: Final = 256
_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], _T]
_log = logging.getLogger("hybrid.gateway.rounds")


class Commits:
    """One writer of a database. Belongs to the event loop.

    Attributes:
        refused: told what the disk said each time that it took nothing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        self._writing = asyncio.Lock()
        self._is_refused = False
        self.refused: Callable[[str], object] = _nothing

    async def write(self, work: Work[_T]) -> _T:
        """Do some work in a transaction that others may share; it is on the disk when this returns.

        Cancelled or not, what was begun is written whole or not at all. Work that raises fails all that share with it:
        it checks nothing that may fail, but writes.

        Raises:
            Overloaded: too much waits for the disk.
            DiskFull, StorageError: nothing was written.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded("more is to be written than the disk takes; come back later", retry_after_s=5.0)
        written: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, written))
        async with self._writing:
            while self._waiting and not written.done():  # before it may stand more than a group of those who left
                await self._write_group()
        return await written

    async def _write_group(self) -> None:
        group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
        done = asyncio.get_running_loop().run_in_executor(None, self._write, [work for work, _ in group])
        done.add_done_callback(partial(self._written, group))
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait((done,))  # a thread cannot be cancelled: the next group comes after it
            raise
        except Exception:  # noqa: BLE001, S110 (each of the group gets it)
            pass

    def _written(self, group: list[tuple[Work[Any], asyncio.Future[Any]]], done: "asyncio.Future[list[Any]]") -> None:
        """Each of a group gets its answer, whoever of them stayed to wait for it."""
        if not done.cancelled():
            self._note(done)
            _tell(group, done)

    def _note(self, done: "asyncio.Future[list[Any]]") -> None:
        """A disk that refuses is in the log once, and once when it is well again."""
        error = done.exception()
        if isinstance(error, StorageError) and not self._is_refused:
            _log.error("rounds.disk_refuses error=%s", error)
        elif error is None and self._is_refused:
            _log.warning("rounds.disk_takes_again")
        self._is_refused = isinstance(error, StorageError)
        if self._is_refused:
            self.refused(f"what boxes bring is not kept: {error}")

    def _write(self, works: list[Work[Any]]) -> list[Any]:
        with self._database.writing() as db:
            return [work(db) for work in works]


def _nothing(text: str) -> None:
    """Nobody wants to know."""


def _tell(group: list[tuple[Work[Any], asyncio.Future[Any]]], done: "asyncio.Future[list[Any]]") -> None:
    error = done.exception()
    if error is not None and not isinstance(error, HybridError):
        _log.error("rounds.not_written", exc_info=error)
        error = StorageError("the gateway failed while it wrote; its log says why")
    results = [None] * len(group) if error is not None else done.result()
    for (_, written), result in zip(group, results, strict=True):
        if written.done():
            continue
        if error is not None:
            written.set_exception(error)
            written.exception()  # seen: who waited for it may have left
        else:
            written.set_result(result)
