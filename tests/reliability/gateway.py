"""A simulated gateway: the real ingest and steering on a simulated disk, behind a simulated link."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from cloud_gateway.fleet.assignments import Terms
from cloud_gateway.fleet.intake.ingest import Ingest
from cloud_gateway.fleet.steering.steering import Neighbours, Steering
from hybrid.errors import HybridError, NotFound
from hybrid.fleet.messages import Admission, IngestCall, StateCall, Trial
from tests.reliability.history import History
from tests.reliability.machine import DATA, Machine
from tests.reliability.publishing import Published
from tests.reliability.simulated_link import Server
from tests.reliability.virtual_loop import VirtualLoop

TRIAL = Trial(n_good=5, most_s=120.0)


@dataclass(frozen=True)
class KnownBox:
    """A box as the registry has it."""

    id: str
    name: str
    tags: dict[str, str] = field(default_factory=dict)
    admission: Admission = "admitted"


class Directory:
    """The registry of boxes."""

    def __init__(self, boxes: Sequence[KnownBox]) -> None:
        self._boxes = {box.id: box for box in boxes}

    def all(self) -> Sequence[KnownBox]:
        return tuple(self._boxes.values())

    def find(self, box_id: str) -> KnownBox | None:
        return self._boxes.get(box_id)


class Catalogue:
    """The registry of models; its files do not fail: what came once stays."""

    def __init__(self) -> None:
        self.by_digest: dict[str, Published] = {}
        self._files: dict[str, bytes] = {}

    def add(self, version: Published) -> None:
        self.by_digest[version.digest] = version
        self._files |= version.files

    def resolve(self, name: str, version: str | None = None) -> "Resolved":
        found = [one for one in self.by_digest.values() if one.name == name and version in (None, one.version)]
        if not found:
            raise NotFound(f"no model {name}:{version}")
        newest = max(found, key=lambda one: one.sequence)
        return Resolved(newest.version, newest.digest)

    def manifest(self, name: str, version: str) -> tuple[bytes, str]:
        found = self.by_digest[self.resolve(name, version).artifact_digest]
        return found.manifest, found.signature

    def piece(self, sha256: str, offset: int, n_bytes: int) -> bytes:
        if sha256 not in self._files:
            raise NotFound(f"no file {sha256}")
        return self._files[sha256][offset : offset + n_bytes]


@dataclass(frozen=True)
class Resolved:
    version: str
    artifact_digest: str


class BlobMemory:
    """What boxes brought as files; kept over power cuts, as the real shelf syncs each before it answers."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], bytes] = {}

    def size(self, box_id: str, sha256: str) -> int:
        return len(self._kept.get((box_id, sha256), b"")) if (box_id, sha256) in self._kept else -1

    def read(self, box_id: str, sha256: str, *, offset: int = 0, n_bytes: int = -1) -> bytes:
        if (box_id, sha256) not in self._kept:
            raise NotFound("gone")
        return self._kept[box_id, sha256]

    def put(self, box_id: str, sha256: str, content: bytes) -> None:
        self._kept[box_id, sha256] = content

    def remove(self, box_id: str, sha256: str) -> None:
        self._kept.pop((box_id, sha256), None)


class Gateway(Machine):
    """See the module."""

    def __init__(
        self, loop: VirtualLoop, rng: Random, history: History, server: Server, boxes: Sequence[KnownBox]
    ) -> None:
        super().__init__("gateway", loop, rng, history)
        self.server = server
        self.directory = Directory(boxes)
        self.catalogue = Catalogue()
        self.blobs = BlobMemory()
        self.ingest: Ingest | None = None
        self.steering: Steering | None = None

    async def program(self) -> None:
        node, server = self.node, self.server
        server.node, server.handlers = node, {}
        ingest = await asyncio.to_thread(Ingest, DATA, blobs=self.blobs, connect=self.connect, wall_s=self.wall_s)
        around = Neighbours(
            boxes=self.directory,
            versions=self.catalogue,
            raise_alarm=lambda kind, box, text: self.history.add("gateway", "alarm", kind=kind, box=box, text=text),
            trust=lambda: None,
        )
        steering = await asyncio.to_thread(
            Steering,
            DATA / "rollouts.db",
            around,
            now_s=self.wall_s,
            rng=Random(self.rng.random()),
            connect=self.connect,
        )
        ingest.on_reports = steering.take_reports
        self.ingest, self.steering = ingest, steering
        server.handlers = {
            "ingest": self._ingest,
            "state": self._state,
            "put_blob": self._put_blob,
            "manifest": self._manifest,
            "blob": self._blob,
            "own_blob": self._own_blob,
            "chunk_index": self._no_chunks,
        }
        async with asyncio.TaskGroup() as group:
            group.create_task(steering.run())
            group.create_task(ingest.run())

    def _bury(self, how: str) -> None:
        self.server.end(is_told=how != "power")
        super()._bury(how)

    async def assign(self, version: Published) -> bool:
        """Let every box run a version; whether that is on the disk."""
        self.catalogue.add(version)
        if not self.is_up or self.steering is None or not self.server.handlers:
            return False
        done = self.loop.create_future()
        assert self.node is not None

        async def order() -> None:
            assert self.steering is not None
            try:
                await self.steering.assign(version.name, version.version, {}, Terms(trial=TRIAL), "operator")
            except HybridError as exc:
                self.history.add("gateway", "assign refused", code=exc.code)
                done.set_result(False)
            else:
                done.set_result(True)

        self.loop.start(self.node, order())
        try:
            async with asyncio.timeout(30):
                return await done
        except TimeoutError:
            return False

    # -- what boxes ask

    async def _ingest(self, who: str, request: bytes) -> bytes:
        assert self.ingest is not None
        return msgspec.msgpack.encode(await self.ingest.ingest(who, msgspec.msgpack.decode(request, type=IngestCall)))

    async def _state(self, who: str, request: bytes) -> bytes:
        assert self.steering is not None
        return msgspec.json.encode(await self.steering.state(who, msgspec.json.decode(request, type=StateCall)))

    async def _put_blob(self, who: str, request: bytes) -> bytes:
        self.blobs.put(who, *msgspec.msgpack.decode(request, type=tuple[str, bytes]))
        return b""

    async def _manifest(self, who: str, request: bytes) -> bytes:
        return msgspec.msgpack.encode(self.catalogue.manifest(*msgspec.msgpack.decode(request, type=tuple[str, str])))

    async def _blob(self, who: str, request: bytes) -> bytes:
        return self.catalogue.piece(*msgspec.msgpack.decode(request, type=tuple[str, int, int]))

    async def _own_blob(self, who: str, request: bytes) -> bytes:
        sha256, offset, n_bytes = msgspec.msgpack.decode(request, type=tuple[str, int, int])
        return self.blobs.read(who, sha256)[offset : offset + n_bytes]

    async def _no_chunks(self, who: str, request: bytes) -> bytes:
        raise NotFound("no index of chunks here")
