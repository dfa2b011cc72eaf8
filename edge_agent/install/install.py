"""The part of the agent that installs models: all of them, one after the other, with trials beside."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge_agent.disk import write_durably
from edge_agent.install.means import Means
from edge_agent.install.model import Model
from edge_agent.install.problems import problems_of
from edge_agent.install.shelf import on_disk
from edge_agent.install.transitions import Crash, task_of
from edge_agent.part import Problem
from hybrid.artifact.names import check_digest, check_word
from hybrid.errors import (
    BadMessage,
    CorruptContent,
    DeadlinePassed,
    DiskFull,
    HybridError,
    LinkError,
    LinkHeld,
    NotAdmitted,
    NotFound,
    Overloaded,
    StorageError,
    Unauthenticated,
    VersionMismatch,
    Warming,
)
from hybrid.fleet.messages import Assigned, Installed

_log = logging.getLogger("hybrid.agent.install")

RUNNING: Final = "running.json"
"""Lies in the agent's folder while it runs: who finds it at a start knows that the one before ended without a stop."""

_PASSING: Final = (
    LinkError, Overloaded, Unauthenticated, NotAdmitted, NotFound, DeadlinePassed, Warming, VersionMismatch
)  # fmt: skip
"""What says nothing about the version: tried again after a pause."""

_PRIORITY: Final = 5


class _Running(msgspec.Struct, frozen=True):
    boot: str


