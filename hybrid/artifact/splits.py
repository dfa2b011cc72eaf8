"""The splits of an artifact as files on a disk: what they are called, where they lie, whether their bytes are right."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.external_data import external_data
from hybrid.artifact.folder import Artifact
from hybrid.artifact.manifest import FileEntry, Manifest, Split
from hybrid.errors import CorruptContent, ModelInvalid

PREFIX: Final = "split:"
"""Of the codecs that splits make; the codec catalog holds none of such a name."""

MAX_PRIOR_BYTES: Final = 4 << 20

Role = Literal["head", "encoder", "decoder", "prior"]
ROLES: Final[tuple[Role, ...]] = ("head", "encoder", "decoder", "prior")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFile:
    """One file of a split, with the digest and the size that the manifest says."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFiles:
    """A split whose files lie on this machine.

    Attributes:
        id, cut, shape_key, carrier: see `manifest.Split`.
        digest: of all of that and of the files' content: who has the same digest holds the same split.
        files: by what they are.
    """

    id: str
    cut: str
    shape_key: str
    carrier: str
    digest: str
    files: dict[Role, SplitFile]

    @property
    def codec(self) -> str:
        """What reports and calibrations call its codec."""
        return codec_of(self.id)

    @property
    def is_learned(self) -> bool:
        """Whether what crosses goes through an encoder here and a decoder at the gateway."""
        return "encoder" in self.files

    def n_bytes(self, *roles: Role) -> int:
        """Bytes of these of its files."""
        return sum(self.files[role].size for role in roles if role in self.files)

    def graph_path(self, role: Role) -> Path:
        """One of its graphs, after its bytes were compared with the manifest.

        Raises:
            CorruptContent: they are other ones.
            ModelInvalid: it keeps data outside itself.
        """
        path = self._checked(role)
        if external_data(path):
            raise ModelInvalid(
                f"{path}: the {role} of a split must be one file; put its weights into it", path=str(path)
            )
        return path

    def prior_bytes(self) -> bytes:
        """The entropy coder's tables, compared with the manifest; raises as `graph_path`."""
        path = self._checked("prior")
        if self.files["prior"].size > MAX_PRIOR_BYTES:
            raise ModelInvalid(
                f"{path}: {self.files['prior'].size} bytes, {MAX_PRIOR_BYTES} are allowed", path=str(path)
            )
        return path.read_bytes()

    def _checked(self, role: Role) -> Path:
        file = self.files[role]
        try:
            if file.path.stat().st_size == file.size and fresh_sha256(file.path) == file.sha256:
                return file.path
        except OSError as exc:
            raise ModelInvalid(f"{file.path}: {exc.strerror}; fetch the artifact again", path=str(file.path)) from exc
        raise CorruptContent(
            f"{role} of split {self.id!r}: its digest is not the manifest's; fetch or push the artifact again",
            path=str(file.path),
        )


def codec_of(split_id: str) -> str:
    """The name of the codec that a split makes."""
    return f"{PREFIX}{split_id}"


def splits_of(artifact: Artifact) -> tuple[SplitFiles, ...]:
    """The splits of an artifact in a folder."""
    return found_splits(artifact.manifest, lambda name, _: artifact.path_of(name))


def found_splits(manifest: Manifest, find: Callable[[str, FileEntry], Path | None]) -> tuple[SplitFiles, ...]:
    """The splits of a manifest whose files are all to be had.

    Args:
        manifest: declares them.
        find: name and entry of a file -> where it lies, None where it does not.
    """
    splits = () if manifest.splits is msgspec.UNSET else manifest.splits
    found: list[SplitFiles] = []
    for split in splits:
        files: dict[Role, SplitFile] = {}
        for role in ROLES:
            name: str | None = getattr(split, role)
            if name is None:
                continue
            entry = manifest.files[name]
            path = find(name, entry)
            if path is not None:
                files[role] = SplitFile(path=path, sha256=entry.sha256, size=entry.size)
        if len(files) == len(split.files):
            found.append(
                SplitFiles(
                    id=split.id,
                    cut=split.cut,
                    shape_key=split.shape_key,
                    carrier=split.carrier,
                    digest=split_digest(manifest, split),
                    files=files,
                )
            )
    return tuple(found)


def split_digest(manifest: Manifest, split: Split) -> str:
    """SHA-256 of the canonical JSON `[id, cut, shape key, carrier, digests of head, encoder, decoder, prior]`."""
    names = [getattr(split, role) for role in ROLES]
    digests = [manifest.files[name].sha256 if name is not None else None for name in names]
    text = json.dumps([split.id, split.cut, split.shape_key, split.carrier, *digests], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
