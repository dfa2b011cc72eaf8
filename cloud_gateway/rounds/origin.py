"""The version that a campaign begins with: its files laid out as its publisher had them while they are read."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from hybrid.artifact.durable import storing
from hybrid.artifact.folder import Artifact
from hybrid.artifact.manifest import Manifest, parse
from hybrid.artifact.signature import Signature
from hybrid.errors import CampaignImpossible, NotFound
from hybrid.federated.layout import Layout
from hybrid.federated.learning.head import Head
from hybrid.federated.lineage import is_learned, learned_from

PREFIX: Final = ".base-"


class Version(Protocol):
    """What is asked of a version in the registry."""

    @property
    def name(self) -> str:
        """The model's."""
        ...

    @property
    def version(self) -> str:
        """Its word."""
        ...

    @property
    def sequence(self) -> int:
        """Rises with every version."""
        ...

    @property
    def artifact_digest(self) -> str:
        """What names its bytes."""
        ...


def laid_out_within(folder: Path) -> Path:
    """A new folder beside the campaigns. Raises `DiskFull`, `StorageError`."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))


class Library(Protocol):
    """The registry of models."""

    def resolve(self, name: str, version: str | None = None) -> Version:
        """A version. Raises `NotFound`."""
        ...

    def list_versions(self, name: str | None = None) -> tuple[Version, ...]:
        """Every version of a name, oldest first."""
        ...

    def manifest_bytes(self, digest: str) -> bytes:
        """The exact bytes of a manifest."""
        ...

    def signature(self, digest: str) -> Signature | None:
        """What came with it."""
        ...

    def find_blob(self, sha256: str) -> Path | None:
        """A file with these bytes."""
        ...

    def commit_version(
        self, manifest_bytes: bytes, signature: Signature | None = None, *, name: str | None = None
    ) -> Version:
        """Make a version visible."""
        ...


@contextmanager
def laid_out(library: Library, digest: str, within: Path) -> Iterator[Artifact]:
    """A version's artifact in a folder of its own, which is removed in the end; blocks.

    Copies, not links: engines and installers refuse weights that have a second name.

    Raises:
        NotFound: the version or one of its files is gone.
        DiskFull, StorageError: it could not be laid out.
    """
    try:
        data = library.manifest_bytes(digest)
    except FileNotFoundError as exc:
        raise NotFound(f"the base {digest[:16]}… is not on this gateway any more") from exc
    manifest = parse(data)
    folder = laid_out_within(within)
    try:
        for name, entry in manifest.files.items():
            path = library.find_blob(entry.sha256)
            if path is None:
                raise NotFound(f"file {name!r} of the base {digest[:16]}… is not on this gateway any more")
            with storing(folder / name, entry.size):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
        with storing(folder / "manifest.json", len(data)):
            (folder / "manifest.json").write_bytes(data)
        yield Artifact(folder=folder, manifest=manifest, manifest_bytes=data, signature=library.signature(digest))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def meant(library: Library, name: str, held: Mapping[str, int]) -> Version:
    """The version that a campaign begins with where none was named: with which most boxes can train, then the newest.

    With a base train also those that hold what was learned from it. Where nobody told, it is the newest of a
    publisher: a candidate that nobody rolled out is on no box.

    Args:
        library: the registry.
        name: of the model.
        held: boxes by the artifact digest that they told.

    Raises:
        NotFound: there is no such model.
    """
    versions = library.list_versions(name)
    able, own = Counter(held), []
    for version in versions:
        manifest = parse(library.manifest_bytes(version.artifact_digest))
        if not is_learned(manifest):
            own.append(version)
        for base in learned_from(manifest):
            able[base] += held.get(version.artifact_digest, 0)
    told = [version for version in versions if able[version.artifact_digest]]
    if told:
        return max(told, key=lambda version: (able[version.artifact_digest], version.sequence))
    return own[-1] if own else library.resolve(name)


def shared(head: Head, personal: tuple[str, ...]) -> tuple[Layout, np.ndarray]:
    """What of a head travels: all but personal tensors, as layout and vector.

    Raises:
        CampaignImpossible: nothing is left, or a pattern is of no tensor.
    """
    for pattern in personal:
        if not any(fnmatchcase(name, pattern) for name in head.layout.names):
            names = ", ".join(head.layout.names[:8])
            raise CampaignImpossible(
                f"no tensor of the head is called {pattern!r}, which is to be personal; it has {names}"
            )
    arrays = {
        name: head.arrays[name]
        for name in head.layout.names
        if not any(fnmatchcase(name, pattern) for pattern in personal)
    }
    if not arrays:
        raise CampaignImpossible(f"all tensors of the head are personal ({', '.join(personal)}): nothing would travel")
    layout = Layout.of(arrays)
    return layout, layout.vector(arrays)


def only_variant(manifest: Manifest) -> str:
    """The variant that learns where none was named: the only one that can, or the shipped one where that can.

    Raises:
        CampaignImpossible: there is none, or it is not clear which.
    """
    able = [variant.id for variant in manifest.variants if variant.trainable_files and variant.feature_tensor]
    if len(able) == 1 or (able and able[0] == manifest.variants[0].id):
        return able[0]
    label = f"{manifest.name}:{manifest.version}"
    if not able:
        raise CampaignImpossible(f"no variant of {label} has trainable files; publish it with a head that can learn")
    raise CampaignImpossible(f"variants {', '.join(able)} of {label} can learn: name one")
