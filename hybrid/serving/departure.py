"""How a service leaves: new work is refused, running work ends, and a second signal ends the wait."""

import asyncio
import logging
from typing import Final

from hybrid.hosting.front_door import FrontDoor
from hybrid.hosting.listener import Listener
from hybrid.hosting.stop_signal import StopSignal
from hybrid.serving.split.channel import SplitChannel

_log = logging.getLogger("hybrid.serving")
_DRAIN_POLL_S: Final = 0.02


async def drain(door: FrontDoor, listener: Listener, channels: SplitChannel, stop: StopSignal, most_s: float) -> None:
    """Refuse new work and let running work end, for `most_s` at most; a second signal ends the wait."""

    def n_active() -> int:
        return door.n_active + channels.n_streams + listener.n_answering

    listener.close()
    door.is_draining = True
    _log.info("service.draining n_active=%d", n_active())
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(channels.drain(most_s))
        try:
            async with asyncio.timeout(most_s):
                while n_active() and not stop.second.is_set():  # noqa: ASYNC110 (counters, seen for seconds)
                    await asyncio.sleep(_DRAIN_POLL_S)
        except TimeoutError:
            _log.warning("service.drain_cut n_active=%d", n_active())
        leaving.cancel()
    _log.info("service.stopped n_active=%d", n_active())