def this_boot() -> str:
    """What differs between two starts of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Install:
    """A part of the agent: `assign` says what should be, `run` makes it so.

    Attributes:
        mode: of a start after a loop of crashes: `safe`: what was committed answers, nothing is fetched or tried;
            `bare`: nothing is opened. Set before `run`; `resume` ends it.
        begun: set when every model answers that can, at the start; before, the agent is not ready.
    """

    name = "install"

    def __init__(self, means: Means, *, boot: Callable[[], str] = this_boot) -> None:
        self._means, self._boot = means, boot
        self._models: dict[str, Model] = {}
        self._assigned: dict[str, Assigned] | None = None
        self.mode: Literal["normal", "safe", "bare"] = "normal"
        self._is_new = False
        self._has_counted = False
        self._crash: Crash | None = None
        self._refused: list[str] = []
        self._wake, self._trial = asyncio.Event(), asyncio.Event()
        self._fetching: tuple[Model, asyncio.Task[None]] | None = None
        self.begun = asyncio.Event()

    # -- what others ask

    def assign(self, models: Sequence[Assigned]) -> None:
        """All models that this box should have; those that are not named are removed.

        Names become folders: one that is no name (whoever wrote it) is left out, and shown as a problem.
        """
        self._refused = [assigned.name for assigned in models if not _is_sound(assigned)]
        self._assigned = {assigned.name: assigned for assigned in models if _is_sound(assigned)}
        self._is_new = True
        self._wake.set()
        if self._fetching is not None:
            model, task = self._fetching
            now = self._assigned.get(model.name)
            is_same = now is not None and model.assigned is not None and _key(now) == _key(model.assigned)
            if not is_same and model.task == "fetch":
                task.cancel()

    def hurry(self, code: str = "") -> None:
        """The link is back, or there is room again: what waits is tried now, and what failed with that code."""
        for model in self._models.values():
            model.not_before_s = 0.0
            failure = model.slots.failure
            model.may_retry = bool(code) and failure is not None and failure.code == code
        self._wake.set()

    def kept(self) -> list[Assigned]:
        """What is on this box, as if it were assigned: for a box that nobody ever told anything."""
        return [
            model.assigned
            or Assigned(name=name, version=wanted.version, artifact_digest=wanted.artifact_digest, trial=wanted.trial)
            for name, model in sorted(self._models.items())
            for wanted in (model.slots.next or model.slots.wanted,)
            if wanted is not None
        ]

    def installed(self) -> tuple[Installed, ...]:
        """How every model is."""
        return tuple(
            model.installed() for _, model in sorted(self._models.items()) if model.assigned or model.slots.answers
        )

    def problems(self) -> Sequence[Problem]:
        """See `Part`."""
        trust = self._means.trust()
        refused = [
            Problem(
                code="bad_message",
                what=f"the gateway assigned {name[:80]!r}, which can be no model or version",
                do="Mend the assignment on the gateway: hybrid fleet status.",
            )
            for name in self._refused
        ]
        models = [problem for _, model in sorted(self._models.items()) for problem in problems_of(model, trust)]
        return (*refused, *models)

    def status(self) -> object:
        """See `Part`."""
        return {
            "models": [
                {
                    **msgspec.structs.asdict(installed),
                    "done_bytes": progress.done_bytes if progress else 0,
                    "total_bytes": progress.total_bytes if progress else 0,
                    "signed_by": held.signed_by if held else "",
                }
                for installed in self.installed()
                for model in (self._models[installed.name],)
                for progress in (model.preparing.progress if model.preparing else None,)
                for held in (model.slots.answering,)
            ]
        }

    # -- the life of the part

    async def run(self) -> None:
        """See `Part`."""
        await self._begin()
        self.begun.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work(group), name="install")
            group.create_task(self._watch(), name="trials")

    async def stop(self) -> None:
        """The service ends in good order: counts are kept, and the next start sees no crash."""
        for model in list(self._models.values()):  # an assignment may still bring others
            if model.lock.locked():
                continue  # in the middle of a step, which writes the record itself
            async with model.lock:
                with contextlib.suppress(StorageError):
                    await model.keep_counts()
        if self._has_counted:
            with contextlib.suppress(StorageError):
                await on_disk(self._means.disk.remove, self._means.data / RUNNING)

    async def _begin(self) -> None:
        """Whatever the power cut short: each model answers with a version that is whole, or with none."""
        if not self._has_counted:
            self._crash = await on_disk(self._last_end)
        for name in await on_disk(self._means.shelf.names):
            model = self._models.setdefault(name, Model(self._means, name))
            model.is_silent = self.mode == "bare"
            await self._begin_model(model)
        if not self._has_counted:
            running = msgspec.json.encode(_Running(self._boot()))
            with contextlib.suppress(StorageError):  # a full disk must not keep the models from answering
                await on_disk(write_durably, self._means.disk, self._means.data / RUNNING, running)
            self._has_counted = True
        self._look_at_trials()

    async def _begin_model(self, model: Model) -> bool:
        """Take up what is known of a model; whether that could be read."""
        wanted = (self._assigned or {}).get(model.name)
        model.assigned = wanted or model.assigned
        try:
            async with model.lock:
                await model.begin(self._crash, wanted.artifact_digest if wanted else "", is_safe=self.mode != "normal")
        except HybridError as exc:
            _log.warning("install.begin model=%s code=%s", model.name, exc.code)
            model.postpone(exc)
        return model.is_begun

    async def resume(self) -> None:
        """The service held out: everything is done again."""
        self.mode = "normal"
        for model in list(self._models.values()):  # an assignment may bring others meanwhile
            model.is_silent = False
            await self._begin_model(model)
        self.hurry()

    def _last_end(self) -> Crash | None:
        """How the service before this one ended; None for an orderly stop, and when it was counted."""
        path = self._means.data / RUNNING
        if self._means.disk.size(path) < 0:
            return None
        try:
            boot = msgspec.json.decode(self._means.disk.read(path), type=_Running).boot
        except (msgspec.MsgspecError, OSError, UnicodeDecodeError):
            boot = ""
        return Crash(is_reboot=boot != self._boot() or not boot, at_s=self._means.now_s())

    async def _work(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            await self._take_assignments()
            for model in self._in_turn():
                if self._wake.is_set():
                    break
                task = group.create_task(self._advance(model), name=f"install {model.name}")
                self._fetching = (model, task)
                try:
                    await asyncio.wait((task,))
                finally:
                    self._fetching = None
                    if not task.done():
                        task.cancel()
                self._look_at_trials()
            if not self._wake.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._wake.wait()

    def _in_turn(self) -> list[Model]:
        """Models that have something to do now, the most important first."""
        now_s = asyncio.get_running_loop().time()
        waiting = [
            model
            for model in self._models.values()
            if model.not_before_s <= now_s and (not model.is_begun or model.is_unsaved or self._has_work(model))
        ]
        return sorted(waiting, key=lambda model: (-_priority(model), model.name))

    def _has_work(self, model: Model) -> bool:
        if model.task == "clear":
            return True
        if self.mode != "normal" or model.task in ("rest", "watch"):
            return False
        return model.assigned is not None or model.task in ("rehearse", "warm")

    def _pause_s(self) -> float:
        """Until the next model may go on."""
        now_s = asyncio.get_running_loop().time()
        pauses = [
            max(model.not_before_s - now_s, 60.0 if model.task == "wait" else 0.05)
            for model in self._models.values()
            if not model.is_begun or model.is_unsaved or (self._has_work(model) and model.task != "clear")
        ]
        return min(pauses, default=3600.0)

    async def _take_assignments(self) -> None:
        if self._assigned is None or not self._is_new:
            return
        self._is_new = False
        assigned = self._assigned
        for name in sorted({*assigned, *self._models}):
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = Model(self._means, name)
                await self._begin_model(model)
            async with model.lock:
                try:
                    await model.assign(assigned.get(name))
                except HybridError as exc:
                    _log.warning("install.assign model=%s code=%s", name, exc.code)
                    model.postpone(exc)
        await self._clean()
        self._look_at_trials()

    async def _clean(self) -> None:
        """Parts of files go when nobody waits for them any more."""
        if not any(model.task == "fetch" or model.slots.phase == "deferred" for model in self._models.values()):
            with contextlib.suppress(StorageError):
                await on_disk(self._means.downloads.clean, ())

    async def _advance(self, model: Model) -> None:
        if not model.is_begun:
            if not await self._begin_model(model):
                return
            self._is_new = self._assigned is not None
        async with model.lock:
            try:
                await model.keep()
                if self._has_work(model):
                    await model.advance()
                await self._clean()
            except _PASSING as exc:
                _log.info("install.waits model=%s code=%s", model.name, exc.code)
                if model.task == "warm" or isinstance(exc, LinkHeld):
                    await model.defer(exc)
                else:
                    model.postpone(exc)
            except DiskFull as exc:
                _log.warning("install.no_room model=%s", model.name)
                await self._without_room(model, exc)
            except CorruptContent as exc:
                await self._fail(model, exc)
            except StorageError as exc:
                _log.warning("install.storage model=%s %s", model.name, exc)
                model.postpone(exc)
            except HybridError as exc:
                await self._fail(model, exc)

    async def _fail(self, model: Model, error: HybridError) -> None:
        _log.warning("install.failed model=%s code=%s %s", model.name, error.code, error)
        try:
            await model.fail(error)
        except HybridError as exc:
            model.postpone(exc)

    async def _without_room(self, model: Model, error: DiskFull) -> None:
        """A full disk harms everybody: what came of this version goes, and of those that are less important."""
        kept = [
            other
            for other in self._models.values()
            if other is not model
            and (other.task == "fetch" or other.slots.phase == "deferred")
            and _priority(other) >= _priority(model)
        ]
        try:
            await on_disk(self._means.downloads.clean, [sha256 for other in kept for sha256 in other.files])
            await model.defer(error)
        except HybridError as exc:
            model.postpone(exc)

    async def _watch(self) -> None:
        while True:
            await self._trial.wait()
            await asyncio.sleep(self._means.settings.watch_s)
            for model in list(self._models.values()):
                if model.task != "watch":
                    continue
                async with model.lock:
                    try:
                        await model.watch()
                    except HybridError as exc:
                        _log.warning("install.trial model=%s code=%s", model.name, exc.code)
                        model.trouble = exc
                if task_of(model.slots) != "watch":
                    self._wake.set()
            self._look_at_trials()

    def _look_at_trials(self) -> None:
        if any(model.task == "watch" for model in self._models.values()):
            self._trial.set()
        else:
            self._trial.clear()


def _is_sound(assigned: Assigned) -> bool:
    try:
        check_word(assigned.name)
        check_word(assigned.version, "version")
        check_digest(assigned.artifact_digest)
    except BadMessage:
        return False
    return True


def _key(assigned: Assigned) -> tuple[str, str]:
    return assigned.artifact_digest, assigned.rollout


def _priority(model: Model) -> int:
    return model.assigned.priority if model.assigned is not None else _PRIORITY
