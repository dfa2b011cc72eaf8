"""Which lossy codecs a session may use: those of calibrations that somebody whom it trusts has signed.

Design: whoever can hand a calibration to a device could otherwise talk it into wrong answers. So nothing counts but a
signature by a key that the user trusts, or by the very key that signed the manifest of the artifact which the session
has open: who made the model may say what its accuracy bears. All else is as if it were not there.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid.artifact.attachments import Attachment, attach, attachments_in
from hybrid.artifact.cache import cache_dir
from hybrid.artifact.folder import Artifact, open_folder
from hybrid.artifact.names import MANIFEST_NAME, SIGNATURE_NAME
from hybrid.artifact.publishers import config_dir, trusted_keys
from hybrid.artifact.signature import key_id, verify
from hybrid.artifact.splits import PREFIX
from hybrid.calibration.record import Calibration, Cell, parse_calibration
from hybrid.errors import BadMessage, CorruptContent, Forbidden, HybridError
from hybrid.graph.shape_key import ShapeKey
from hybrid.transport.attachment_calls import find_attachments
from hybrid.transport.client import GatewayClient

_log = logging.getLogger("hybrid.calibration")

_MAX_DEPTH: Final = 4
"""How far above the model's file the artifact's folder is looked for."""


_MOST_REFUSED: Final = 1024
"""Refused calibrations that are remembered, so that each is checked and told of once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """A trusted calibration's word on one codec at one cut: the drop to count with (a share), the bytes it had."""

    drop: float
    cell: Cell
    key_id: str


