"""Attachments that the gateway keeps beside its models: profiles of devices, calibrations of publishers, each bounded.

    DATA/attachments/DIGEST/KIND/VARIANT/SUBJECT/NAME.json      (and .sig beside it)

The subject is a shape key's id for calibrations and reports, `SHAPEID.SETTINGID` for profiles. The name of a profile is
the token that brought it, so that a device has one word for each subject; that of all else is its SHA-256.

Design: any device may bring profiles, so no device may crowd out the others: a token has few subjects of a model (its
own oldest one leaves), a subject few profiles. All of them together have a bound as well; beyond it the oldest profiles
leave, which devices measure again, and never what a publisher brought. What is kept are the exact bytes, for a
signature is over these; what is asked for is read newest first, and no more of it than an answer holds.
"""

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from hybrid.artifact.attachments import Attachment, Kind, attachment_of
from hybrid.artifact.durable import storing, write_atomically
from hybrid.artifact.names import check_digest, check_word
from hybrid.artifact.signature import Signature
from hybrid.calibration.record import parse_calibration
from hybrid.errors import BadMessage, DiskFull, HybridError, TooLarge
from hybrid.graph.shape_key import ShapeKey
from hybrid.profile.record import parse_profile

MAX_REPORT_BYTES: Final = 1 << 20
MAX_SUBJECTS_OF_TOKEN: Final = 8
"""Subjects of one model about which one token may have a profile here."""

MAX_SUBJECTS: Final = 64
MAX_PROFILES: Final = 8
MAX_OTHERS: Final = 16
"""Of one subject: profiles, and calibrations or reports."""

MAX_KEPT_BYTES: Final = 1 << 30
"""Of all attachments of all models."""

_ROOM_RATIO: Final = 0.9
"""Down to which part of the bound profiles leave when it is reached: counting all files is not for every one."""

_ALL: Final = "all"
_log = logging.getLogger("hybrid.gateway")


