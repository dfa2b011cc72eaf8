"""What ways lose and how many bytes they send: on the choosing part, then, for the few left, on the judging one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from hybrid.calibration.judge import Answers, Judge
from hybrid.calibration.record import Cell
from hybrid.calibration.trial import Trial, try_cuts
from hybrid.calibration.trial import Watch as TrialWatch
from hybrid.compress.grading import Grade
from hybrid.compress.journal import Journal
from hybrid.compress.material import Material
from hybrid.compress.splits.ways import Tried, Way
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared

JUDGED_S: Final = 3600.0
"""The last judgement sees every sample."""


@dataclass(slots=True, kw_only=True)
class _PartJudge(Judge):
    """Judges the samples of one part by their place in it, knowing what the judge of all samples knows."""

    whole: Judge
    part: Sequence[int] = field(default_factory=list)

    def before(self, sample: int) -> bool:
        """As of all samples."""
        return self.whole.before(self.part[sample])

    def after(self, sample: int, answers: Answers) -> bool:
        """As of all samples."""
        return self.whole.after(self.part[sample], answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Tries ways on samples.

    Attributes:
        prepared: the model with its cuts.
        material: samples.
        journal: keeps what was tried on a whole part.
        stage: told what is done.
    """

    prepared: Prepared
    material: Material
    journal: Journal
    stage: Callable[[str], None] = lambda _text: None

    def chosen(self, ways: Sequence[Way], budget_s: float) -> list[Tried]:
        """Ways of one cut on the choosing part, as far as the budget goes; those that carry nothing are left out.

        Raises:
            DeviceError, ModelError: the engine refuses a head, a tail or a part of a split.
        """
        self.stage(f"trying cut {ways[0].cut.id}")
        return self._tried(ways, self.material.parts.choose, budget_s)

    def judged(self, ways: Sequence[Way]) -> list[Tried]:
        """Ways of any cuts on the whole judging part; raises as `chosen`."""
        found: list[Tried] = []
        for cut in {way.cut.id: way.cut for way in ways}.values():
            self.stage(f"judging cut {cut.id}")
            here = [way for way in ways if way.cut.id == cut.id]
            tried = self._tried(here, self.material.parts.judge, JUDGED_S)
            found += [Tried(way=each.way, cell=each.cell, is_judged=True) for each in tried]
        return found

    def _tried(self, ways: Sequence[Way], part: Sequence[int], budget_s: float) -> list[Tried]:
        names = [[way.called, way.files.digest if way.files is not None else ""] for way in ways]
        key = ["ways", ways[0].cut.id, names, list(part)]
        kept = self.journal.find(key)
        cells: list[Cell] = []
        if kept is not None:
            cells = msgspec.json.decode(kept.content, type=list[Cell])
        else:
            cells, is_whole = self._cells(ways, part, budget_s)
            if is_whole:
                self.journal.keep(key, cells)
        by_name = {cell.codec: cell for cell in cells}
        return [Tried(way=way, cell=by_name[way.called]) for way in ways if way.called in by_name]

    def _cells(self, ways: Sequence[Way], part: Sequence[int], budget_s: float) -> tuple[list[Cell], bool]:
        whole: list[Cut] = []
        given = self.material.judge
        trial = Trial(
            prepared=self.prepared,
            samples=[self.material.feeds[index] for index in part],
            judge=_PartJudge(
                metric=given.metric, outputs=given.outputs, tolerance=given.tolerance, whole=given, part=part
            ),
            codecs=[way.codec for way in ways if way.files is None],
            splits=[way.files for way in ways if way.files is not None],
        )
        cells = try_cuts(
            trial, [ways[0].cut], budget_s, watch=TrialWatch(), whole=lambda cut, _cells: whole.append(cut)
        )
        return cells, bool(whole)


def promised(cell: Cell, material: Material) -> float:
    """The upper end of the drop's interval on the judging part if answers are lost there as here."""
    if not cell.is_lossy:
        return 0.0
    changed = round(cell.drop * cell.n)
    grade = Grade(metric=material.metric, n=cell.n, n_lost=max(0, changed), n_won=max(0, -changed))
    return grade.promised(len(material.parts.judge))
