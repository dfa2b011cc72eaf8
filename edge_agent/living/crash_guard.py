"""Crash loops: an agent that cannot stay up starts with less, so that it can still be looked at and mended.

Design: the time of each start is kept until an orderly stop, or until the agent has been up for a while. What matters
is how many starts in a row ended early on this boot of the machine; that is counted on the clock that runs since boot,
so neither a wrong date nor a power cut looks like a crash. Nobody has to come: one that held out with less goes back to
doing everything by itself, and if that kills it again, the count begins anew.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge_agent.disk import Disk, write_durably
from hybrid.errors import StorageError

Mode = Literal["normal", "safe", "bare"]
"""safe: only versions that were committed, no trial, no download. bare: no models at all."""

FILE: Final = "starts.json"
SETTLED_S: Final = 120.0
"""An agent that was up for so long is not in a loop."""
BARE_SETTLED_S: Final = 600.0
"""One without models waits longer before it tries them again."""
SAFE_AFTER: Final = 3
BARE_AFTER: Final = 6
_WITHIN_S: Final = 3600.0
_MOST_KEPT: Final = 16
_BOOT_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger("hybrid.agent.guard")


class Boot(msgspec.Struct, frozen=True):
    """Which boot of the machine this is, and how long ago it was."""

    id: str
    age_s: float


class _Starts(msgspec.Struct, frozen=True):
    boot: str
    at_s: tuple[float, ...]


def this_boot() -> Boot:
    """The machine's; without an id every boot looks the same, and the age tells them apart."""
    name = ""
    with suppress(OSError):
        name = _BOOT_FILE.read_text("ascii").strip()
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Boot(name, time.clock_gettime(clock))


class CrashGuard:
    """Counts the starts that ended early; a file that cannot be written or read counts none."""

    def __init__(self, data: Path, disk: Disk, boot: Callable[[], Boot] = this_boot) -> None:
        self._path, self._disk, self._boot = data / FILE, disk, boot
        self.mode: Mode = "normal"
        self.n_early = 0

    def begin(self) -> Mode:
        """Note this start; how much it may do. Blocking."""
        boot = self._boot()
        early = self._early(boot)
        self.n_early = len(early)
        self.mode = "normal" if self.n_early < SAFE_AFTER else "safe" if self.n_early < BARE_AFTER else "bare"
        if self.mode != "normal":
            _log.error("guard.crash_loop n_early=%d mode=%s", self.n_early, self.mode)
        self._write(_Starts(boot.id, (*early, boot.age_s)[-_MOST_KEPT:]))
        return self.mode

    def early(self) -> int:
        """How many starts in a row ended early, without noting one. Blocking."""
        return len(self._early(self._boot()))

    @property
    def settled_after_s(self) -> float:
        """How long the agent must be up until it is not in a loop any more."""
        return BARE_SETTLED_S if self.mode == "bare" else SETTLED_S

    def settled(self) -> None:
        """It was up for so long: it may do everything again, and the next start begins anew. Blocking."""
        self.end()
        self.mode, self.n_early = "normal", 0

    def end(self) -> None:
        """An orderly stop. Blocking."""
        with suppress(StorageError, OSError):
            self._disk.remove(self._path)
            self._disk.sync(self._path.parent)

    def _early(self, boot: Boot) -> tuple[float, ...]:
        try:
            starts = msgspec.json.decode(self._disk.read(self._path), type=_Starts)
        except (OSError, StorageError, msgspec.MsgspecError, UnicodeDecodeError):
            return ()
        if starts.boot != boot.id:
            return ()
        return tuple(at_s for at_s in starts.at_s if 0 <= boot.age_s - at_s <= _WITHIN_S)

    def _write(self, starts: _Starts) -> None:
        with suppress(StorageError, OSError):
            write_durably(self._disk, self._path, msgspec.json.encode(starts))