class CalibrationFinder:
    """The trusted calibrations of one model; used on one thread, read from any.

    Args:
        model_path: the model's file, beside which its artifact may lie; None where there is none.
        model_digest: digest of the model.
        variant: the variant that runs.
    """

    def __init__(self, model_path: Path | None, model_digest: str, variant: str = "original") -> None:
        self._model_digest = model_digest
        self._variant = variant
        self._artifact = artifact_of(model_path) if model_path is not None else None
        self._permits: Mapping[tuple[str, str], Mapping[str, Permit]] = {}
        self._trusted: list[tuple[Calibration, str]] = []
        self._keys: Mapping[str, bytes] = {}
        self._taken: set[bytes] = set()
        self._refused: set[bytes] = set()

    def look(self) -> bool:
        """Takes in what lies on this machine: beside the model, in the cache, in the user's settings.

        Returns:
            Whether something new counts.
        """
        folders = [own_folder(self._model_digest), cached_folder(self._model_digest)]
        if self._artifact is not None:
            folders.append(self._artifact.folder)
        self._know_keys()
        found: list[Attachment] = []
        for folder in folders:
            found += attachments_in(folder, self._model_digest, "calibration", broken=self._said_broken)
        return self._take(found)

    def ask(self, client: GatewayClient, shape_key: str) -> bool:
        """Looks again, and takes in what a gateway has for these shapes; keeps what counts in the cache; blocks.

        Returns:
            Whether something new counts.
        """
        is_new = self.look()
        try:
            subject = ShapeKey.parse(shape_key).id
            found = find_attachments(client, self._model_digest, "calibration", self._variant, subject=subject)
        except HybridError as exc:
            _log.info("calibration.not_asked url=%s error=%s", client.url, exc.code)
            return is_new
        return self._take(found, keep=True) or is_new

    def codecs(self, shape_key: str, cut: str) -> tuple[str, ...]:
        """The lossy codecs of the catalog that are calibrated at a cut (empty: the input cut) for these shapes."""
        return tuple(name for name in self._permits.get((shape_key, cut), {}) if not name.startswith(PREFIX))

    def drop(self, shape_key: str, cut: str, codec: str, split: str = "") -> float | None:
        """The accuracy drop to count with, 0 to 1: the upper end of the interval; None where nobody trusted says.

        Args:
            shape_key: text of the input shapes.
            cut: cut id, empty for the input cut.
            codec: its name.
            split: digest of the split whose codec it is: the word on another one of the same name does not count.
        """
        permit = self.permit(shape_key, cut, codec, split)
        return None if permit is None else permit.drop

    def permit(self, shape_key: str, cut: str, codec: str, split: str = "") -> Permit | None:
        """All that is known of a codec at a cut; arguments as `drop`."""
        return self._permits.get((shape_key, cut), {}).get(_named(codec, split))

    def _know_keys(self) -> None:
        """Whom the user trusts now. Where that has changed, what was refused has another chance."""
        try:
            keys = trusted_keys()
        except HybridError as exc:
            _log.warning("calibration.nobody_trusted reason=%s", exc)
            keys = {}
        if keys != self._keys:
            self._keys = keys
            self._refused.clear()

    def _take(self, attachments: Iterable[Attachment], *, keep: bool = False) -> bool:
        is_new = False
        for attachment in attachments:
            vouched = attachment.signature.signature if attachment.signature else b""
            stamp = hashlib.sha256(attachment.content + vouched).digest()
            if attachment.variant != self._variant or stamp in self._taken or stamp in self._refused:
                continue
            try:
                calibration, signer = trusted(
                    attachment, self._model_digest, self._variant, artifact=self._artifact, keys=self._keys
                )
            except HybridError as exc:
                _log.warning("calibration.ignored model=%s reason=%s", self._model_digest[:16], exc)
                self._refuse(stamp)
                continue
            self._taken.add(stamp)
            self._add(calibration, signer)
            is_new = True
            if keep:
                _keep(attachment)
        return is_new

    def _said_broken(self, path: Path, error: Exception) -> None:
        stamp = hashlib.sha256(str(path).encode("utf-8", "surrogatepass")).digest()
        if stamp not in self._refused:  # said once
            _log.warning("calibration.unreadable path=%s error=%s", path, error)
            self._refuse(stamp)

    def _refuse(self, stamp: bytes) -> None:
        """Remembers what need not be looked at again, by 32 bytes each and not for ever."""
        if len(self._refused) >= _MOST_REFUSED:
            self._refused.clear()
        self._refused.add(stamp)

    def _add(self, calibration: Calibration, signer: str) -> None:
        """Enters a calibration: the newest word of each signer on a cell counts, and of several signers' the worst."""
        self._trusted = sorted([*self._trusted, (calibration, signer)], key=lambda pair: pair[0].made_s)
        words: dict[tuple[str, str], dict[str, dict[str, Permit]]] = {}
        for known, key in self._trusted:
            lossy = [cell for cell in known.cells if cell.is_lossy]
            named = [(name, cell) for cell in lossy for name in _same_values(cell)]
            for name, cell in sorted(named, key=lambda pair: pair[0] == pair[1].codec):  # its own cell knows its bytes
                permit = Permit(drop=max(0.0, cell.drop_high), cell=cell, key_id=key)
                words.setdefault((known.shape_key, cell.cut), {}).setdefault(name, {})[key] = permit
        self._permits = {
            place: {codec: max(said.values(), key=lambda permit: permit.drop) for codec, said in codecs.items()}
            for place, codecs in words.items()
        }


def _named(codec: str, split: str) -> str:
    """Under which name a codec is permitted: a split's only with its digest."""
    return f"{codec}#{split}" if codec.startswith(PREFIX) else codec


def _same_values(cell: Cell) -> tuple[str, ...]:
    """The codecs that give the same values: with and without an entropy stage. None where the codec is not known."""
    from compression.codecs import catalog  # loads zstandard and PIL

    if cell.codec.startswith(PREFIX):
        return (_named(cell.codec, cell.split),)
    if cell.codec not in catalog.CODECS:
        return ()
    wanted = catalog.values_of(cell.codec)
    return tuple(name for name in catalog.CODECS if catalog.values_of(name) == wanted)


