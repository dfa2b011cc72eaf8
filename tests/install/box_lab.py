"""A box without engines: versions of a few bytes, a gateway's shelf that can fail, a host that looks at what it opens.

The host is an oracle: whatever it is asked to open must be, byte for byte, what a publisher made.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from edge_agent.disk import Disk
from edge_agent.install.install import Install
from edge_agent.install.means import InstallSettings, Means
from edge_agent.models.version import ModelVersion, Runs
from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.manifest import FileEntry, Golden, LineageStep, Manifest, Variant, artifact_digest, canonical_bytes
from hybrid.artifact.signature import new_private_key, public_key_of, sign
from hybrid.errors import ConnectionLost, EngineFailed, HybridError, NotFound
from hybrid.fleet.messages import Assigned, Installed, Trial
from hybrid.fleet.trust_bundle import DelegatedKey, TrustBundle, delegate, opened_by_own_root
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.virtual_loop import Node, VirtualLoop

DATA = Path("/data")


class Fleet:
    """The keys of a fleet."""

    def __init__(self) -> None:
        self.root, self.publisher, self.other, self.rounds = (new_private_key() for _ in range(4))
        self.sequence = 0

    def trust(self, *, publishers: list[bytes] | None = None, rounds: list[bytes] | None = None) -> TrustBundle:
        return opened_by_own_root(self.bundle(publishers=publishers, rounds=rounds))

    def bundle(self, *, publishers: list[bytes] | None = None, rounds: list[bytes] | None = None) -> bytes:
        self.sequence += 1
        keys = [
            DelegatedKey(public_key=public_key_of(key).hex(), role="publisher")
            for key in publishers or [self.publisher]
        ]
        keys += [DelegatedKey(public_key=public_key_of(key).hex(), role="rounds") for key in rounds or [self.rounds]]
        return delegate(self.root, keys, self.sequence)


@dataclass(frozen=True)
class Made:
    """A version as a publisher made it."""

    manifest: Manifest
    data: bytes
    signature: str | None
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        return artifact_digest(self.data)

    def assigned(self, **terms: object) -> Assigned:
        return Assigned(name=self.manifest.name, version=self.manifest.version, artifact_digest=self.digest, **terms)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def make(
    files: dict[str, bytes],
    *,
    key: bytes | None,
    name: str = "net",
    version: str = "1",
    sequence: int = 1,
    base: str | None = None,
    trainable: tuple[str, ...] = (),
    golden: Golden | None = None,
    **other: object,
) -> Made:
    """A version whose first file is the model; golden files are none of the model's."""
    entries = {path: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for path, data in files.items()}
    papers = {*golden.inputs.values(), *golden.outputs.values()} if golden else set()
    model_files = tuple(path for path in files if path not in papers)
    variant = Variant(
        id="original", engine="onnxruntime", precision="native", files=model_files, trainable_files=trainable
    )
    hashed = tuple(HashedFile(name=path, size=entries[path].size, sha256=entries[path].sha256) for path in model_files)
    manifest = Manifest(
        schema=1, name=name, version=version, sequence=sequence, model_digest=digest_of_files(hashed), files=entries,
        variants=(variant,), base=base, golden=golden,
        lineage=(LineageStep(step="trained", detail=version),), **other,
    )  # fmt: skip
    data = canonical_bytes(manifest)
    return Made(manifest, data, sign(data, key).text if key else None, files)


