"""`DATA/models`: what is known of each model, replaced atomically, and made anew from the slots where it is damaged."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from msgspec.structs import replace

from edge_agent.disk import Disk, write_durably
from edge_agent.install.contents import check_content, read_papers, read_patiently, set_aside
from edge_agent.install.records import SLOTS, Held, Slot, Slots, Wanted, decode, encode
from edge_agent.install.rules import Papers, TrustKeys
from edge_agent.install.sealed import sealed, unsealed
from hybrid.artifact.manifest import parse
from hybrid.artifact.names import MANIFEST_NAME, check_word
from hybrid.artifact.signature import Signature, verify
from hybrid.errors import BadMessage, HybridError, StorageError
from hybrid.fleet.messages import Trial

RECORD: Final = "slots.json"
BASE: Final = "base.json"
"""Papers of the newest publisher's version that was committed, itself or by what was learned from it."""
LEARNED_FROM: Final = "base-of-learned.json"
"""Papers of the base of the newest `rounds` version that was let in, where it is another."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def on_disk(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do disk work in a thread; cancelling waits for its end, so that nobody else meets it half done.

    Raises:
        HybridError: as the work does; what the disk itself says is a `StorageError`.
    """

    def mapped() -> _T:
        try:
            return work(*args, **kwargs)
        except HybridError:
            raise
        except OSError as exc:
            raise StorageError(f"the disk refused: {exc}; check it with hybrid agent doctor") from exc

    task = asyncio.ensure_future(asyncio.to_thread(mapped))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()
        raise


