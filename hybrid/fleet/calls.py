"""The fleet's calls as the agent sees them, so that the real link and a simulated one are the same to it."""

from collections.abc import AsyncIterator
from typing import Protocol

from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, RangesCall
from hybrid.fleet.messages import (
    IngestAnswer,
    IngestCall,
    OutcomesAnswer,
    OutcomesCall,
    StateAnswer,
    StateCall,
)


class FleetCalls(Protocol):
    """What an admitted box may ask its gateway.

    Every call is bounded in time by the implementation and raises `HybridError`s only: a `LinkError` where it is
    unknown whether the gateway did it, anything else where the gateway answered. Every call may be sent again.
    """

    async def state(self, call: StateCall) -> StateAnswer:
        """What the box should be."""
        ...

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        """Bring items; those that the answer names are stored for good."""
        ...

    async def outcomes(self, call: OutcomesCall) -> OutcomesAnswer:
        """Outcomes of deferred inferences."""
        ...

    async def put_blob(self, sha256: str, content: bytes) -> None:
        """Bring the bytes that an item refers to; resumed by the implementation."""
        ...

    def own_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Bytes that the gateway keeps for this box alone, such as a large outcome, from an offset on."""
        ...

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        """Exact bytes of a manifest, and its signature as text."""
        ...

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        """The index of a file's chunks; see docs/chunks.md."""
        ...

    def chunk_ranges(self, call: RangesCall) -> AsyncIterator[bytes]:
        """Parts of a file, one after the other."""
        ...

    def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Bytes of a file of an artifact from an offset on."""
        ...
