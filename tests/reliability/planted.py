"""Bugs that the simulation must find: each is a small change of a real part, switched on for a run.

Design: a checker that never fires proves nothing. Every bug here is one that agents in the field had, or that a tired
programmer writes; each must be found within 1,000 seeds (test_planted.py keeps the seed that finds it first).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

Plant = Callable[[], Any]


def synchronous_normal() -> Any:
    """The outbox's database commits without waiting for the disk."""
    from edge_agent.outbox import database

    pragmas = tuple(pragma.replace("synchronous=FULL", "synchronous=NORMAL") for pragma in database._PRAGMAS)
    return patch.object(database, "_PRAGMAS", pragmas)


def no_folder_sync_of_files() -> Any:
    """A large body's file is synced, its name is not."""
    from edge_agent.outbox.blob_files import BlobFiles

    original = BlobFiles.write

    def write(self: Any, contents: Any) -> Any:
        with patch.object(self, "_disk", _WithoutFolderSync(self._disk)):
            return original(self, contents)

    return patch.object(BlobFiles, "write", write)


class _WithoutFolderSync:
    def __init__(self, disk: Any) -> None:
        self._disk = disk

    def sync(self, path: Any) -> None:
        if not self._disk.is_folder(path):
            self._disk.sync(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)


def gateway_acknowledges_first() -> Any:
    """The gateway answers that it has something, and stores it a moment later."""
    from cloud_gateway.fleet.ingest import Ingest
    from hybrid.fleet.messages import IngestAnswer

    original = Ingest.ingest
    later: set[asyncio.Task] = set()

    async def ingest(self: Any, box_id: str, call: Any) -> IngestAnswer:
        async def store() -> None:
            await asyncio.sleep(0.2)
            await original(self, box_id, call)

        later.add(asyncio.ensure_future(store()))
        acked: dict[str, int] = {}
        for item in call.items:
            acked[item.stream] = max(acked.get(item.stream, -1), item.seq)
        return IngestAnswer(acked=acked)

    return patch.object(Ingest, "ingest", ingest)


def put_returns_first() -> Any:
    """`put` returns before the item is on the disk."""
    from edge_agent.outbox.outbox import Outbox
    from edge_agent.outbox.records import Kept

    original = Outbox.put
    later: set[asyncio.Task] = set()

    async def put(self: Any, kind: Any, body: bytes, **other: Any) -> Kept:
        later.add(asyncio.ensure_future(original(self, kind, body, **other)))
        return Kept(epoch="", stream=other.get("stream") or kind, seq=0)

    return patch.object(Outbox, "put", put)


BUGS: dict[str, Plant] = {
    "synchronous normal": synchronous_normal,
    "no folder sync of files": no_folder_sync_of_files,
    "gateway acknowledges first": gateway_acknowledges_first,
    "put returns first": put_returns_first,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Run with a bug; with none where the name is empty."""
    if not name:
        yield
        return
    with BUGS[name]():
        yield
