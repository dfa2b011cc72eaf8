"""Fashion-MNIST: accuracy, bytes and time of everything that `hybrid compress` ships, and of other tools' forms."""

import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from benchmarks.compression_parts import others, tasks
from benchmarks.compression_parts.ours import compressed
from benchmarks.compression_parts.side_by_side import medians_s, right
from benchmarks.report import Bar, Record
from compression.training.exporting import export
from hybrid.calibration.intervals import paired_drop

SEEDS: Final = (0, 1, 2)
MAX_DROP: Final = 0.005
FURTHER_DROP: Final = 0.02
"""A second floor, for the part of the front where other tools' pruned forms lie."""

FURTHER_MINUTES: Final = 6.0
N_CALIBRATED: Final = 300
RATIOS: Final = (0.25, 0.5)
FINE_TUNING: Final = 2
FP32: Final = "fp32"
LEVEL_POINTS, LEVEL_RATIO = 0.1, 1.03
"""What is no further apart counts as level: a tenth of a point, 3 % of bytes or time."""


@dataclass(slots=True)
class Form:
    """One form over the seeds: shares of fp32's bytes and seconds, and how often answers were lost and won."""

    bytes_ratio: list[float] = field(default_factory=list)
    seconds_ratio: list[float] = field(default_factory=list)
    n_right: int = 0
    n_lost: int = 0
    n_won: int = 0
    n: int = 0

    @property
    def lost(self) -> float:
        """Points of accuracy."""
        return 100 * (self.n_lost - self.n_won) / self.n

    def reaches(self, other: "Form") -> bool:
        """Whether this form is as good as another in all three, or better."""
        return (
            self.lost <= other.lost + LEVEL_POINTS
            and statistics.median(self.bytes_ratio) <= LEVEL_RATIO * statistics.median(other.bytes_ratio)
            and statistics.median(self.seconds_ratio) <= LEVEL_RATIO * statistics.median(other.seconds_ratio)
        )


def measured(minutes: float = 12.0) -> Record:
    """Every form of the net of each seed."""
    task = tasks.fashion()
    forms: dict[str, Form] = {}
    ours: set[str] = set()
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="fashion-") as kept:
            files, mine = _files(task, seed, Path(kept), minutes)
            ours |= mine
            seconds = medians_s(files, task.test_images[:1])
            whole = right(files[FP32], task.test_images, task.test_labels)
            for title, path in files.items():
                form, answers = forms.setdefault(title, Form()), right(path, task.test_images, task.test_labels)
                form.bytes_ratio.append(path.stat().st_size / files[FP32].stat().st_size)
                form.seconds_ratio.append(seconds[title] / seconds[FP32])
                form.n_right += int(answers.sum())
                form.n_lost += int((whole & ~answers).sum())
                form.n_won += int((answers & ~whole).sum())
                form.n += len(answers)
    behind = [
        title
        for title, form in forms.items()
        if title not in ours and title != FP32 and not any(forms[mine].reaches(form) for mine in ours)
    ]
    first = forms[OURS_FIRST]
    highest = 100 * paired_drop(first.n_lost, first.n_won, first.n)[1]
    return Record(
        name="compression_fashion",
        claim="Fashion-MNIST: accuracy, bytes and time beside other tools",
        method=(
            f"A residual and inverted-residual net of 83,002 parameters trained with seeds {SEEDS} on"
            f" {len(task.images):,} images; {len(task.held_images):,} others to calibrate and choose, judged on the"
            f" {len(task.test_images):,} test images, all seeds together. Ratios to the fp32 export, one thread, in"
            f" turns, medians over the seeds. Torch-Pruning alone trains {FINE_TUNING} epochs. Every variant that"
            f" `hybrid compress` shipped under --max-drop {MAX_DROP} and, going on from there,"
            f" {FURTHER_DROP} is a row. Another tool's form counts as reached where"
            f" one of ours loses at most {LEVEL_POINTS} points more and has at most {LEVEL_RATIO} x its bytes and time."
        ),
        seed=0,
        columns=("form", "seeds", "times smaller", "times faster", "accuracy %", "points lost", "95 % interval"),
        rows=[_row(title, form) for title, form in forms.items()],
        bars=[
            Bar(name="points lost by the variant that ships first, upper end", measured=highest, limit=0.5),
            Bar(name=f"forms of other tools that ours do not reach ({', '.join(behind) or 'none'})",
                measured=float(len(behind)), limit=0.0),
        ],
    )  # fmt: skip


OURS: Final = "hybrid compress"
OURS_FIRST: Final = f"{OURS}, first"


def _row(title: str, form: Form) -> list[str | float]:
    low, high = paired_drop(form.n_lost, form.n_won, form.n)
    interval = f"{100 * low:.2f} to {100 * high:.2f}" if title != FP32 else ""
    smaller, faster = (1 / statistics.median(each) for each in (form.bytes_ratio, form.seconds_ratio))
    share = f"{100 * form.n_right / form.n:.2f}"
    return [title, float(len(form.bytes_ratio)), smaller, faster, share, form.lost, interval]


def _files(task: tasks.Task, seed: int, folder: Path, minutes: float) -> tuple[dict[str, Path], set[str]]:
    """The forms of one seed's net, and which are ours."""
    net = tasks.trained(task, seed)
    example = {"image": task.held_images[:2]}
    calibration = folder / "calibration.npz"
    np.savez(calibration, image=task.held_images[:N_CALIBRATED])
    files = {FP32: folder / "fp32.onnx"}
    onnx.save(export(net, example, ("scores",)), files[FP32])
    files |= others.quantized(files[FP32], calibration, folder)
    for ratio in RATIOS:
        title = f"Torch-Pruning 1.6, {ratio:.0%}"
        files[title] = folder / f"pruned-{ratio}.onnx"
        onnx.save(export(others.pruned(net, task, ratio, FINE_TUNING, seed), example, ("scores",)), files[title])
    strict = compressed(task, seed, max_drop=MAX_DROP, minutes=minutes)
    loose = compressed(task, seed, max_drop=FURTHER_DROP, minutes=FURTHER_MINUTES, begun=strict.folder)
    ours = {}
    for made, title in ((strict, OURS), (loose, f"{OURS} --max-drop {FURTHER_DROP}")):
        for number, path in enumerate(made.variants.values()):
            ours[f"{title}, {('first', 'second', 'third')[number]}"] = path
    return files | ours, set(ours)
