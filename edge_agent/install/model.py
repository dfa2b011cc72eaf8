"""One model of the box: its record, what answers, and the next step of its installation, carried out."""

import asyncio
import logging
from typing import Final

from msgspec.structs import replace

from edge_agent.install.contents import check_content, read_papers, set_aside
from edge_agent.install.means import Means
from edge_agent.install.preparing import Preparing
from edge_agent.install.records import SLOTS, Held, Slot, Slots, Wanted
from edge_agent.install.rehearsal import chosen_variant
from edge_agent.install.rules import is_believed
from edge_agent.install.shelf import on_disk
from edge_agent.install.transitions import (
    RETRY_AFTER_S,
    Assign,
    Crash,
    Damage,
    Defer,
    Event,
    Fill,
    Filled,
    Prove,
    Rehearsed,
    Retry,
    Spoil,
    Task,
    Warmed,
    Withdraw,
    step,
    task_of,
)
from edge_agent.install.versions import compare_golden, told_of, version_in
from edge_agent.models.version import ModelVersion, Runs
from hybrid.artifact.manifest import Manifest, parse
from hybrid.errors import CorruptContent, EngineFailed, Forbidden, HybridError, ModelError, StorageError
from hybrid.fleet.messages import Assigned, Installed

_log = logging.getLogger("hybrid.agent.install")

_CLOCK_SLACK_S: Final = 3600.0
_WAITS_MOST_S: Final = 10.0
"""So long another version waits for the trial of all that is here; without an error until then it has passed.

A trial decides whether to go back. With nothing good to go back to it protects nothing, and who assigns another version
over one that does badly must not wait for it.
"""
_ANY: Final = Held(artifact_digest="", version="", sequence=0)


