"""The time that a box believes: what its gateway signed, carried on by a clock that only runs forward."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from edge_agent.trust.record_file import RecordFiles, json_of
from hybrid.errors import StorageError

BUILT_S: Final = 1_795_305_600.0
"""When this release was made (2026-11-22): no earlier moment is believed."""

FILE_NAME: Final = "time.json"
WRITE_S: Final = 3600.0
_LATEST_S: Final = 32_503_680_000.0
_log = logging.getLogger("hybrid.agent.trust")


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    time_s: float


class TrustedTime:
    """Seconds since 1970 that never go back and owe nothing to the box's own clock.

    It may be late (after a start without a gateway, by how long the box was off), never early: what is compared with it
    is whether something signed is too old, and a late clock refuses nothing that is good.
    """

    def __init__(self, files: RecordFiles, *, clock_s: Callable[[], float] | None = None) -> None:
        """Takes up the last time that was kept.

        Args:
            files: where it is kept.
            clock_s: a clock that only runs forward; the event loop's by default.
        """
        kept = files.load(FILE_NAME, json_of(_Kept))
        self._files = files
        self._clock_s = clock_s or (lambda: asyncio.get_running_loop().time())
        self._base_s = max(BUILT_S, kept.time_s if kept is not None and kept.time_s < _LATEST_S else 0.0)
        self._at_s: float | None = None
        self._written_s = self._base_s

    def now_s(self) -> float:
        """The trusted time now."""
        at_s = self._clock_s()
        if self._at_s is None:
            self._at_s = at_s
        return self._base_s + max(0.0, at_s - self._at_s)

    def learn(self, time_s: float) -> None:
        """A gateway that proved itself signed this time."""
        if self.now_s() < time_s < _LATEST_S:
            self._base_s, self._at_s = time_s, self._clock_s()

    def keep(self) -> None:
        """Write down the last signed time, once an hour at most; blocking."""
        time_s = self._base_s
        if time_s - self._written_s < WRITE_S:
            return
        self._written_s = time_s
        try:
            self._files.store(FILE_NAME, msgspec.json.encode(_Kept(time_s=time_s)))
        except StorageError as exc:  # it is learned again at the next hello
            _log.warning("trust.time_not_kept reason=%s", exc)