def trusted(
    attachment: Attachment, model_digest: str, variant: str, *, artifact: Artifact | None, keys: Mapping[str, bytes]
) -> tuple[Calibration, str]:
    """The calibration in an attachment, and the id of the trusted key that signed it.

    Args:
        attachment: what was found.
        model_digest: digest of the model that runs.
        variant: the variant that runs.
        artifact: what the session has open; its own publisher is trusted for it.
        keys: key id -> raw public key that the user trusts.

    Raises:
        Forbidden: unsigned, signed by nobody who is trusted, or about another model.
        CorruptContent: the signature does not fit.
        BadMessage: no calibration.
    """
    if attachment.kind != "calibration":
        raise BadMessage(f"an attachment of kind {attachment.kind!r} is no calibration")
    calibration = parse_calibration(attachment.content)
    if (calibration.model_digest, calibration.variant) != (model_digest, variant):
        about = f"{calibration.model_digest[:16]}… ({calibration.variant})"
        raise Forbidden(f"the calibration is about model {about}, not {model_digest[:16]}… ({variant})")
    known = dict(keys)
    own = _artifact_publisher(artifact, calibration) if artifact is not None else None
    if own is not None:
        known.setdefault(key_id(own), own)
    return calibration, verify(attachment.content, attachment.signature, known, what="calibration")


def _artifact_publisher(artifact: Artifact, calibration: Calibration) -> bytes | None:
    """The calibration's public key, if it is the one that signed the artifact's manifest.

    The manifest names its key by id only; the calibration brings the key, and the manifest's signature proves it.
    """
    try:
        public_key = bytes.fromhex(calibration.publisher)
        if artifact.signature is None or len(public_key) != 32 or key_id(public_key) != artifact.signature.key_id:
            return None
        verify(artifact.manifest_bytes, artifact.signature, {key_id(public_key): public_key})
    except (ValueError, Forbidden, CorruptContent):
        return None
    return public_key if artifact.manifest.model_digest == calibration.model_digest else None


def artifact_of(model_path: Path) -> Artifact | None:
    """The artifact whose shipped model this file is, if it lies in one that nobody else could have put there."""
    model = model_path.resolve()
    try:
        folder = next(
            (folder for folder in list(model.parents)[:_MAX_DEPTH] if (folder / MANIFEST_NAME).exists()), None
        )
        if folder is None:
            return None
        strange = _stranger(folder, model)
        if strange is not None:
            _log.warning("calibration.artifact_ignored folder=%s reason=others could have written %s", folder, strange)
            return None
        artifact = open_folder(folder)
    except (HybridError, OSError):
        return None
    return artifact if artifact.model_path.resolve() == model else None


def _stranger(folder: Path, model: Path) -> Path | None:
    """What of an artifact's papers somebody may have written who could not have changed the model; None where nothing.

    A manifest above a model vouches for calibrations, so a stranger must not be able to lay one there: in a folder that
    all may write, say, as /tmp. Who could change the model itself needs no such trick, and root neither.
    """
    if not hasattr(os, "geteuid"):
        return None  # no owners and modes as on POSIX
    known = {("user", 0), ("user", os.geteuid())} | _writers(model.stat())
    beside = model.parent.stat()
    if not beside.st_mode & stat.S_ISVTX:
        known |= _writers(beside)  # these may put another file under the model's name
    papers = [folder, folder / MANIFEST_NAME, folder / SIGNATURE_NAME]
    for path in papers:
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue  # no signature
        if not _writers(found) <= known or stat.S_ISLNK(found.st_mode):
            return path
    return None


def _writers(found: os.stat_result) -> set[tuple[str, int]]:
    """Who may write a file, or add to a folder: its owner, and its group and all others where the mode says so."""
    writers = {("user", found.st_uid)}
    if found.st_mode & stat.S_IWGRP:
        writers.add(("group", found.st_gid))
    if found.st_mode & stat.S_IWOTH:
        writers.add(("all", 0))
    return writers


def cached_folder(model_digest: str) -> Path:
    """Where attachments that came from gateways are kept; they can be had again."""
    return cache_dir() / "attached" / model_digest


def own_folder(model_digest: str) -> Path:
    """Where this user's own attachments of a model lie that has no artifact folder; they cost work to make."""
    return config_dir() / "attached" / model_digest


def _keep(attachment: Attachment) -> None:
    try:
        attach(cached_folder(attachment.model_digest), attachment)
    except HybridError as exc:
        _log.warning("calibration.not_kept error=%s", exc)
