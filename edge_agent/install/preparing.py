"""A version comes into the free slot: papers first, then room, then the bytes that are missing, then all read again."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edge_agent.install.contents import (
    check_content,
    empty_but,
    entries,
    fill,
    path_of,
    quarantined,
    read_papers,
)
from edge_agent.install.fetching import FileSource
from edge_agent.install.means import Means
from edge_agent.install.records import SLOTS, Held, Slot, Slots
from edge_agent.install.rehearsal import chosen_variant
from edge_agent.install.rules import Papers, Past, Permit, TrustKeys, permit
from edge_agent.install.shelf import Shelf, on_disk
from hybrid.artifact.manifest import FileEntry, Manifest, parse
from hybrid.artifact.signature import Signature
from hybrid.errors import CorruptContent, DiskFull, Forbidden, HybridError, NotFound
from hybrid.fleet.messages import Assigned
from hybrid.fleet.rollback import read_rollback
from hybrid.transport.chunk_download import Base

_MOST_BASES: Final = 4
_LEARNED: Final = re.compile(r"(.+)\.r[0-9]+-[a-z0-9]{8}")
"""How a gateway calls what it learned; its base's word comes first."""


@dataclass(slots=True)
class Progress:
    """How far a download is: `done_bytes` of `total_bytes`."""

    done_bytes: int = 0
    total_bytes: int = 0

    def advance(self, n_bytes: int) -> None:
        """So many more bytes are here."""
        self.done_bytes += n_bytes


@dataclass(slots=True)
class _Here:
    """Files that are on this machine: digest -> paths that may be moved, and those that may only be copied."""

    movable: dict[str, list[Path]] = field(default_factory=dict)
    copied: dict[str, list[Path]] = field(default_factory=dict)

    def paths(self, sha256: str) -> list[Path]:
        return self.movable.get(sha256, []) + self.copied.get(sha256, [])


