"""Profiles, calibrations and reports: found after a version was made, kept beside it, outside its signature."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from hybrid.artifact.durable import write_atomically
from hybrid.artifact.names import ATTACHMENTS_NAME, check_digest, check_word
from hybrid.artifact.plain_file import read_plain
from hybrid.artifact.signature import MAX_SIGNATURE_BYTES, Signature
from hybrid.errors import BadMessage, CorruptContent, HybridError, TooLarge

Kind = Literal["profile", "calibration", "report"]
MAX_ATTACHMENT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One attachment.

    Attributes:
        kind: what it is.
        model_digest: the model that it is about.
        variant: the variant that it is about.
        content: the exact JSON bytes; `signature`, where there is one, is over these.
        signature: who vouches for it.
    """

    kind: Kind
    model_digest: str
    variant: str
    content: bytes
    signature: Signature | None = None

    @property
    def relative_path(self) -> str:
        """Where it lies below the artifact's folder."""
        return f"{ATTACHMENTS_NAME}/{self.kind}/{self.variant}/{hashlib.sha256(self.content).hexdigest()}.json"


class _Head(msgspec.Struct, frozen=True):
    kind: Kind
    model_digest: str
    variant: str


def attachment_of(content: bytes, signature: Signature | None = None) -> Attachment:
    """The attachment that these bytes say.

    Raises:
        BadMessage: no JSON object with a known `kind`, `model_digest` and `variant`.
        TooLarge: more than 16 MiB.
    """
    if len(content) > MAX_ATTACHMENT_BYTES:
        raise TooLarge(f"an attachment of {len(content)} bytes is refused: {MAX_ATTACHMENT_BYTES} are allowed")
    try:
        head = msgspec.json.decode(content, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the attachment does not parse ({exc}); its kind is one of {get_args(Kind)}") from exc
    check_digest(head.model_digest)
    check_word(head.variant, "variant id")
    return Attachment(
        kind=head.kind, model_digest=head.model_digest, variant=head.variant, content=content, signature=signature
    )


def attach(folder: Path, attachment: Attachment) -> Path:
    """Write an attachment into an artifact's folder; the same content again changes nothing.

    Raises:
        DiskFull, StorageError: nothing is half-written.
    """
    path = folder / attachment.relative_path
    if attachment.signature is not None:
        write_atomically(signature_path(path), attachment.signature.file_bytes)
    write_atomically(path, attachment.content)
    return path


def attachments_in(
    folder: Path, model_digest: str, kind: Kind, *, broken: Callable[[Path, Exception], None] = lambda _path, _exc: None
) -> tuple[Attachment, ...]:
    """The attachments of one kind that are about a model, in the order of their names.

    Args:
        folder: of an artifact, or another below which attachments lie.
        model_digest: of the model.
        kind: of the attachments.
        broken: told of each file that is none, whose bytes are not what its name says, or that lies where another
            belongs; it costs only itself.
    """
    found = []
    for path in sorted((folder / ATTACHMENTS_NAME / kind).glob("*/*.json")):
        try:
            attachment = _read(folder, path)
        except (HybridError, OSError) as exc:
            broken(path, exc)
            continue
        if attachment.model_digest == model_digest:
            found.append(attachment)
    return tuple(found)


def read_attachment(path: Path) -> Attachment:
    """The attachment of a file, with the signature beside it.

    Raises:
        BadMessage, TooLarge: it is none.
        OSError: it cannot be read.
    """
    try:
        signature = Signature.of_file_bytes(read_plain(signature_path(path), MAX_SIGNATURE_BYTES))
    except FileNotFoundError:
        signature = None
    return attachment_of(read_plain(path, MAX_ATTACHMENT_BYTES), signature)


def signature_path(path: Path) -> Path:
    """Where the signature of an attachment's file lies."""
    return path.with_name(f"{path.name}.sig")


def _read(folder: Path, path: Path) -> Attachment:
    attachment = read_attachment(path)
    if folder / attachment.relative_path != path:
        raise CorruptContent(f"{path}: its bytes are not what its place and name say; remove it", path=str(path))
    return attachment