class Model:
    """The slots of one model and what is done with them; its methods are called by one task at a time (`lock`)."""

    def __init__(self, means: Means, name: str) -> None:
        self.name = name
        self.slots = Slots(name=name)
        self.assigned: Assigned | None = None
        self.lock = asyncio.Lock()
        self.not_before_s = 0.0
        self.n_failures = 0
        self.may_retry = False
        self.is_begun = False
        self.is_unsaved = False
        self.is_silent = False
        self.trouble: HybridError | None = None
        self.preparing: Preparing | None = None
        self.files: frozenset[str] = frozenset()
        """Digests of the wanted version's files, as far as its manifest was read."""
        self._means, self._shelf = means, means.shelf
        self._checked: set[tuple[Slot, str]] = set()
        self._told: ModelVersion | None = None
        self._trial_from_s = 0.0

    # -- the record

    async def begin(self, crash: Crash | None, wanted_digest: str, *, is_safe: bool) -> None:
        """Read the record, count a crash, and let the version that should answer do so, if its bytes are right.

        Args:
            crash: how the service before this one ended, if not in good order.
            wanted_digest: the assigned version, where one is known already.
            is_safe: the service is in a loop of crashes: nothing is on trial.
        """
        if not self.is_begun:
            self.slots = await on_disk(self._shelf.load, self.name, self._means.trust(), wanted_digest)
            self.is_begun = True
            if crash is not None:
                await self.happen(crash)
            if is_safe and self.slots.phase == "trial":
                at_s = self._means.now_s()
                await self.happen(Spoil("engine_crashed", "the service crashed again and again during its trial", at_s))
        await self.settle()

    async def happen(self, event: Event) -> None:
        """Note an event on the disk; what leads forward counts only then.

        Raises:
            StorageError: it could not be written, and nothing has changed. A step back is taken in any case.
        """
        before = self.slots
        after = step(before, event)
        if after == before:
            if self.is_unsaved:
                await self._save(after)
            return
        if after.phase == "trial" != before.phase:
            self._trial_from_s = asyncio.get_running_loop().time()
        try:
            await self._save(after)
        except StorageError as exc:
            if not isinstance(event, Crash | Damage | Defer | Spoil):
                raise
            self.trouble, self.is_unsaved = exc, True
        self.slots = after
        if isinstance(event, Spoil | Crash):
            await self._spoil(before, after)
        told = (after.phase, after.answers, after.wanted, after.next)
        if told != (before.phase, before.answers, before.wanted, before.next):
            await self._report()

    async def keep(self) -> None:
        """Write what could not be written when it happened."""
        if self.is_unsaved:
            await self._save(self.slots)
            await self._spoil(Slots(name=self.name, a=_ANY, b=_ANY), self.slots)

    async def _save(self, slots: Slots) -> None:
        await on_disk(self._shelf.save, slots)
        self.is_unsaved = False

    async def _spoil(self, before: Slots, after: Slots) -> None:
        """What failed is no version any more, even if the record were lost."""
        for slot in SLOTS:
            if before.held(slot) is not None and after.held(slot) is None:
                try:
                    await on_disk(self._shelf.spoil, self.name, slot)
                except StorageError as exc:
                    self.trouble = exc

    async def _report(self) -> None:
        told = self.installed()
        _log.info("install.phase model=%s version=%s phase=%s code=%s", self.name, told.version, told.phase, told.code)
        try:
            await self._means.report(told)
        except HybridError as exc:
            _log.info("install.report model=%s code=%s", self.name, exc.code)  # the state call tells it too

    async def assign(self, assigned: Assigned | None) -> None:
        """What the box should have of this model; None for nothing."""
        if self.assigned is None or assigned is None or self.assigned != assigned:
            self.preparing, self.not_before_s, self.n_failures = None, 0.0, 0
            self.files = frozenset()
        self.assigned = assigned
        if not self.is_begun:
            return  # what is known of it could not be read yet
        if assigned is None:
            await self.happen(Withdraw())
        else:
            wanted = Wanted(
                artifact_digest=assigned.artifact_digest,
                version=assigned.version,
                rollout=assigned.rollout,
                trial=assigned.trial,
            )
            await self.happen(Assign(wanted))
        await self.settle()

    @property
    def task(self) -> Task:
        """What is to do now."""
        return task_of(self.slots)

    # -- the steps

    async def advance(self) -> None:
        """Carry out what is to do until there is nothing more, or something must be waited for."""
        while True:
            task = self.task
            if task == "fetch":
                if self.assigned is None:
                    return  # what is wanted now nobody has said yet
                await self._fetch()
            elif task == "rehearse":
                await self._rehearse()
            elif task == "warm":
                await self._warm()
            elif task == "wait":
                if not self._may_retry():
                    return
                await self.happen(Retry())
            elif task == "clear":
                await self.settle()
                await on_disk(self._shelf.clear, self.name)
                return
            else:
                await self.settle()
                return

    async def fail(self, error: HybridError) -> None:
        """The wanted version is refused; what answered before does."""
        self.preparing = None
        await self.happen(Spoil(error.code, str(error), self._means.now_s()))
        await self.settle()

    async def defer(self, error: HybridError) -> None:
        """Not now."""
        self.preparing = None
        await self.happen(Defer(error.code, str(error), self._means.now_s()))
        pause_s = self._means.settings.deferred_s
        self.not_before_s = asyncio.get_running_loop().time() + pause_s * (0.5 + self._means.rng.random())

    def postpone(self, error: HybridError) -> None:
        """Try again after a random pause (full jitter); what is here stays."""
        settings = self._means.settings
        bound_s = min(settings.retry_first_s * 2.0 ** min(self.n_failures, 16), settings.retry_most_s)
        asked_s = float(error.fields.get("retry_after_s", 0.0) or 0.0)
        self.n_failures += 1
        self.trouble = error
        pause_s = min(asked_s, 3600.0) + self._means.rng.random() * bound_s
        self.not_before_s = asyncio.get_running_loop().time() + pause_s

    async def _fetch(self) -> None:
        assert self.assigned is not None
        if self.preparing is None:
            self.preparing = Preparing(self._means, self.assigned)
        papers, permitted = await self.preparing.papers(self.slots)
        self.files = frozenset(entry.sha256 for entry in permitted.manifest.files.values())
        held = await self.preparing.complete(self.slots, papers, permitted, self._fill)
        self._checked.add((self.slots.free, held.artifact_digest))
        self.preparing, self.n_failures, self.trouble = None, 0, None
        await self.happen(Filled(held))

    def _fill(self) -> None:
        """The free slot is about to be written; runs in the thread that writes it."""
        after = step(self.slots, Fill())
        if after != self.slots:
            self._shelf.save(after)
            self.slots = after
        self._checked = {(slot, digest) for slot, digest in self._checked if slot == self.slots.answers}

    async def _rehearse(self) -> None:
        slot = self.slots.free
        if not await self._is_sound(slot):
            return
        papers = await on_disk(read_papers, self._means.disk, self._shelf.slot(self.name, slot))
        preparing = Preparing(self._means, self.assigned or self._as_assigned())
        permitted = await on_disk(preparing.permit, papers, self.slots)  # a key may have been revoked meanwhile
        variant = chosen_variant(permitted.manifest, self._means.has_engine)
        await self._means.rehearse(self._shelf.slot(self.name, slot), permitted.manifest, variant)
        await self.happen(Rehearsed())

    async def _warm(self) -> None:
        slot = self.slots.free
        if not await self._is_sound(slot):
            return
        version, manifest = await on_disk(self._version, slot)
        try:
            await self._means.host.open(version)
            await compare_golden(self._means, version, manifest)
        except HybridError:
            await self._drop(version.artifact_digest)
            raise
        await self.happen(Warmed())
        await self.settle()

    async def watch(self) -> None:
        """Look at the trial."""
        slots = self.slots
        if slots.phase != "trial" or slots.wanted is None or not slots.answers:
            return
        trial, lost = slots.wanted.trial, slots.answering
        assert lost is not None
        try:
            if not is_believed(lost.signed_by, self._means.trust()):
                raise Forbidden("the key that signed it was revoked during its trial")
            await self.settle()
            runs = self._means.host.runs(self.name)
            if runs.n_errors:
                n_runs = runs.n_good + runs.n_errors
                raise EngineFailed(f"{runs.n_errors} of {n_runs} runs failed on trial")
            trial_s = asyncio.get_running_loop().time() - self._trial_from_s
            most_s = trial.most_s if slots.next is None else min(trial.most_s, _WAITS_MOST_S)
            if slots.n_good + runs.n_good < trial.n_good and trial_s < most_s:
                return
            version, manifest = await on_disk(self._version, slots.answers)
            await compare_golden(self._means, version, manifest)
            await on_disk(self._keep_base, slots.answers)
            await self.happen(Prove())
        except (CorruptContent, EngineFailed, Forbidden, ModelError) as exc:
            await self.happen(Spoil(exc.code, str(exc), self._means.now_s()))
        if self.slots.phase != "trial":
            await self.settle()
            kept = self.slots.answering
            for held in (lost, slots.held(slots.free)):
                if held is not None and (kept is None or held.artifact_digest != kept.artifact_digest):
                    await self._drop(held.artifact_digest)

    async def settle(self) -> None:
        """What the host answers with is what the record says."""
        if self.is_silent:
            return
        while self.slots.answers and not await self._is_sound(self.slots.answers):
            pass  # the record now says what answers instead
        if not self.slots.answers:
            if self._told is not None:
                self._told = None
                await self._drop("")
            return
        version, _ = await on_disk(self._version, self.slots.answers)
        if version != self._told:
            await self._means.host.answer(version)
            self._told = version
        # What does not answer is read again before it does: bits may flip meanwhile.
        self._checked = {(slot, digest) for slot, digest in self._checked if slot == self.slots.answers}

    # -- what is in the slots

    async def _is_sound(self, slot: Slot) -> bool:
        """Whether a slot holds the bytes that were installed; else it is set aside and the record says so."""
        held = self.slots.held(slot)
        if held is None:
            await self.happen(Damage(slot))
            return False
        if (slot, held.artifact_digest) in self._checked:
            return True
        folder = self._shelf.slot(self.name, slot)
        try:
            await on_disk(self._check, slot, held.artifact_digest)
        except CorruptContent as exc:
            self.trouble = exc
            if self._means.disk.is_folder(folder):
                await on_disk(set_aside, self._means.disk, folder, self._means.now_s())
            await self.happen(Damage(slot))
            return False
        self._checked.add((slot, held.artifact_digest))
        return True

    def _check(self, slot: Slot, digest: str) -> None:
        folder = self._shelf.slot(self.name, slot)
        try:
            manifest = parse(read_papers(self._means.disk, folder).manifest)
        except ValueError as exc:
            raise CorruptContent(f"{folder}: its manifest is damaged ({exc})", path=str(folder)) from exc
        check_content(self._means.disk, folder, digest, manifest)

    def _version(self, slot: Slot) -> tuple[ModelVersion, Manifest]:
        held = self.slots.held(slot)
        assert held is not None
        return version_in(self._means, self._shelf.slot(self.name, slot), held, self.assigned)

    def _keep_base(self, slot: Slot) -> None:
        """What `rounds` versions are compared with from now on: this one is about to be committed."""
        trust, held = self._means.trust(), self.slots.held(slot)
        if trust is not None and held is not None:
            papers = read_papers(self._means.disk, self._shelf.slot(self.name, slot))
            self._shelf.keep_base(self.name, papers, trust, is_learned=held.signed_by not in trust.trusted("publisher"))

    async def _drop(self, artifact_digest: str) -> None:
        try:
            await self._means.host.drop(self.name, artifact_digest)
        except HybridError as exc:
            self.trouble = exc

    def _may_retry(self) -> bool:
        now_s, failure = self._means.now_s(), self.slots.failure
        if self.slots.phase == "deferred":
            return asyncio.get_running_loop().time() >= self.not_before_s
        if failure is None or self.may_retry:
            self.may_retry = False
            return True
        return now_s - failure.at_s >= RETRY_AFTER_S or now_s < failure.at_s - _CLOCK_SLACK_S

    def _as_assigned(self) -> Assigned:
        wanted = self.slots.wanted
        assert wanted is not None
        return Assigned(name=self.name, version=wanted.version, artifact_digest=wanted.artifact_digest)

    # -- what is told

    def installed(self) -> Installed:
        """How this model is, for the gateway."""
        held, runs = self.slots.answering, self._means.host.runs(self.name)
        is_told = self._told is not None and held is not None and self._told.artifact_digest == held.artifact_digest
        return told_of(self.slots, runs if is_told else Runs(), self.trouble)

    async def keep_counts(self) -> None:
        """Before an orderly stop: what was counted is not counted from nothing after it."""
        told = self.installed()
        if self.slots.answers and (told.n_good, told.n_errors) != (self.slots.n_good, self.slots.n_errors):
            self.slots = replace(self.slots, n_good=told.n_good, n_errors=told.n_errors)
            await on_disk(self._shelf.save, self.slots)
