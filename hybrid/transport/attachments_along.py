"""What goes along when a version is pushed or pulled: the calibrations and reports that lie beside it."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from hybrid.artifact.attachments import Attachment, Kind, attach, attachments_in
from hybrid.artifact.folder import Artifact
from hybrid.errors import HybridError, LinkError, NotFound
from hybrid.transport.attachment_calls import FIND_PATH, PUT_PATH, AttachmentText, FindCall, attachments_of
from hybrid.transport.registry_client import RegistryClient

ALONG: Final[tuple[Kind, ...]] = ("calibration", "report")
"""Profiles stay: each machine brings its own, for itself."""


@dataclass(slots=True)
class Brought:
    """What a push did with the attachments that it found.

    Attributes:
        n: how many the gateway has now.
        unsigned: calibrations that nobody vouches for; they would permit nothing, and stay.
        refused: files that are none, and what the gateway said of those that it did not take.
    """

    n: int = 0
    unsigned: int = 0
    refused: list[str] = field(default_factory=list)


async def bring(client: RegistryClient, model_digest: str, folders: Iterable[Path]) -> Brought:
    """Bring the attachments of a model that the gateway holds, the same again changing nothing.

    Args:
        client: the gateway, with a publisher's token.
        model_digest: of the model.
        folders: artifacts' folders, and others below which attachments lie.

    Raises:
        LinkError: the gateway went away; push again to go on.
    """
    brought = Brought()

    def found() -> list[Attachment]:
        def broken(path: Path, error: Exception) -> None:
            brought.refused.append(f"{path.name[:16]}: {error}")

        return [
            attachment
            for folder in folders
            for kind in ALONG
            for attachment in attachments_in(folder, model_digest, kind, broken=broken)
        ]

    for attachment in dict.fromkeys(await asyncio.to_thread(found)):
        if attachment.kind == "calibration" and attachment.signature is None:
            brought.unsigned += 1
            continue
        try:
            await client.post(PUT_PATH, msgspec.json.encode(AttachmentText.of(attachment)))
        except LinkError:
            raise
        except HybridError as exc:
            brought.refused.append(f"{attachment.kind} {attachment.relative_path[-69:-53]}: {exc}")
        else:
            brought.n += 1
    return brought


async def fetch(client: RegistryClient, artifact: Artifact) -> tuple[Path, ...]:
    """Write what the gateway has along with a version into its folder; where it all lies.

    An older gateway has none. Whom to trust is found out where they are used.

    Raises:
        LinkError, DiskFull, StorageError: the version itself is there whole; pull again to go on.
    """
    found: list[Attachment] = []
    for variant in artifact.manifest.variants:
        for kind in ALONG:
            found += await _found(client, artifact.manifest.model_digest, kind, variant.id)
    return tuple([await asyncio.to_thread(attach, artifact.folder, attachment) for attachment in found])


async def _found(client: RegistryClient, model_digest: str, kind: Kind, variant: str) -> Sequence[Attachment]:
    call = FindCall(model_digest=model_digest, kind=kind, variant=variant)
    try:
        answer = msgspec.json.decode(await client.post(FIND_PATH, msgspec.json.encode(call)))
    except NotFound:
        return ()
    about = (model_digest, kind, variant)
    return [a for a in attachments_of(answer, client.url) if (a.model_digest, a.kind, a.variant) == about]