class Shelf:
    """`Files` of a gateway: what it holds, and how its link is."""

    def __init__(self, *made: Made) -> None:
        self.made = list(made)
        self.is_down = False
        self.cut_every_bytes = 0
        self.n_sent_bytes = 0
        self.damage: Callable[[str, bytes], bytes] = lambda sha256, data: data
        self.n_manifests = 0
        self.on_block: Callable[[], None] = lambda: None

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        await asyncio.sleep(0.001)
        self.n_manifests += 1
        if self.is_down:
            raise ConnectionLost("the link is down")
        for made in reversed(self.made):
            if (made.manifest.name, made.manifest.version) == (name, version):
                return made.data, made.signature
        raise NotFound(f"no {name}:{version}")

    def source(self, wanted: object, bases: object) -> "Shelf":
        return self

    def distrust(self, sha256: str) -> None:
        pass

    async def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.001)
        content = next(
            (data for made in self.made for data in made.files.values() if hashlib.sha256(data).hexdigest() == sha256),
            None,
        )
        if self.is_down:
            raise ConnectionLost("the link is down")
        if content is None:
            raise NotFound(f"no blob {sha256}")
        content = self.damage(sha256, content)
        sent = 0
        for start in range(offset, len(content), 1000):
            block = content[start : start + 1000]
            if self.cut_every_bytes and sent + len(block) > self.cut_every_bytes:
                raise ConnectionLost("the link broke")
            sent += len(block)
            self.n_sent_bytes += len(block)
            self.on_block()
            yield block


class Oracle:
    """A `ModelHost` that opens nothing damaged, or says so; counts what it is told to count."""

    def __init__(self, disk: Disk, world: list[Made]) -> None:
        self.disk, self.world = disk, world
        self.answering: dict[str, ModelVersion] = {}
        self.opened: set[str] = set()
        self.history: list[str] = []
        self.counts: dict[str, Runs] = {}
        self.n_good_a_look = 0
        self.fails_open: dict[str, HybridError] = {}
        self.fails_runs: set[str] = set()
        self.wrong_outputs: set[str] = set()
        self.on_open: Callable[[ModelVersion], None] = lambda version: None

    def look(self, version: ModelVersion) -> Made:
        ratio = getattr(self.disk, "eio_ratio", 0.0)
        if ratio:
            self.disk.eio_ratio = 0.0  # an oracle sees what is there
        try:
            return self._look(version)
        finally:
            if ratio:
                self.disk.eio_ratio = ratio

    def _look(self, version: ModelVersion) -> Made:
        made = next(made for made in self.world if made.digest == version.artifact_digest)
        assert version.folder is not None
        assert version.model_digest == made.manifest.model_digest
        for path, data in made.files.items():
            assert self.disk.is_plain(version.folder / path), path
            assert self.disk.read(version.folder / path) == data, f"{path} of {version.version} was opened damaged"
        return made

    async def open(self, version: ModelVersion) -> None:
        self.look(version)
        self.on_open(version)
        if version.artifact_digest in self.fails_open:
            raise self.fails_open[version.artifact_digest]
        self.opened.add(version.artifact_digest)

    async def run(self, version: ModelVersion, feeds: dict, names: list[str] | None = None) -> dict[str, np.ndarray]:
        made = self.look(version)
        wrong = version.artifact_digest in self.wrong_outputs
        golden = made.manifest.golden
        assert golden is not None
        return {
            name: np.load(io.BytesIO(made.files[golden.outputs[name]])) + (1 if wrong else 0) for name in names or ()
        }

    async def answer(self, version: ModelVersion) -> None:
        if version.artifact_digest in self.fails_open:
            raise self.fails_open[version.artifact_digest]
        self.look(version)
        before = self.answering.get(version.name)
        if before is None or before.artifact_digest != version.artifact_digest:
            self.counts[version.name] = Runs()
            self.history.append(version.version)
        self.answering[version.name] = version

    async def drop(self, name: str, artifact_digest: str = "") -> None:
        if not artifact_digest:
            self.answering.pop(name, None)
            self.history.append("")
        else:
            assert name not in self.answering or self.answering[name].artifact_digest != artifact_digest

    def runs(self, name: str) -> Runs:
        runs = self.counts.setdefault(name, Runs())
        version = self.answering.get(name)
        if version is not None and version.artifact_digest in self.fails_runs:
            runs.n_errors += 1
        elif version is not None:
            runs.n_good += self.n_good_a_look
        return runs

    def version(self, name: str = "net") -> str:
        found = self.answering.get(name)
        return found.version if found else ""


