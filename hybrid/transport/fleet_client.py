"""`FleetCalls` over HTTPS: what an admitted box asks its gateway."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, RangesCall
from hybrid.artifact.manifest import MAX_MANIFEST_BYTES
from hybrid.artifact.names import check_digest, check_word
from hybrid.errors import BadMessage, Conflict, TooLarge
from hybrid.fleet.messages import (
    IngestAnswer,
    IngestCall,
    OutcomesAnswer,
    OutcomesCall,
    StateAnswer,
    StateCall,
)
from hybrid.transport.fleet_link import FleetLink
from hybrid.transport.fleet_paths import BLOBS_PATH, CHUNKS_PATH, INGEST_PATH, OUTCOMES_PATH, STATE_PATH
from hybrid.transport.http_reply import whole_body
from hybrid.transport.registry_client import SIGNATURE_HEADER

PIECE_BYTES: Final = 1 << 20
STALL_S: Final = 30.0
"""Longest time without a byte while a file comes or goes."""

SLACK_S: Final = 30.0
"""How much later than asked for the answer of a long poll may come."""

_BLOCK_BYTES: Final = 256 << 10
_MOST_TURNS: Final = 4


class FleetClient:
    """The calls of `hybrid.fleet.calls.FleetCalls` over one link."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link

    async def state(self, call: StateCall) -> StateAnswer:
        """See `FleetCalls`."""
        return await self._link.ask(STATE_PATH, call, StateAnswer, form="json", answer_s=call.wait_s + SLACK_S)

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        """See `FleetCalls`."""
        return await self._link.ask(INGEST_PATH, call, IngestAnswer, form="msgpack")

    async def outcomes(self, call: OutcomesCall) -> OutcomesAnswer:
        """See `FleetCalls`."""
        return await self._link.ask(OUTCOMES_PATH, call, OutcomesAnswer, form="msgpack", answer_s=call.wait_s + SLACK_S)

    async def put_blob(self, sha256: str, content: bytes) -> None:
        """See `FleetCalls`."""
        path = f"{BLOBS_PATH}/{check_digest(sha256)}"
        n_turns = 0
        offset = await self._offset(path)
        while offset < len(content):
            headers = {"Upload-Offset": str(offset), "Upload-Length": str(len(content))}
            piece = content[offset : offset + PIECE_BYTES]
            try:
                async with self._link.call("PATCH", path, data=piece, headers=headers, answer_s=STALL_S) as response:
                    await whole_body(response, _BLOCK_BYTES)
                    offset += len(piece)
            except Conflict:  # it stands elsewhere: an answer was lost, or its store began anew
                n_turns += 1
                if n_turns > _MOST_TURNS:
                    raise
                offset = await self._offset(path)

    async def _offset(self, path: str) -> int:
        async with self._link.call("HEAD", path, fine=(404,), answer_s=STALL_S) as response:
            text = response.headers.get("Upload-Offset", "0")
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise BadMessage(f"the gateway's Upload-Offset is {text[:40]!r}; is a proxy changing its answers?")
            return int(text)

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        """See `FleetCalls`."""
        path = f"v2/hybrid/models/{check_word(name)}/versions/{check_word(version, 'version')}/manifest"
        async with self._link.call("GET", path) as response:
            data = await whole_body(response, MAX_MANIFEST_BYTES + 1)
            if len(data) > MAX_MANIFEST_BYTES:
                raise TooLarge(f"the manifest of {name}:{version} has more than {MAX_MANIFEST_BYTES} bytes; refused")
            return data, response.headers.get(SIGNATURE_HEADER)

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        """See `FleetCalls`."""
        return await self._link.ask(f"{CHUNKS_PATH}/index", call, IndexAnswer, form="msgpack")

    async def chunk_ranges(self, call: RangesCall) -> AsyncIterator[bytes]:
        """See `FleetCalls`."""
        data = msgspec.msgpack.encode(call)
        async with self._link.call("POST", CHUNKS_PATH, data=data, answer_s=STALL_S) as response:
            while block := await response.content.read(_BLOCK_BYTES):
                yield block

    def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """See `FleetCalls`."""
        return self._bytes(f"v2/hybrid/blobs/{check_digest(sha256)}", offset)

    def own_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """See `FleetCalls`."""
        return self._bytes(f"{BLOBS_PATH}/{check_digest(sha256)}", offset)

    async def _bytes(self, path: str, offset: int) -> AsyncIterator[bytes]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._link.call("GET", path, headers=headers, answer_s=STALL_S) as response:
            if offset and response.status != 206:
                raise BadMessage("the gateway ignored the wanted range; a proxy in between may have dropped it")
            while block := await response.content.read(_BLOCK_BYTES):
                yield block
