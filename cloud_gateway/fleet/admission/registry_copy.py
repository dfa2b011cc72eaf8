"""A second copy of the registry of boxes, so that a damaged file does not make strangers of a whole fleet.

Design: the copy is written whole, with SQLite's own means, soon after something about a box changed that must not be
lost (it came, was let in or out, renamed, tagged; a token or a bundle). What is missing in it after a damage, at most
what happened within its last minute, is told in an alarm.
"""

import asyncio
import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from hybrid.artifact.durable import storing, sync_file, sync_folder
from hybrid.errors import HybridError
from hybrid.hosting.database import Database

COPY_SUFFIX: Final = ".copy"
FIRST_S: Final = 2.0
LEAST_S: Final = 30.0
_log = logging.getLogger("hybrid.gateway.fleet")


class RegistryCopy:
    """Keeps the copy of one database up to date.

    Attributes:
        path: of the copy.
    """

    def __init__(self, database: Database, path: Path) -> None:
        self.path = path.with_name(path.name + COPY_SUFFIX)
        self._database = database
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def changed(self) -> None:
        """Something is to be copied soon. From any thread."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:  # the gateway stops, and copies once more when it starts
                pass

    async def run(self) -> None:
        """Copy at the start, and after changes, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._changed.set()
        while True:
            await self._changed.wait()
            await asyncio.sleep(FIRST_S)
            self._changed.clear()
            try:
                await asyncio.to_thread(self.write)
            except HybridError as exc:  # a full disk: the copy of before stays, and the next change tries again
                _log.warning("fleet.not_copied reason=%s", exc)
            await asyncio.sleep(LEAST_S)

    def write(self) -> None:
        """Copy now; the copy of before stays until the new one is whole and on the disk.

        Raises:
            DiskFull, StorageError: it could not be written.
        """
        draft = self.path.with_name(f".{self.path.name}.draft")
        with storing(self.path):
            draft.unlink(missing_ok=True)
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with self._database.reading() as db:
                db.execute("VACUUM INTO ?", (str(draft),))
            sync_file(draft)
            draft.replace(self.path)
            sync_folder(self.path.parent)


def restored(path: Path) -> bool:
    """Put the copy in the place of a database that is not there or was set aside; whether there was a sound one.

    Raises:
        DiskFull, StorageError: it could not be put there.
    """
    copy = path.with_name(path.name + COPY_SUFFIX)
    if not copy.exists() or not _is_sound(copy):
        return False
    draft = path.with_name(f".{path.name}.draft")
    with storing(path):
        shutil.copyfile(copy, draft)
        draft.chmod(0o600)
        sync_file(draft)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        draft.replace(path)
        sync_folder(path.parent)
    _log.error("fleet.registry_restored from=%s", copy)
    return True


def _is_sound(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return bool(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))
    except sqlite3.Error:
        return False
