"""Files of boxes that no item names: left by uploads that nothing followed; they leave after some days."""

import asyncio
import logging
from typing import Final

from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.fleet.intake.store import IngestStore
from hybrid.errors import StorageError

UNNAMED_S: Final = 7 * 86_400.0
"""So long a box may take to bring the item after its file; after that it brings the file again."""
_FIRST_S: Final = 600.0
_EVERY_S: Final = 6 * 3600.0
_AT_ONCE: Final = 500
_log = logging.getLogger("hybrid.gateway.ingest")


class Sweep:
    """Removes them now and then."""

    def __init__(self, store: IngestStore, blobs: FleetBlobs) -> None:
        self._store = store
        self._blobs = blobs

    async def run(self) -> None:
        """Sweep, until cancelled."""
        await asyncio.sleep(_FIRST_S)
        while True:
            try:
                await self.sweep()
            except StorageError as exc:
                _log.warning("ingest.not_swept error=%s", exc)
            await asyncio.sleep(_EVERY_S)

    async def sweep(self) -> int:
        """Look at the space of each box; how many files left."""
        n_removed = 0
        for box_id in await asyncio.to_thread(self._blobs.boxes):
            n_removed += await asyncio.to_thread(self._sweep, box_id)
        if n_removed:
            _log.info("ingest.swept n_files=%d", n_removed)
        return n_removed

    def _sweep(self, box_id: str) -> int:
        unnamed = self._store.unnamed(box_id, self._blobs.older(box_id, UNNAMED_S))
        for start in range(0, len(unnamed), _AT_ONCE):
            self._store.forget_blobs([(box_id, blob) for blob in unnamed[start : start + _AT_ONCE]])
        return len(unnamed)