@dataclass
class Box:
    """One life of the agent's installing part on a disk."""

    disk: Disk
    shelf: Shelf
    trust: TrustBundle | None
    data: Path = DATA
    rng: Random = field(default_factory=lambda: Random(1))
    clock_s: float = 1.7e9
    boot: str = "boot"
    look_s: float = 0.5
    settings: InstallSettings = field(default_factory=lambda: InstallSettings(reserve_bytes=0))
    rehearsal: Callable[[Path], None] = lambda folder: None

    def __post_init__(self) -> None:
        self.host = Oracle(self.disk, self.shelf.made)
        self.reports: list[Installed] = []
        self.install = Install(
            Means(
                data=self.data,
                disk=self.disk,
                host=self.host,
                files=self.shelf,
                trust=lambda: self.trust,
                rng=self.rng,
                now_s=lambda: self.clock_s,
                rehearse=self._rehearse,
                report=self._report,
                has_engine=lambda variant: True,
                settings=self.settings,
            ),
            boot=lambda: self.boot,
        )

    async def _rehearse(self, folder: Path, manifest: Manifest, variant: Variant) -> None:
        self.rehearsal(folder)

    async def _report(self, installed: Installed) -> None:
        self.reports.append(installed)

    @property
    def phases(self) -> list[str]:
        return [f"{report.phase} {report.code}".strip() for report in self.reports]

    def told(self, name: str = "net") -> Installed:
        found = [one for one in self.install.installed() if one.name == name]
        return found[0] if found else Installed(name=name, version="", artifact_digest="", phase="removed")

    async def serve(self, *assigned: Assigned, until: Callable[[], bool], within_s: float = 3000.0) -> bool:
        """Run until something is so, or time is over; then end in good order."""
        task = asyncio.ensure_future(self.install.run())
        try:
            await self.install.begun.wait()
            if assigned:
                self.install.assign(assigned)
            return await self.wait(until, within_s, task)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.install.stop()

    async def wait(self, until: Callable[[], bool], within_s: float, task: asyncio.Future | None = None) -> bool:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while not until():
            if task is not None and task.done():
                task.result()
            if loop.time() > deadline_s:
                return False
            await asyncio.sleep(self.look_s)
        return True


def live(
    image: Image,
    shelf: Shelf,
    trust: TrustBundle | None,
    *assigned: Assigned,
    until: Callable[[Box], bool],
    seed: object = 0,
    cut_after: int | None = None,
    within_s: float = 3000.0,
    prepare: Callable[[Box], None] = lambda box: None,
    stops: bool = True,
) -> Box:
    """One life of a box on virtual time; with `cut_after` it ends at that operation of its disk."""
    loop = VirtualLoop(seed)
    node = Node("box", 1000.0)
    disk = SimulatedDisk(image, Random(f"disk {seed}"))
    disk.cut_after = cut_after
    disk.on_cut = lambda: loop.kill(node)
    boxes: list[Box] = []

    async def program() -> None:
        box = Box(disk, shelf, trust)
        prepare(box)
        boxes.append(box)
        if stops:
            await box.serve(*assigned, until=lambda: until(box), within_s=within_s)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(box.install.run())
                await box.install.begun.wait()
                box.install.assign(assigned)
                await box.wait(lambda: until(box), within_s)
                loop.kill(node)

    async def harness() -> None:
        task = loop.start(node, program())
        while not task.done() and not node.is_dead:  # noqa: ASYNC110 (a dead process tells nobody)
            await asyncio.sleep(1.0)
        if task.done():
            task.result()

    loop.run(harness())
    assert not loop.failures, loop.failures
    return boxes[0]


TRIAL = Trial(n_good=3, most_s=50.0)


def committed(version: str) -> Callable[[Box], bool]:
    def look(box: Box) -> bool:
        told = box.told()
        return told.phase == "committed" and told.version == version

    return look


def failing(code: str = "engine_failed") -> HybridError:
    return EngineFailed(f"made to fail: {code}")
