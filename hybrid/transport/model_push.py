"""Push a model to a gateway: what is missing, from where it stands, then the version; goes on after any break."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from hybrid.artifact.folder import Artifact
from hybrid.artifact.manifest import FileEntry, artifact_digest, canonical_bytes
from hybrid.artifact.names import check_word
from hybrid.artifact.opening import open_any
from hybrid.artifact.signature import key_id, public_key_of, sign
from hybrid.errors import BadMessage, Conflict, CorruptContent, LinkError, ModelInvalid, NotFound, Overloaded
from hybrid.transport.patience import CONTACT_S, Meter, Patience, patiently
from hybrid.transport.registry_client import RegistryClient, VersionInfo

PIECE_BYTES: Final = 4 << 20
"""Bytes of one upload request: the most that a break costs."""
_MAX_RACES: Final = 8

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """How a push ended.

    Attributes:
        version: what the gateway holds now.
        is_new: False when it held that before.
        sent_bytes: bytes of files that this push sent.
        folder: the artifact's own, beside whose files attachments may lie; None for a bare model.
    """

    version: VersionInfo
    is_new: bool
    sent_bytes: int
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """What a push may do.

    Attributes:
        version: None takes one more than the highest whole number.
        dress: adds to the artifact of a bare model (golden inputs) before it goes; called in a thread.
        patience_s: how long a link may be gone, or another pusher silent, before the push gives up.
        piece_bytes: bytes of one request.
        private_key: signs the manifest, raw Ed25519; None leaves the signature that an artifact brings.
    """

    version: str | None = None
    private_key: bytes | None = None
    dress: Callable[[Artifact], Artifact] | None = None
    patience_s: float = 30.0
    piece_bytes: int = PIECE_BYTES


async def push(
    client: RegistryClient,
    path: Path,
    name: str,
    options: PushOptions,
    *,
    begin: Callable[[int], Advance] = lambda total_bytes: lambda n_bytes: None,  # noqa: ARG005
) -> Pushed:
    """Bring a model file, artifact folder or artifact zip to a gateway as a version of `name`.

    Args:
        client: the gateway.
        path: what to push.
        name: the model's name there.
        options: version and patience.
        begin: told how many bytes there are, gives what is told of each step forward.

    Raises:
        ModelInvalid: no model; names the file.
        Conflict: the version exists with other content.
        DiskFull: the gateway has no room; it keeps nothing of what did not fit.
        LinkError: the gateway was gone for longer than the patience; push again to go on.
    """
    check_word(name)
    if options.version is not None:
        check_word(options.version, "version")
    artifact, is_bare = await asyncio.to_thread(open_any, path, name, options.version or "1")
    if artifact.manifest.name != name:
        raise BadMessage(f"{path} is an artifact of {artifact.manifest.name!r}, not of {name!r}; use its own name")
    if not is_bare and options.version not in (None, artifact.manifest.version):
        raise BadMessage(f"{path} is version {artifact.manifest.version!r} and stays it; leave --version away")
    if is_bare and options.dress is not None:
        artifact = await asyncio.to_thread(options.dress, artifact)
    sending = _Sending(client, options)
    advance: Advance | None = None
    for _ in range(_MAX_RACES):
        versions = await sending.versions(name)
        if is_bare:
            there = _same_model(versions, artifact.manifest.model_digest, options.version)
            if there is not None and _is_as_wanted(there, artifact, options):
                return Pushed(version=there, is_new=False, sent_bytes=sending.sent_bytes)
            artifact = _as_version(artifact, versions, options.version)
        else:
            _check_free(versions, artifact)
        if advance is None:
            advance = begin(artifact.manifest.size_bytes)
            await sending.files(artifact, advance)
        if options.private_key is not None:
            artifact = artifact.signed(sign(artifact.manifest_bytes, options.private_key))
        try:
            version, is_new = await sending.commit(artifact)
        except Conflict:
            # Somebody committed meanwhile. The next round finds the same model there, takes the next free number,
            # or says what stands in the way.
            if not is_bare:
                raise
            continue
        folder = None if is_bare else artifact.folder
        return Pushed(version=version, is_new=is_new, sent_bytes=sending.sent_bytes, folder=folder)
    raise Conflict(f"{name}: others kept committing versions; push again")


class _Sending:
    """One push: counts what it sent, and waits out what passes."""

    def __init__(self, client: RegistryClient, options: PushOptions) -> None:
        self._client, self._options = client, options
        self.sent_bytes = 0

    async def files(self, artifact: Artifact, advance: Advance) -> None:
        """Upload each file that is not there."""
        for name, entry in artifact.manifest.files.items():
            await self._file(artifact.path_of(name), entry, Meter(advance))

    async def commit(self, artifact: Artifact) -> tuple[VersionInfo, bool]:
        """Commit; what the gateway lost meanwhile is sent again."""
        try:
            return await self._commit(artifact)
        except NotFound as exc:
            missing = set(exc.fields.get("missing", ()))
            if not missing:
                raise
        for name, entry in artifact.manifest.files.items():
            if entry.sha256 in missing:
                await self._file(artifact.path_of(name), entry, Meter(_ignore))
        return await self._commit(artifact)

    async def versions(self, name: str) -> tuple[VersionInfo, ...]:
        """What the gateway has of that name; nothing is fine."""
        try:
            return await patiently(lambda: self._client.versions(name), min(CONTACT_S, self._options.patience_s))
        except NotFound:
            return ()

    async def _commit(self, artifact: Artifact) -> tuple[VersionInfo, bool]:
        name, data, signature = artifact.manifest.name, artifact.manifest_bytes, artifact.signature
        return await patiently(lambda: self._client.commit(name, data, signature), self._options.patience_s)

    async def _file(self, path: Path, entry: FileEntry, meter: Meter) -> None:
        patience = Patience(self._options.patience_s)
        was_corrupt = False
        while True:
            try:
                state = await self._client.blob_state(entry.sha256)
                if meter.reach(state.offset):
                    patience.moved()
                if state.is_complete:
                    return
                await self._pieces(path, entry, state.offset, meter, patience)
                return
            except CorruptContent as exc:
                if was_corrupt:
                    raise CorruptContent(
                        f"{path}: what arrived is not what was hashed; the file changed, or the way damages it",
                        path=str(path),
                    ) from exc
                was_corrupt = True
            except (LinkError, Overloaded, Conflict) as exc:
                await patience.wait(exc)

    async def _pieces(self, path: Path, entry: FileEntry, offset: int, meter: Meter, patience: Patience) -> None:
        """Send piece after piece from `offset` on, until the gateway says that it has all."""
        is_complete = False
        while not is_complete:
            piece = await asyncio.to_thread(
                _read_piece, path, offset, min(self._options.piece_bytes, entry.size - offset)
            )
            self.sent_bytes += len(piece)
            state = await self._client.send_piece(entry.sha256, piece, offset=offset, total_bytes=entry.size)
            offset, is_complete = state.offset, state.is_complete
            meter.reach(offset)
            patience.moved()


def _ignore(n_bytes: int) -> None:
    """Tell nobody."""


def _read_piece(path: Path, offset: int, n_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(n_bytes)
    except OSError as exc:
        raise ModelInvalid(f"{path}: {exc.strerror or exc}; it was there when the push began", path=str(path)) from exc
    if len(piece) != n_bytes:
        raise ModelInvalid(f"{path}: became shorter while it was pushed; push again", path=str(path))
    return piece


def _same_model(versions: Sequence[VersionInfo], model_digest: str, wanted: str | None) -> VersionInfo | None:
    """The version that already is this bare model: the wanted one, or the newest.

    Raises:
        Conflict: the wanted version is another model.
    """
    if wanted is None:
        return versions[-1] if versions and versions[-1].model_digest == model_digest else None
    there = next((info for info in versions if info.version == wanted), None)
    if there is not None and there.model_digest != model_digest:
        raise Conflict(
            f"{there.name}:{there.version} is another model ({there.model_digest[:16]}…); versions never change: "
            "leave --version away for the next free number",
        )
    return there


def _is_as_wanted(version: VersionInfo, artifact: Artifact, options: PushOptions) -> bool:
    """Whether a version with this model also has the signature and what it is to be dressed with."""
    if options.private_key is not None and version.signed_by != key_id(public_key_of(options.private_key)):
        return False
    manifest = msgspec.structs.replace(artifact.manifest, version=version.version, sequence=version.sequence)
    return options.dress is None or artifact_digest(canonical_bytes(manifest)) == version.artifact_digest


def _as_version(artifact: Artifact, versions: Sequence[VersionInfo], wanted: str | None) -> Artifact:
    """The bare model's artifact under the wanted version or the next number, with the next sequence."""
    numbers = [int(info.version) for info in versions if info.version.isdigit()]
    manifest = msgspec.structs.replace(
        artifact.manifest,
        version=wanted or str(max(numbers, default=0) + 1),
        sequence=max((info.sequence for info in versions), default=0) + 1,
    )
    return replace(artifact, manifest=manifest, manifest_bytes=canonical_bytes(manifest))


def _check_free(versions: Sequence[VersionInfo], artifact: Artifact) -> None:
    """Say before the upload what the commit would say.

    Raises:
        Conflict: the version exists with other content.
    """
    manifest = artifact.manifest
    for info in versions:
        if info.version == manifest.version and info.artifact_digest != artifact.digest:
            raise Conflict(
                f"{info.name}:{info.version} exists with other content (artifact {info.artifact_digest[:16]}…); "
                "versions never change: make the artifact anew with another version"
            )
