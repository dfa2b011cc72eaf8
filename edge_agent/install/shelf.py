"""`DATA/models`: what is known of each model, replaced atomically, and made anew from the slots where it is damaged."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from msgspec.structs import replace

from edge_agent.disk import Disk, write_durably
from edge_agent.install.contents import check_content, read_papers, set_aside
from edge_agent.install.records import SLOTS, Held, Slot, Slots, Wanted, decode, encode
from edge_agent.install.rules import Papers, TrustKeys
from hybrid.artifact.manifest import parse
from hybrid.artifact.names import check_word
from hybrid.artifact.signature import Signature, verify
from hybrid.errors import BadMessage, HybridError

RECORD: Final = "slots.json"
BASE: Final = "base.json"
"""Papers of the newest publisher's version that was committed: what `rounds` versions are compared with."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def on_disk(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do disk work in a thread; cancelling waits for its end, so that nobody else meets it half done."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
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
                return decode(self.disk.read(path), name)
            except (BadMessage, OSError):
                set_aside(self.disk, path, self._now_s())
        slots = self.rebuilt(name, trust, wanted_digest)
        self.save(slots)
        return slots

    def save(self, slots: Slots) -> None:
        """Make this what is known; lasting when it returns."""
        write_durably(self.disk, self.folder / slots.name / RECORD, encode(slots))

    def rebuilt(self, name: str, trust: TrustKeys | None, wanted_digest: str) -> Slots:
        """A record from what lies in the slots: the newest whole version answers, on trial where there is another.

        Which of two was committed nobody knows any more; a trial with the older one to fall back on finds out.
        """
        found: dict[Slot, Held] = {}
        for slot in SLOTS:
            held = self._recognised(name, slot, trust)
            if held is not None:
                found[slot] = held
        if not found:
            return Slots(name=name)
        newest = max(found, key=lambda slot: (found[slot].artifact_digest == wanted_digest, found[slot].sequence))
        answers, others = found[newest], [slot for slot in found if slot != newest]
        wanted = Wanted(artifact_digest=answers.artifact_digest, version=answers.version)
        if not others:
            return self._with(Slots(name=name, answers=newest, phase="committed", wanted=wanted), newest, answers)
        other = others[0]
        slots = Slots(name=name, answers=newest, phase="trial", wanted=wanted, sequence=found[other].sequence)
        slots = self._with(slots, other, found[other])
        return self._with(slots, newest, replace(answers, is_good=False))

    def keep_base(self, name: str, papers: Papers) -> None:
        """Keep a publisher's papers for the `rounds` versions to come."""
        path = self.folder / name / BASE
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
        path = self.folder / name / BASE
        if self.disk.size(path) >= 0 and self.disk.size(path.with_suffix(".sig")) >= 0:
            try:
                signature = Signature.of_file_bytes(self.disk.read(path.with_suffix(".sig")))
                found.append(Papers(manifest=self.disk.read(path), signature=signature))
            except (HybridError, OSError):
                pass  # damaged: then there is no base, and a publisher's version brings the next
        return tuple(found)

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

    @staticmethod
    def _with(slots: Slots, slot: Slot, held: Held) -> Slots:
        sequence = max(slots.sequence, held.sequence) if held.is_good else slots.sequence
        return replace(slots, a=held, sequence=sequence) if slot == "a" else replace(slots, b=held, sequence=sequence)

    def _has_something(self, name: str) -> bool:
        return bool(list(self.disk.names(self.folder / name)))


def _is_name(name: str) -> bool:
    try:
        check_word(name)
    except BadMessage:
        return False
    return True