class Shelf:
    """The slots of all models of a box. Blocks; call it through `on_disk`."""

    def __init__(self, disk: Disk, data: Path, now_s: Callable[[], float]) -> None:
        self.disk, self.folder, self._now_s = disk, data / "models", now_s

    def names(self) -> list[str]:
        """Models that have a folder here."""
        return [name for name in self.disk.names(self.folder) if _is_name(name) and self._has_something(name)]

    def slot(self, name: str, slot: Slot) -> Path:
        """Folder of a slot."""
        return self.folder / name / slot

    def load(self, name: str, trust: TrustKeys | None, wanted_digest: str) -> Slots:
        """What is known of a model; made anew where the record is missing or damaged."""
        path = self.folder / name / RECORD
        if self.disk.size(path) >= 0:
            try:
                return decode(unsealed(read_patiently(self.disk, path)), name)
            except BadMessage:
                set_aside(self.disk, path, self._now_s())
        slots = self.rebuilt(name, trust, wanted_digest)
        self.save(slots)
        return slots

    def look(self, name: str) -> Slots:
        """What is known of a model, for who only wants to know: nothing where that cannot be read."""
        try:
            return decode(unsealed(self.disk.read(self.folder / name / RECORD)), name)
        except (OSError, BadMessage):
            return Slots(name=name)

    def save(self, slots: Slots) -> None:
        """Make this what is known; lasting when it returns."""
        write_durably(self.disk, self.folder / slots.name / RECORD, sealed(encode(slots)))

    def rebuilt(self, name: str, trust: TrustKeys | None, wanted_digest: str) -> Slots:
        """A record from what lies in the slots.

        Which version was committed nobody knows any more: the newest whole one goes through rehearsal and trial again,
        while the other one answers, if there is one. What failed here is not whole: its manifest was removed.
        """
        found: dict[Slot, Held] = {}
        for slot in SLOTS:
            held = self._recognised(name, slot, trust)
            if held is not None:
                found[slot] = held
        slots = Slots(name=name, a=found.get("a"), b=found.get("b"), sequence=self.published(name, trust))
        if not found:
            return slots
        newest = max(found, key=lambda slot: (found[slot].artifact_digest == wanted_digest, found[slot].sequence))
        held = found[newest]
        others: list[Slot] = [slot for slot in found if slot != newest]
        trial = Trial() if others else Trial(n_good=0, most_s=0.0)  # alone, it has nothing to be worse than
        if others:
            slots = _unproved(slots, newest)
        return replace(
            slots,
            answers=others[0] if others else "",
            phase="verified",
            wanted=Wanted(artifact_digest=held.artifact_digest, version=held.version, trial=trial),
            sequence=max(slots.sequence, *(found[slot].sequence for slot in others), -1),
        )

    def keep_base(self, name: str, papers: Papers, trust: TrustKeys, *, is_learned: bool) -> None:
        """Keep a publisher's papers for the `rounds` versions to come.

        Args:
            name: of the model.
            papers: of the version that is committed.
            trust: keys of the newest trust bundle.
            is_learned: it is a `rounds` version: its base counts as committed with it, where none is newer.
        """
        if not is_learned:
            self._keep(name, BASE, papers)
            return
        digest = parse(papers.manifest).base
        for base in self.learned_from(name):
            if base.digest == digest and parse(base.manifest).sequence > self.published(name, trust):
                self._keep(name, BASE, base)

    def keep_learned_from(self, name: str, papers: Papers) -> None:
        """Keep the papers of a base while what was learned from it is installed: it may be in no slot by then."""
        kept = (self._papers(name, file) for file in (BASE, LEARNED_FROM))
        if not any(each is not None and each.digest == papers.digest for each in kept):
            self._keep(name, LEARNED_FROM, papers)

    def _keep(self, name: str, file: str, papers: Papers) -> None:
        path = self.folder / name / file
        if papers.signature is not None:
            write_durably(self.disk, path.with_suffix(".sig"), papers.signature.file_bytes)
        write_durably(self.disk, path, papers.manifest)

    def bases(self, name: str) -> tuple[Papers, ...]:
        """Papers that lie here: of the slots, and the base that was kept."""
        found = []
        for slot in SLOTS:
            try:
                found.append(read_papers(self.disk, self.slot(name, slot)))
            except HybridError:
                continue
        base = self._papers(name, BASE)
        return (*found, base) if base is not None else tuple(found)

    def learned_from(self, name: str) -> tuple[Papers, ...]:
        """What `keep_learned_from` kept."""
        papers = self._papers(name, LEARNED_FROM)
        return () if papers is None else (papers,)

    def spoil(self, name: str, slot: Slot) -> None:
        """Nothing takes the content of a slot for a version any more; its files may serve the next one."""
        self.disk.remove(self.slot(name, slot) / MANIFEST_NAME)

    def clear(self, name: str) -> None:
        """Remove the content of a model; its record stays, for the sequence."""
        folder = self.folder / name
        for entry in self.disk.names(folder):
            if entry != RECORD and not entry.startswith(BASE.partition(".")[0]):
                self.disk.remove(folder / entry)

    def _recognised(self, name: str, slot: Slot, trust: TrustKeys | None) -> Held | None:
        folder = self.slot(name, slot)
        try:
            papers = read_papers(self.disk, folder)
            signed_by = ""
            if trust is not None:
                keys = {**trust.trusted("rounds"), **trust.trusted("publisher")}
                signed_by = verify(papers.manifest, papers.signature, keys)
            manifest = parse(papers.manifest)
            check_content(self.disk, folder, papers.digest, manifest)
        except HybridError:
            return None
        if manifest.name != name:
            return None
        return Held(
            artifact_digest=papers.digest,
            version=manifest.version,
            sequence=manifest.sequence,
            signed_by=signed_by,
            is_good=True,
        )

    def published(self, name: str, trust: TrustKeys | None) -> int:
        """The sequence of the newest publisher's version that is known to have been committed; -1 for none."""
        if trust is None:
            return -1
        base = self._papers(name, BASE)
        try:
            if base is not None:
                verify(base.manifest, base.signature, trust.trusted("publisher"))
                return parse(base.manifest).sequence
        except HybridError:
            pass  # damaged, or its signer was revoked: nothing is known then
        return -1

    def _papers(self, name: str, file: str) -> Papers | None:
        path = self.folder / name / file
        try:
            signature = Signature.of_file_bytes(self.disk.read(path.with_suffix(".sig")))
            return Papers(manifest=self.disk.read(path), signature=signature)
        except (HybridError, OSError):
            return None  # none, or damaged: the next version of a publisher brings one

    def _has_something(self, name: str) -> bool:
        return bool(list(self.disk.names(self.folder / name)))


def _unproved(slots: Slots, slot: Slot) -> Slots:
    held = slots.held(slot)
    assert held is not None
    held = replace(held, is_good=False)
    return replace(slots, a=held) if slot == "a" else replace(slots, b=held)


def _is_name(name: str) -> bool:
    try:
        check_word(name)
    except BadMessage:
        return False
    return True
