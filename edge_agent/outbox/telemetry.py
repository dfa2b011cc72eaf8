"""Telemetry of the box: how it was over the last minutes, put into the outbox now and then."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import msgspec

from edge_agent.outbox.outbox import Outbox
from edge_agent.part import Problem
from hybrid.errors import HybridError

EVERY_S: Final = 300.0
_MOST_BYTES: Final = 64 << 10
_log = logging.getLogger("hybrid.agent.telemetry")


class Telemetry:
    """Puts a snapshot into the outbox every few minutes; a `Part`."""

    name = "telemetry"

    def __init__(
        self, outbox: Outbox, snapshot: Callable[[], object], *, rng: Random, every_s: float = EVERY_S
    ) -> None:
        """Make the part.

        Args:
            outbox: carries it.
            snapshot: what to tell, as anything that msgspec encodes: figures, never inputs or outputs.
            rng: spreads the moments, lest all boxes tell at once.
            every_s: how often, in the mean.
        """
        self._outbox = outbox
        self._snapshot = snapshot
        self._rng = rng
        self._every_s = every_s
        self._n_told = 0

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._every_s)
            try:
                content = msgspec.json.encode(self._snapshot())
                if len(content) > _MOST_BYTES:
                    _log.warning("telemetry.too_large n_bytes=%d", len(content))
                    continue
                await self._outbox.put("telemetry", content)
                self._n_told += 1
            except HybridError as exc:
                _log.info("telemetry.not_kept code=%s", exc.code)

    def problems(self) -> Sequence[Problem]:
        """None: telemetry may be lost."""
        return ()

    def status(self) -> dict[str, object]:
        """How often it told."""
        return {"n_told": self._n_told, "every_s": self._every_s}
