"""Bugs that the simulation must find: each is a small change of a real part, switched on for a run.

Design: a checker that never fires proves nothing. Every bug here is one that agents in the field had, or that a tired
programmer writes; each must be found within 1,000 seeds (test_planted.py keeps the seed that finds it first).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    from cloud_gateway.fleet.intake.ingest import Ingest
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


def rows_leave_when_sent() -> Any:
    """The outbox lets items go when they were sent, not when the gateway has them."""
    from edge_agent.outbox.sender import Sender

    original = Sender._next

    async def settled(self: Any) -> Any:
        batch = await original(self)
        highest: dict[str, int] = {}
        for item in batch.items:
            highest[item.stream] = max(highest.get(item.stream, -1), item.seq)
        await asyncio.to_thread(self._store.settle, batch.items, highest)
        return batch

    return patch.object(Sender, "_next", settled)


def gateway_forgets_numbers() -> Any:
    """The gateway remembers what it stored for a minute only."""
    from cloud_gateway.fleet.intake.store import IngestStore

    original = IngestStore.store

    def store(self: Any, calls: Any) -> Any:
        with self.database.writing() as db:
            db.execute(
                "DELETE FROM seen WHERE stream_id IN (SELECT id FROM stream WHERE since_s < ?)", (self._wall_s() - 60,)
            )
            db.execute("DELETE FROM stream WHERE since_s < ?", (self._wall_s() - 60,))
        return original(self, calls)

    return patch.object(IngestStore, "store", store)


def gaps_are_not_told() -> Any:
    """What the outbox dropped before an item is not said with it."""
    from edge_agent.outbox import sender

    original = sender._item

    def silent(item: Any) -> Any:
        from msgspec.structs import replace

        return replace(original(item), skipped=0)

    return patch.object(sender, "_item", silent)


def never_again_after_a_failure() -> Any:
    """The sender does not come back after a failed call."""
    from edge_agent.outbox.sender import Sender

    def failed(self: Any, error: Any) -> float:
        self._n_failures += 1
        return 1e9

    return patch.object(Sender, "_failed", failed)


def results_are_dropped_for_room() -> Any:
    """A full disk lets results go that somebody was told are safe."""
    from edge_agent.outbox import ledger, store

    kinds = ("telemetry", "sample", "result")
    both = ExitStack()
    both.enter_context(patch.object(store, "DROPPED_FIRST", kinds))
    both.enter_context(patch.object(ledger, "DROPPED_FIRST", kinds))
    return both


def golden_outputs_are_not_compared() -> Any:
    """A version is committed without its golden outputs."""
    from edge_agent.install import model

    async def compare(*_: Any) -> None:
        return None

    return patch.object(model, "compare_golden", compare)


def contents_are_not_checked() -> Any:
    """A slot is opened without its digests."""
    from edge_agent.install.model import Model

    return patch.object(Model, "_check", lambda self, slot, digest: None)


def files_are_not_synced() -> Any:
    """Files of a version are named in slots.json before they are on the disk."""
    from tests.reliability.page_cache import File
    from tests.reliability.simulated_disk import SimulatedDisk

    original = SimulatedDisk.sync

    def sync(self: Any, path: Any) -> None:
        if path.suffix in (".onnx", ".npy", ".part") and isinstance(self.image.find(path), File):
            return
        original(self, path)

    return patch.object(SimulatedDisk, "sync", sync)


def a_failure_blocks_the_next() -> Any:
    """A version that failed keeps the box from taking up another."""
    from edge_agent.install import transitions

    table = {
        key: (lambda slots, event: slots)
        if key[0] in ("failed", "rolled_back") and key[1] is transitions.Assign
        else move
        for key, move in transitions.TABLE.items()
    }
    return patch.object(transitions, "TABLE", table)


BUGS: dict[str, Plant] = {
    "synchronous normal": synchronous_normal,
    "no folder sync of files": no_folder_sync_of_files,
    "gateway acknowledges first": gateway_acknowledges_first,
    "put returns first": put_returns_first,
    "rows leave when sent": rows_leave_when_sent,
    "gateway forgets numbers": gateway_forgets_numbers,
    "gaps are not told": gaps_are_not_told,
    "never again after a failure": never_again_after_a_failure,
    "results are dropped for room": results_are_dropped_for_room,
    "golden outputs are not compared": golden_outputs_are_not_compared,
    "contents are not checked": contents_are_not_checked,
    "files are not synced": files_are_not_synced,
    "a failure blocks the next": a_failure_blocks_the_next,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Run with a bug; with none where the name is empty."""
    if not name:
        yield
        return
    with BUGS[name]():
        yield
