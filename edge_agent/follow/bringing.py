"""A bundle comes onto the box: believed for its signatures alone, unpacked beside the slots, and noted as wanted."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.disk import Disk, write_durably
from edge_agent.follow.desired import DesiredFile
from edge_agent.follow.imports import TRUST, Imports
from edge_agent.install.preparing import past_of
from edge_agent.install.records import Slots
from edge_agent.install.rules import Papers, TrustKeys, permit
from edge_agent.install.shelf import Shelf
from edge_agent.trust.identity import BoxIdentity
from hybrid.artifact.bundle import trust_in
from hybrid.artifact.manifest import MAX_MANIFEST_BYTES, artifact_digest, parse
from hybrid.artifact.names import MANIFEST_NAME, SIGNATURE_NAME
from hybrid.artifact.signature import MAX_SIGNATURE_BYTES, Signature
from hybrid.artifact.stored_zip import unpack
from hybrid.errors import DiskFull, ModelInvalid, NotFound
from hybrid.fleet.messages import Assigned
from hybrid.fleet.trust_bundle import SCHEMA, TrustBundle, opened

RESERVE_BYTES: Final = 64 << 20
EXPORT_AGAIN: Final = "Export it again and copy it whole: hybrid models export NAME:VERSION --out FILE.hybrid."


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What a bundle brought.

    Attributes:
        assigned: the version, wanted from now on.
        signed_by: id of the key that vouches for it; empty on a box without a root.
        has_root: whether signatures were asked for.
        has_new_trust: a newer trust bundle came along.
        is_here: the version answers already.
    """

    assigned: Assigned
    signed_by: str
    has_root: bool
    has_new_trust: bool
    is_here: bool


def bring(file: Path, data: Path, disk: Disk, identity: BoxIdentity, now_s: Callable[[], float]) -> Brought:
    """Check a bundle and lay it down for the agent. Blocks.

    Raises:
        ModelInvalid, BadMessage: no sound bundle.
        Forbidden: signed by nobody whom this box believes, or a trust bundle of another root.
        VersionReplayed: older than what this box has had.
        CorruptContent: its files are not what was signed.
        DiskFull, StorageError: nothing is left behind.
    """
    papers = _papers(file)
    name = parse(papers.manifest).name
    envelope = trust_in(file)
    trust, is_newer = _trust(identity, envelope)
    shelf = Shelf(disk, data, now_s)
    slots = shelf.look(name)
    past = past_of(shelf, slots, trust)
    permitted = permit(papers, papers.digest, name, past=past, trust=trust, rollback=None)
    imports = Imports(data, disk)
    assigned = Assigned(name=name, version=permitted.manifest.version, artifact_digest=papers.digest)
    wanted_bytes, free_bytes = permitted.manifest.size_bytes, disk.free_bytes(imports.folder)
    is_here = slots.answering is not None and slots.answering.artifact_digest == papers.digest
    if not is_here:
        if wanted_bytes + RESERVE_BYTES > free_bytes:
            raise DiskFull(
                f"{imports.folder}: {wanted_bytes} bytes are to come, {free_bytes} are free; make room and try again",
                path=str(imports.folder),
                wanted_bytes=wanted_bytes,
            )
        disk.make_folder(imports.folder)
        unpack(file, imports.folder)
    if envelope is not None and is_newer:
        write_durably(disk, imports.folder / TRUST, envelope)
    desired = DesiredFile(data, disk, now_s).load()
    imports.add(assigned, desired.generation if desired is not None else "")
    return Brought(
        assigned=assigned,
        signed_by=permitted.signed_by,
        has_root=trust is not None,
        has_new_trust=is_newer,
        is_here=is_here,
    )


def state_of(data: Path, disk: Disk, name: str, now_s: Callable[[], float]) -> Slots:
    """How the installation of a model stands, as its record says."""
    return Shelf(disk, data, now_s).look(name)


def _trust(identity: BoxIdentity, envelope: bytes | None) -> tuple[TrustKeys | None, bool]:
    """Whom this box believes once it has taken the bundle's keys, and whether those are newer than its own."""
    enrolment = identity.enrolment
    if enrolment is None and identity.had_root:
        return TrustBundle(schema=SCHEMA, root_key="0" * 64, sequence=-1), False
    if enrolment is None or not enrolment.root_sha256:
        return None, False
    had = identity.trust or TrustBundle(schema=SCHEMA, root_key="0" * 64, sequence=-1)
    if envelope is None:
        return had, False
    brought = opened(envelope, bytes.fromhex(enrolment.root_sha256))
    return (brought, True) if brought.sequence > had.sequence else (had, False)


def _papers(file: Path) -> Papers:
    """Manifest and signature of a bundle, before anything else of it is looked at."""
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = _member(file, archive, MANIFEST_NAME, MAX_MANIFEST_BYTES)
            signature = None
            if SIGNATURE_NAME in archive.namelist():
                signature = Signature.of_file_bytes(_member(file, archive, SIGNATURE_NAME, MAX_SIGNATURE_BYTES))
    except FileNotFoundError as exc:
        raise NotFound(f"{file}: no such file; make one with `hybrid models export`") from exc
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as exc:
        raise ModelInvalid(f"{file}: no sound bundle ({exc})", path=str(file), advice=EXPORT_AGAIN) from exc
    assert artifact_digest(manifest)
    return Papers(manifest=manifest, signature=signature)


def _member(file: Path, archive: zipfile.ZipFile, name: str, most_bytes: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError as exc:
        raise ModelInvalid(f"{file}: no {name} in it", path=str(file), advice=EXPORT_AGAIN) from exc
    if info.file_size > most_bytes or info.compress_type != zipfile.ZIP_STORED:
        raise ModelInvalid(f"{file}: its {name} is too large or compressed", path=str(file))
    return archive.read(info)
