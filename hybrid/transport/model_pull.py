"""Pull a model version from a gateway: cached, resumed after a break, verified, and there whole or not at all."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from hybrid.artifact.durable import storing, try_lock
from hybrid.artifact.folder import Artifact, open_folder, place_folder, write_papers
from hybrid.artifact.manifest import Manifest, artifact_digest, parse
from hybrid.errors import Conflict, CorruptContent, LinkError, ModelUnavailable, RefusedError
from hybrid.transport.blob_download import Download, Progress
from hybrid.transport.chunk_download import Base, ChunkedFiles, Traffic
from hybrid.transport.chunk_notes import FolderNotes
from hybrid.transport.patience import CONTACT_S, patiently
from hybrid.transport.pulled_names import artifact_folder, cached_model, cached_versions, open_whole, remember
from hybrid.transport.registry_client import RegistryClient, Timeouts, VersionInfo
from hybrid.transport.trust import Trust

PATIENCE_S: Final = 30.0
_MAX_BASES: Final = 4
_LOCK_PAUSE_S: Final = 0.1
_OPENING_PATIENCE_S: Final = 10.0
_EAGER: Final = Timeouts(connect_s=2.0, answer_s=5.0)
"""Where the cache can answer: a gateway out of reach must not hold up the start of a program."""

Begin = Callable[[int], Callable[[int], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Versions on this machine whose bytes need not come again, and what counts those that came."""

    bases: Sequence[Base] = ()
    traffic: Traffic = field(default_factory=Traffic)


def _silent(total_bytes: int) -> Callable[[int], None]:  # noqa: ARG001 (a Begin that shows nothing)
    return _ignore


def _ignore(n_bytes: int) -> None:
    """Tell nobody."""


async def pull(
    client: RegistryClient,
    name: str,
    version: str | None,
    cache: Path,
    *,
    patience_s: float = PATIENCE_S,
    begin: Begin = _silent,
    traffic: Traffic | None = None,
) -> Artifact:
    """The artifact of a version, downloaded into the cache unless it is there.

    Args:
        client: the gateway.
        name: the model's name.
        version: None is the newest that the gateway has.
        cache: folder for artifacts, parts and the names under which this gateway knew them.
        patience_s: how long the link may be gone before the pull gives up; the parts stay for the next one.
        begin: told how many bytes the artifact has, gives what is told of each step forward.
        traffic: counts what came over the link, and what older versions in the cache had already.

    Raises:
        NotFound: the gateway has no such version.
        LinkError: the gateway was away for longer than the patience.
        CorruptContent: what came twice was not what the manifest says.
        DiskFull, StorageError: the cache has no room; what is cached stays whole.
    """
    info = await patiently(lambda: client.version(name, version), min(CONTACT_S, patience_s))
    destination = artifact_folder(cache, info.artifact_digest)
    artifact = await asyncio.to_thread(open_whole, destination)
    if artifact is None:
        parts = cache / "parts"
        bases = await asyncio.to_thread(cached_bases, name, cache)
        artifact = await pull_to(
            client,
            info,
            destination,
            parts,
            patience_s=patience_s,
            begin=begin,
            replace_damaged=True,
            reuse=Reuse(bases=bases, traffic=traffic or Traffic()),
        )
    await asyncio.to_thread(remember, cache, client.url, info, is_newest=version is None)
    return artifact


async def pull_to(
    client: RegistryClient,
    info: VersionInfo,
    destination: Path,
    parts: Path,
    *,
    patience_s: float = PATIENCE_S,
    begin: Begin = _silent,
    replace_damaged: bool = False,
    reuse: Reuse | None = None,
) -> Artifact:
    """Download one version into a folder that appears whole or not at all; raises as `pull`.

    Another process that downloads the same version into the same parts is waited for. `replace_damaged` is for a
    folder of the library's own, where nothing else can lie. What `reuse` names is not downloaded again.

    Raises:
        Conflict: the folder is there with other content.
    """
    locked = await _exclusive(parts / f"{info.artifact_digest}.lock")
    try:
        artifact = await asyncio.to_thread(_already, info, destination)
        if artifact is not None:
            return artifact
        await asyncio.to_thread(_make_way, destination, replace_damaged=replace_damaged)
        data, signature = await patiently(lambda: client.manifest(info.name, info.version), patience_s)
        manifest = _checked(client.url, info, data)
        progress = Progress(advance=begin(manifest.size_bytes), patience_s=patience_s)
        reuse = reuse or Reuse()
        files = ChunkedFiles(client, manifest.files, reuse.bases, notes=FolderNotes(parts), traffic=reuse.traffic)
        downloads = {entry.sha256: Download(client, files, entry, parts, progress) for entry in manifest.files.values()}
        for download in downloads.values():
            await download.run()
        artifact = Artifact(folder=destination, manifest=manifest, manifest_bytes=data, signature=signature)
        return await asyncio.to_thread(_assemble, artifact, {key: item.path for key, item in downloads.items()})
    finally:
        os.close(locked)