class AttachmentStore:
    """Attachments below one folder; every method may be called from any thread.

    Args:
        folder: the gateway's.
        max_kept_bytes: of all attachments together.
    """

    def __init__(self, folder: Path, *, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._folder = folder / "attachments"
        self._max_kept_bytes = max_kept_bytes
        self._most_bytes: int | None = None  # what is kept, or more: what left since it was counted is still in it
        self._writing = threading.Lock()

    def put(self, attachment: Attachment, token_id: str) -> str:
        """Keep an attachment; its SHA-256. The same again changes nothing but its age.

        Args:
            attachment: checked for its form here; whom to trust is the devices' business.
            token_id: who brings it.

        Raises:
            BadMessage, TooLarge: no sound attachment of its kind.
            DiskFull, StorageError: nothing was kept.
        """
        subject = _subject(attachment)
        sha256 = hashlib.sha256(attachment.content).hexdigest()
        is_profile = attachment.kind == "profile"
        folder = self._place(attachment.model_digest, attachment.kind, attachment.variant) / subject
        path = folder / f"{token_id if is_profile else sha256}.json"
        with self._writing, storing(path, len(attachment.content)):
            self._make_room(attachment, path)
            if is_profile:  # the name stays and the content changes: no moment has one's signature beside another's
                _vouched(path).unlink(missing_ok=True)
                write_atomically(path, attachment.content)
            if attachment.signature is not None:
                write_atomically(_vouched(path), attachment.signature.file_bytes)
            if not is_profile:
                write_atomically(path, attachment.content)
            if is_profile:
                # Over all variants: a device may name any word, and must not fill the disk with it.
                _keep_newest(folder.parent.parent.glob(f"*/*/{path.name}"), MAX_SUBJECTS_OF_TOKEN)
            _keep_newest(folder.glob("*.json"), MAX_PROFILES if is_profile else MAX_OTHERS)
            _keep_newest_folders(folder.parent, MAX_SUBJECTS)
        _log.info("attachment.kept kind=%s model=%s by=%s", attachment.kind, attachment.model_digest[:16], token_id)
        return sha256

    def find(
        self, model_digest: str, kind: Kind, variant: str, subject: str = "", *, most_bytes: int = MAX_KEPT_BYTES
    ) -> tuple[Attachment, ...]:
        """What is kept, the newest first; about one subject, or about all with an empty one.

        Args:
            most_bytes: of contents together; the first that does not fit ends the answer, and no more is read.
        """
        folder = self._place(model_digest, kind, variant)
        if subject:
            _check_subject(subject)
        found = []
        for path in sorted(folder.glob(f"{subject or '*'}/*.json"), key=_age_s, reverse=True):
            try:
                most_bytes -= path.stat().st_size
                if most_bytes < 0:
                    break
                vouched = _vouched(path)
                signature = Signature.of_file_bytes(vouched.read_bytes()) if vouched.exists() else None
                attachment = attachment_of(path.read_bytes(), signature)
            except (HybridError, OSError) as exc:
                _log.warning("attachment.unreadable path=%s error=%s", path, exc)
                continue
            found.append(attachment)
        return tuple(found)

    def _make_room(self, attachment: Attachment, path: Path) -> None:
        """Let the oldest profiles leave where all attachments together would pass their bound.

        Raises:
            DiskFull: they would pass it all the same; what publishers brought stays.
        """
        n_bytes = len(attachment.content)
        if self._most_bytes is None or self._most_bytes + n_bytes > self._max_kept_bytes:
            kept = {file: file.stat().st_size for file in self._folder.glob("*/*/*/*/*.json")}
            total_bytes = sum(kept.values())
            room_bytes = int(_ROOM_RATIO * self._max_kept_bytes)
            if total_bytes + n_bytes > self._max_kept_bytes:
                for old in sorted((file for file in kept if _kind_of(file) == "profile"), key=_age_s):
                    if total_bytes + n_bytes <= room_bytes:
                        break
                    _remove(old)
                    total_bytes -= kept[old]
                _log.info("attachment.room_made n_bytes=%d limit=%d", total_bytes, self._max_kept_bytes)
            self._most_bytes = total_bytes
        if self._most_bytes + n_bytes > self._max_kept_bytes:
            raise DiskFull(
                f"attachments take {self._most_bytes} bytes and this gateway keeps {self._max_kept_bytes} at most; "
                f"remove calibrations and reports that nobody needs below {self._folder}",
                path=str(path),
                wanted_bytes=n_bytes,
            )
        self._most_bytes += n_bytes

    def _place(self, model_digest: str, kind: Kind, variant: str) -> Path:
        return self._folder / check_digest(model_digest) / kind / check_word(variant, "variant id")


def _subject(attachment: Attachment) -> str:
    """What an attachment is about beside its model, from its checked content."""
    if attachment.kind == "profile":
        return parse_profile(attachment.content).subject
    if attachment.kind == "calibration":
        return ShapeKey.parse(parse_calibration(attachment.content).shape_key).id
    if len(attachment.content) > MAX_REPORT_BYTES:
        raise TooLarge(f"a report of {len(attachment.content)} bytes is refused: {MAX_REPORT_BYTES} are allowed")
    return _ALL


def _check_subject(subject: str) -> None:
    parts = subject.split(".")
    is_sound = len(parts) <= 2 and all(len(part) == 16 and set(part) <= set("0123456789abcdef") for part in parts)
    if not is_sound and subject != _ALL:
        raise BadMessage(f"subject {subject[:80]!r}: a shape key's id is wanted, or SHAPEID.SETTINGID for a profile")


def _vouched(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def _kind_of(path: Path) -> str:
    """The kind of a kept file, from where it lies."""
    return path.parents[2].name


def _remove(path: Path) -> None:
    _vouched(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()  # the last one of its subject


def _keep_newest(paths: Iterator[Path], n_kept: int) -> None:
    for old in sorted(paths, key=_age_s, reverse=True)[n_kept:]:
        _remove(old)


def _keep_newest_folders(parent: Path, n_kept: int) -> None:
    folders = sorted((folder for folder in parent.iterdir() if folder.is_dir()), key=_age_s, reverse=True)
    for old in folders[n_kept:]:
        _keep_newest(old.glob("*.json"), 0)


def _age_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
