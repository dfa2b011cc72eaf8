"""Whether the disk takes what campaigns bring: an alarm stands while it does not, and goes by itself."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloud_gateway.rounds.kept.commits import Commits
from hybrid.artifact.durable import write_atomically
from hybrid.errors import HybridError

KIND: Final = "disk_refuses"
QUIET_S: Final = 15.0
"""Without a refusal: twice, and then some, what rounds wait before they try again."""
_TRIED_BYTES: Final = 1 << 20
_log = logging.getLogger("hybrid.gateway.rounds")


class DiskWatch:
    """Raises the alarm and lifts it. Belongs to the event loop.

    Design: a small row may find room where a step does not, so that one write that went well says little: the alarm is
    lifted once a file of a megabyte, a row, and the alarm's own row were written, and whoever tried again what was
    refused had the time to say that it still is: it may be larger, or lie on another disk.

    Attributes:
        trouble: what the disk refused, and its words; empty while it takes.
    """

    def __init__(
        self,
        folder: Path,
        commits: Commits,
        *,
        raise_alarm: Callable[[str, str], None],
        lift_alarm: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        """Touches no disk.

        Args:
            folder: of all campaigns.
            commits: writes their rows; tells from now on what was refused.
            raise_alarm: takes a kind and a text; blocks.
            lift_alarm: takes a kind; blocks, and raises `StorageError` where that is not kept.
            changed: called when `trouble` is another one.
        """
        self._file = folder / ".tried"
        self._commits = commits
        self._raise, self._lift, self._changed = raise_alarm, lift_alarm, changed
        self._refused = asyncio.Event()
        self.trouble = ""
        commits.refused = self.refused

    def refused(self, text: str) -> None:
        """The disk did not take something, which will be tried again."""
        self._refused.set()
        if not self.trouble:
            self.trouble = text
            self._changed()

    async def run(self) -> None:
        """Tell, and look now and then whether the disk takes again, until cancelled."""
        await self._lift_of_before()
        while True:
            await self._refused.wait()
            await asyncio.to_thread(self._raise, KIND, self.trouble)
            while not (await self._is_quiet() and await self._takes() and await self._lifted()):
                pass
            if not self._refused.is_set():  # else it refused something while the alarm went
                self.trouble = ""
                self._changed()

    async def _lift_of_before(self) -> None:
        """The process before may have ended while its alarm stood."""
        while not self.trouble and not await self._lifted():  # noqa: ASYNC110 (what is waited for is the disk)
            await asyncio.sleep(QUIET_S)

    async def _is_quiet(self) -> bool:
        """Whether nothing was refused for a while."""
        self._refused.clear()
        try:
            async with asyncio.timeout(QUIET_S):
                await self._refused.wait()
        except TimeoutError:
            return True
        return False

    async def _takes(self) -> bool:
        try:
            await asyncio.to_thread(self._try)
            await self._commits.write(_touch)
        except (HybridError, OSError):
            return False
        return True

    def _try(self) -> None:
        write_atomically(self._file, bytes(_TRIED_BYTES))
        self._file.unlink(missing_ok=True)

    async def _lifted(self) -> bool:
        try:
            await asyncio.to_thread(self._lift, KIND)
        except HybridError as exc:
            _log.warning("rounds.alarm_not_lifted kind=%s error=%s", KIND, exc)
            return False
        return True


def _touch(db: sqlite3.Connection) -> None:
    """Write what is there anew: it takes a page of the log."""
    db.execute("UPDATE schema_version SET version = version")
