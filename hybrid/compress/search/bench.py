"""Does the steps of a search: makes, times and grades candidates, and keeps each result in the journal."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from compression.errors import CompressionError, NothingPrunable, NotMeasurable
from compression.measuring import Timing
from devices.errors import DeviceError
from hybrid.artifact.digest import files_of_model
from hybrid.compress.grading import Grade, graded
from hybrid.compress.interruption import hides_interrupt
from hybrid.compress.journal import Journal
from hybrid.compress.making.maker import Maker
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.material import Material
from hybrid.compress.search.standing import Cost, Done
from hybrid.compress.search.step import Step
from hybrid.compress.timing.timer import DeviceTold, Timer
from hybrid.errors import EngineFailed, StorageError

log = logging.getLogger("hybrid.compress")

FAILURES = (CompressionError, DeviceError, EngineFailed)
"""What costs a candidate, not the search."""


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate beside the original in one process; or why not."""

    seconds: Timing | None = None
    original: Timing | None = None
    n_bytes: int = 0
    failed: str = ""


class Widths(msgspec.Struct, frozen=True, kw_only=True):
    """What the layers of a pruned model are as wide as, empty where nothing is gone; or why there is none.

    Attributes:
        widths, failed: these.
        is_unprunable: whether there is none at any other ratio either.
    """

    widths: str = ""
    failed: str = ""
    is_unprunable: bool = False


class Graded(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate's grade on the choosing part; or why there is none."""

    grade: Grade | None = None
    failed: str = ""


Found = TypeVar("Found", Timed, Widths, Graded)


def device_key(told: DeviceTold) -> tuple[object, ...]:
    """What a timing depends on; the factor of an emulation is measured anew by each call, and in no ratio."""
    return told.name, told.kind, told.threads


@dataclass(slots=True, kw_only=True)
class Bench:
    """Where candidates are tried.

    Attributes:
        maker: makes them.
        material: samples.
        journal: keeps what was found.
        timer: of the device.
        original_bytes: of the uncompressed model's files.
        stage: told what is done.
        timed: what was found, by `Recipe.timed_as`.
        grades: what was found, by recipe.
        widths: what was found, by the recipe of a pruned model in float.
    """

    maker: Maker
    material: Material
    journal: Journal
    timer: Timer
    original_bytes: int
    stage: Callable[[str], None] = lambda _text: None
    timed: dict[Recipe, Timed] = field(default_factory=dict)
    grades: dict[Recipe, Graded] = field(default_factory=dict)
    widths: dict[Recipe, Widths] = field(default_factory=dict)

    @property
    def done(self) -> Done:
        """What is known, as the search takes it."""
        return Done(
            costs={recipe: self._cost(found) for recipe, found in self.timed.items()},
            grades={recipe: found.grade for recipe, found in self.grades.items()},
            widths={recipe: None if found.failed else found.widths for recipe, found in self.widths.items()},
            unprunable=tuple(self.unprunable),
        )

    @property
    def unprunable(self) -> dict[str, str]:
        """What no channel can be taken from at any ratio, `graph` or `module`, and why."""
        return {recipe.pruned: found.failed for recipe, found in self.widths.items() if found.is_unprunable}

    def do(self, step: Step) -> None:
        """One step; a candidate that fails is known as such afterwards.

        Raises:
            DiskFull, StorageError: its result cannot be kept.
        """
        if step.kind == "time":
            self.timed[step.recipe.timed_as] = self._time(step.recipe.timed_as)
        elif step.kind == "widths":
            self.widths[step.recipe] = self._widths(step.recipe)
        else:
            self.grades[step.recipe] = self._grade(step.recipe)

    def why_failed(self, recipe: Recipe) -> str:
        """Why a recipe could not be tried; empty where it could."""
        timed, found = self.timed.get(recipe.timed_as), self.grades.get(recipe)
        return (found.failed if found is not None else "") or (timed.failed if timed is not None else "")

    def _cost(self, found: Timed) -> Cost | None:
        if found.seconds is None or found.original is None:
            return None
        mine, whole = found.seconds, found.original
        # Of the fastest blocks: beside two busy programs the ratio of medians of one model went from 0.44 to 0.61, this
        # one from 0.45 to 0.46. It only guides the search: what is shipped is judged by both.
        return Cost(seconds=mine.low_s / whole.low_s, bytes=found.n_bytes / self.original_bytes)

    def _time(self, recipe: Recipe) -> Timed:
        def timed() -> Timed:
            path, _ = self.maker.model(recipe)
            self.stage(f"timing {recipe.text}")
            try:
                original, seconds = self.timer([self.maker.path, path], self.material.feeds[0])
            except NotMeasurable:
                self.timer([self.maker.path], self.material.feeds[0])  # a device that is gone ends the search
                raise
            return Timed(seconds=seconds, original=original, n_bytes=bytes_of(path))

        return self._found(Timed, ["time", *self._model_key(recipe), *device_key(self.timer.told)], timed)

    def _widths(self, recipe: Recipe) -> Widths:
        """A pruned model that is not trained: its layers' widths."""
        key = ["widths", *self._model_key(recipe)]

        def widths() -> Widths:
            try:
                return Widths(widths=self.maker.widths(recipe))
            except NothingPrunable as exc:
                return Widths(failed=str(exc), is_unprunable=True)

        return self._found(Widths, key, widths)

    def _grade(self, recipe: Recipe) -> Graded:
        def grade() -> Graded:
            path, _ = self.maker.model(recipe)
            self.stage(f"grading {recipe.text}")
            return Graded(grade=graded(path, self.material, self.material.parts.choose))

        return self._found(Graded, ["grade", *self._model_key(recipe)], grade)

    def _model_key(self, recipe: Recipe) -> tuple[object, ...]:
        """What a model depends on beside the journal's facts."""
        return recipe, self.maker.saving if recipe.pruned == "graph" else ""

    def _found(self, kind: type[Found], key: list[object], call: Callable[[], Found]) -> Found:
        """What the journal has under a key; else what is found now, and kept unless another try may find more."""
        kept = self.journal.find(key)
        if kept is not None:
            return msgspec.json.decode(kept.content, type=kind)
        found, failed, is_lasting = _tried(call)
        if found is None:
            found = kind(failed=failed)
        return msgspec.json.decode(self.journal.keep(key, found).content, type=kind) if is_lasting else found


def bytes_of(model: Path) -> int:
    """Of a model's file and what lies beside it."""
    return sum(file.size for file in files_of_model(model))


def _tried(call: Callable[[], Found]) -> tuple[Found | None, str, bool]:
    """What a call gives, else why it failed; and whether that would be the same another time.

    Raises:
        StorageError: there is no room to go on.
        NotMeasurable: of the original: there is no device to go on with.
        KeyboardInterrupt: Ctrl-C, also where another error hides it.
    """
    try:
        return call(), "", True
    except Exception as exc:
        if hides_interrupt(exc):
            raise KeyboardInterrupt from exc
        if isinstance(exc, StorageError) or _is_gone(exc):
            raise
        if isinstance(exc, FAILURES):
            return None, str(exc), not isinstance(exc, NotMeasurable)
        log.exception("compress.candidate_failed")
        return None, f"{type(exc).__name__}: {exc} (a fault of this program; please report it)", False


def _is_gone(error: Exception) -> bool:
    """Whether the original could not be timed either, after a candidate could not."""
    return isinstance(error, NotMeasurable) and isinstance(error.__context__, NotMeasurable)