class Preparing:
    """Fetches one assigned version into the free slot of one model."""

    def __init__(self, means: Means, assigned: Assigned) -> None:
        self._means, self.assigned = means, assigned
        self._disk, self._shelf, self._downloads = means.disk, means.shelf, means.downloads
        self._source: FileSource | None = None
        self.progress = Progress()

    async def papers(self, slots: Slots) -> tuple[Papers, Permit]:
        """Manifest and signature, and whether they may be installed here: before anything else is fetched.

        Raises:
            LinkError and other passing errors: ask again.
            CorruptContent, Forbidden, VersionReplayed, BadMessage, ModelInvalid: this version is refused.
        """
        papers = await on_disk(self._papers_here, slots)
        if papers is None:
            data, text = await self._means.files.manifest(self.assigned.name, self.assigned.version)
            papers = Papers(manifest=data, signature=Signature.of_text(text) if text else None)
        try:
            permitted = await on_disk(self.permit, papers, slots)
        except Forbidden as exc:
            base = await self._base_of_learned(papers, str(exc.fields.get("base", "")))
            if base is None:
                raise
            permitted = await on_disk(self.permit, papers, slots, base)
        if permitted.base is not None:  # its slot may be the one that is filled now
            await on_disk(self._shelf.keep_learned_from, slots.name, permitted.base)
        chosen_variant(permitted.manifest, self._means.has_engine)
        return papers, permitted

    async def _base_of_learned(self, papers: Papers, digest: str) -> Papers | None:
        """Papers of a base that is not here, from the gateway: a box that came later has never had it."""
        for word in base_words(parse(papers.manifest).version) if digest else ():
            try:
                data, text = await self._means.files.manifest(self.assigned.name, word)
            except NotFound:
                continue
            base = Papers(manifest=data, signature=Signature.of_text(text) if text else None)
            if base.digest == digest:
                return base
        return None

    def permit(self, papers: Papers, slots: Slots, *brought: Papers) -> Permit:
        """See `rules.permit`; `brought` are papers of its base that are not here."""
        trust = self._means.trust()
        rollback = None
        if trust is not None and self.assigned.rollback is not None:
            rollback = read_rollback(self.assigned.rollback, trust.trusted("publisher"))
        past = past_of(self._shelf, slots, trust)
        past = replace(past, brought=(*past.brought, *brought))
        return permit(
            papers, self.assigned.artifact_digest, self.assigned.name, past=past, trust=trust, rollback=rollback
        )

    async def complete(self, slots: Slots, papers: Papers, permitted: Permit, freed: Callable[[], "object"]) -> Held:
        """Make the free slot this version.

        Args:
            slots: where things stand.
            papers: the version's.
            permitted: by `papers`.
            freed: notes on the disk that the free slot holds no version any more; called in a thread before the slot
                is touched.

        Raises:
            DiskFull: there is no room, or there was none in the middle.
            CorruptContent: what came is not what the manifest says.
            LinkError and other passing errors: go on later; what came stays.
        """
        manifest = permitted.manifest
        folder = self._shelf.slot(manifest.name, slots.free)
        here = await on_disk(self._look, slots, manifest)
        missing = {
            entry.sha256: entry for entry in manifest.files.values() if not here.paths(entry.sha256) and entry.size
        }
        await on_disk(self._make_room, slots, manifest, here, missing, freed)
        self.progress.done_bytes, self.progress.total_bytes = 0, sum(entry.size for entry in missing.values())
        if missing and self._source is None:
            self._source = self._means.files.source(manifest.files, await on_disk(self._bases, slots))
        for entry in missing.values():
            assert self._source is not None
            path = await self._downloads.complete(entry, self._source, self.progress.advance)
            here.movable.setdefault(entry.sha256, []).append(path)
        await on_disk(freed)
        await on_disk(self._settle, folder, papers, manifest, here)
        return Held(
            artifact_digest=papers.digest,
            version=manifest.version,
            sequence=manifest.sequence,
            signed_by=permitted.signed_by,
        )

    def _settle(self, folder: Path, papers: Papers, manifest: Manifest, here: _Here) -> None:
        empty = {entry.sha256 for entry in manifest.files.values() if entry.size == 0}
        for sha256 in empty:
            path = self._downloads.folder / sha256
            self._disk.remove(path)
            self._disk.append(path, b"")
            here.movable[sha256] = [path]
        inside = {path for paths in here.movable.values() for path in paths if path.is_relative_to(folder)}
        for path in inside:  # under another name in the same slot: out of the way before the slot is cleaned
            relative = path.relative_to(folder).as_posix()
            sha256 = next(sha for sha, paths in here.movable.items() if path in paths)
            entry = manifest.files.get(relative)
            if entry is None or entry.sha256 != sha256:
                moved = self._downloads.folder / sha256
                self._disk.make_folder(moved.parent)
                self._disk.replace(path, moved)
                here.movable[sha256] = [moved, *(other for other in here.movable[sha256] if other != path)]

        def sources(sha256: str) -> Iterable[Path]:
            return (path for path in here.paths(sha256) if self._disk.is_plain(path))

        loose = {path for paths in here.movable.values() for path in paths if not path.is_relative_to(folder)}
        fill(self._disk, folder, papers, manifest, sources, may_move=loose.__contains__)
        try:
            check_content(self._disk, folder, papers.digest, manifest)
        except CorruptContent:
            empty_but(self._disk, folder, manifest)
            raise

    def _papers_here(self, slots: Slots) -> Papers | None:
        """The wanted papers, where they came without a network or lie in a slot that is complete."""
        wanted = self.assigned.artifact_digest
        slot = slots.slot_of(wanted)
        folders = [self._means.imported(wanted), *([self._shelf.slot(slots.name, slot)] if slot else [])]
        for folder in folders:
            try:
                papers = read_papers(self._disk, folder)
            except HybridError:
                continue
            if papers.digest == wanted:
                return papers
        return None

    def _look(self, slots: Slots, manifest: Manifest) -> _Here:
        """Which files of the version are here, verified by digest."""
        here = _Here()
        wanted = {entry.sha256: entry for entry in manifest.files.values()}
        sizes = {entry.size for entry in wanted.values()}
        movable = [
            self._shelf.slot(slots.name, slots.free),
            self._means.imported(self.assigned.artifact_digest),
            *quarantined(self._disk, self._shelf.folder / slots.name),
        ]
        places = [(folder, here.movable) for folder in movable]
        if slots.answers:
            places.append((self._shelf.slot(slots.name, slots.answers), here.copied))
        for sha256, entry in wanted.items():
            path = self._downloads.whole(sha256)
            if path is not None and self._disk.size(path) == entry.size and self._disk.sha256(path) == sha256:
                here.movable.setdefault(sha256, []).append(path)
        for folder, found in places:
            for name, is_plain in entries(self._disk, folder).items():
                path = path_of(folder, name)
                if is_plain and self._disk.size(path) in sizes:
                    sha256 = self._disk.sha256(path)
                    if sha256 in wanted:
                        found.setdefault(sha256, []).append(path)
        return here

    def _make_room(
        self,
        slots: Slots,
        manifest: Manifest,
        here: _Here,
        missing: dict[str, FileEntry],
        freed: Callable[[], object],
    ) -> None:
        """See that everything fits, giving up first what was set aside, then the version before the last good one."""
        wanted_bytes = self._downloads.missing_bytes(missing.values()) + _copied_bytes(manifest, here)
        reserve_bytes = self._means.settings.reserve_bytes
        try:
            self._downloads.check_room(wanted_bytes, reserve_bytes)
        except DiskFull:
            for path in quarantined(self._disk, self._shelf.folder / slots.name):
                self._disk.remove(path)
            for sha256, paths in list(here.movable.items()):
                here.movable[sha256] = [path for path in paths if self._disk.is_plain(path)]
                if not here.paths(sha256):
                    missing[sha256] = next(entry for entry in manifest.files.values() if entry.sha256 == sha256)
            folder = self._shelf.slot(slots.name, slots.free)
            keep = {path for paths in here.movable.values() for path in paths}
            gives = {
                path: max(self._disk.size(path), 0)
                for path in (path_of(folder, name) for name in entries(self._disk, folder))
                if path not in keep
            }
            wanted_bytes = self._downloads.missing_bytes(missing.values()) + _copied_bytes(manifest, here)
            self._downloads.check_room(max(wanted_bytes - sum(gives.values()), 0), reserve_bytes)
            freed()
            for path in gives:
                self._disk.remove(path)

    def _bases(self, slots: Slots) -> list[Base]:
        """Versions here that chunks may be taken from: whatever lies in this model's slots, else in any other's.

        Nothing of them is believed: every chunk is hashed when it is taken, and the whole file after that.
        """
        own = [slots.answers, *(slot for slot in SLOTS if slot != slots.answers)]
        found = [base for slot in own if slot and (base := self._base(slots.name, slot)) is not None]
        if found:
            return found
        others = [name for name in self._shelf.names() if name != slots.name]
        return [base for name in others for slot in SLOTS if (base := self._base(name, slot)) is not None][:_MOST_BASES]

    def _base(self, name: str, slot: Slot) -> Base | None:
        folder = self._shelf.slot(name, slot)
        try:
            return Base(folder=folder, files=parse(read_papers(self._disk, folder).manifest).files)
        except (HybridError, OSError):
            return None