def cached_bases(name: str, cache: Path) -> tuple[Base, ...]:
    """What the cache holds of a model: the newest versions."""
    versions = cached_versions(name, cache)[:_MAX_BASES]
    return tuple(Base(folder=artifact.folder, files=artifact.manifest.files) for artifact in versions)


def pull_model(
    url: str, token: str | None, name: str, version: str | None, cache: Path, *, trust: Trust | None = None
) -> Path:
    """The model file of `name[:version]`: from the cache, else from the gateway.

    A version never changes, so one that is cached is not asked for. Without a version the gateway is asked for its
    newest; where it cannot say, the newest that it named before serves. Blocks; runs its own event loop in a thread of
    its own, so that it may be called from anywhere.

    Raises:
        ModelUnavailable: neither cached nor to be had; the message says why.
        CorruptContent, DiskFull, StorageError, ProtocolError: as `pull`.
    """
    known = cached_model(name, version, cache, url=url)
    if known is not None and version is not None:
        return known

    async def work() -> Artifact:
        async with RegistryClient(url, token, trust=trust, timeouts=_EAGER if known else None) as client:
            return await pull(client, name, version, cache, patience_s=0.0 if known else _OPENING_PATIENCE_S)

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="hybrid-pull") as pool:
            return pool.submit(asyncio.run, work()).result().model_path
    except (LinkError, RefusedError) as exc:
        if known is not None:
            return known
        raise ModelUnavailable(f"{name}: not in the cache, and not to be had from {url}: {exc}", url=url) from exc


async def _exclusive(path: Path) -> int:
    """An open file that this pull alone has locked; whoever holds it now gives up by its own patience."""
    handle = await asyncio.to_thread(_opened, path)
    try:
        while not try_lock(handle):  # noqa: ASYNC110 (another process holds it, no event of ours tells)
            await asyncio.sleep(_LOCK_PAUSE_S)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _opened(path: Path) -> int:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _already(info: VersionInfo, destination: Path) -> Artifact | None:
    """The version if it lies whole at its destination."""
    artifact = open_whole(destination)
    return artifact if artifact is not None and artifact.digest == info.artifact_digest else None


def _make_way(destination: Path, *, replace_damaged: bool) -> None:
    if replace_damaged:
        shutil.rmtree(destination, ignore_errors=True)
    elif destination.exists() and any(destination.iterdir()):
        raise Conflict(f"{destination}: there is something else already; name another folder, or move it away")


def _checked(url: str, info: VersionInfo, data: bytes) -> Manifest:
    manifest = parse(data)
    if artifact_digest(data) != info.artifact_digest or (manifest.name, manifest.version) != (info.name, info.version):
        raise CorruptContent(f"{url}: the manifest of {info.name}:{info.version} is not the announced one")
    return manifest


def _assemble(artifact: Artifact, parts: dict[str, Path]) -> Artifact:
    """Move the finished parts under their names, sync, and rename the folder into place."""
    destination = artifact.folder
    with storing(destination, artifact.manifest.size_bytes):
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".tmp-"))
        try:
            moved: dict[str, Path] = {}
            for name, entry in artifact.manifest.files.items():
                target = staging / PurePosixPath(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                if entry.sha256 in moved:
                    shutil.copyfile(moved[entry.sha256], target)
                else:
                    parts[entry.sha256].replace(target)
                    moved[entry.sha256] = target
                with target.open("rb+") as file:
                    os.fsync(file.fileno())
                target.chmod(0o644)
            write_papers(artifact, staging)
            place_folder(staging, destination)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return open_folder(destination)