def past_of(shelf: Shelf, slots: Slots, trust: TrustKeys | None) -> Past:
    """What was installed here before."""
    own = {held.artifact_digest for held in (slots.a, slots.b) if held is not None and held.is_good}
    published = shelf.published(slots.name, trust)
    return Past(
        sequence=slots.sequence,
        own=frozenset(own | {slots.last_good}),
        bases=shelf.bases(slots.name),
        brought=shelf.learned_from(slots.name),
        published=slots.sequence if published < 0 else published,
    )


def base_words(version: str) -> tuple[str, ...]:
    """What the base of a learned version may be called at its gateway: `3` for `3.r12-k3p9w2xa`; most likely first."""
    found = []
    while (match := _LEARNED.fullmatch(version)) is not None:
        version = match[1]
        found.append(version)
    return tuple(reversed(found))


def _copied_bytes(manifest: Manifest, here: _Here) -> int:
    """What copies need: a file that only the answering slot has, and one that stands under two names."""
    wanted_bytes = 0
    uses: dict[str, int] = {}
    for entry in manifest.files.values():
        uses[entry.sha256] = uses.get(entry.sha256, 0) + 1
        is_spare = uses[entry.sha256] == 1 and (here.movable.get(entry.sha256) or not here.paths(entry.sha256))
        wanted_bytes += 0 if is_spare else entry.size
    return wanted_bytes
