"""The digits net: size, time and accuracy of ours and of other tools' forms, all timed in turns and one thread."""

import statistics
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from benchmarks.compression_parts import others, tasks
from benchmarks.compression_parts.ours import compressed
from benchmarks.compression_parts.side_by_side import medians_s, right
from benchmarks.report import Bar, Record
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.training.exporting import export
from hybrid.calibration.intervals import paired_drop

SEEDS: Final = (0, 1, 2)
MAX_DROP: Final = 0.05
"""168 of the 300 held samples judge: each answer lost costs a point of the bound. The table judges by others."""
LEAST_SMALLER, LEAST_FASTER = 12.0, 6.0
N_CALIBRATED: Final = 300
FINE_TUNING: Final = 3
FP32: Final = "fp32"
OURS: Final = "hybrid compress"


def measured(minutes: float = 12.0) -> Record:
    """Every tool's form of the net of each seed."""
    task = tasks.digits()
    found: dict[str, list[tuple[float, float, int, int, int]]] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="digits-") as kept:
            files = _forms(task, seed, Path(kept), minutes)
            seconds = medians_s(files, task.test_images[:1])
            whole = right(files[FP32], task.test_images, task.test_labels)
            for title, path in files.items():
                answers = right(path, task.test_images, task.test_labels)
                lost, won = int((whole & ~answers).sum()), int((answers & ~whole).sum())
                ratio = files[FP32].stat().st_size / path.stat().st_size
                found.setdefault(title, []).append(
                    (ratio, seconds[FP32] / seconds[title], int(answers.sum()), lost, won)
                )
    smaller, faster = (statistics.median(each[at] for each in found[OURS]) for at in (0, 1))
    return Record(
        name="compression_digits",
        claim="The digits net: `hybrid compress` beside other tools",
        method=(
            "scikit-learn's digits at 32x32, a residual and inverted-residual net of 658,282 parameters, trained with"
            f" seeds {SEEDS}; {len(task.held_images)} images to calibrate and choose, {len(task.test_images)} others to"
            " judge (differences below half a point mean nothing). Ratios to the fp32 export of the same seed, one"
            " thread, in turns; medians over the seeds. Accuracy lost in points with its 95 % interval over all seeds"
            f" together. Torch-Pruning takes half of the channels and trains {FINE_TUNING} epochs, as our trials did."
        ),
        seed=0,
        columns=("form", "seeds", "times smaller", "times faster", "accuracy %", "points lost", "95 % interval"),
        rows=[_row(title, each, len(task.test_images)) for title, each in found.items()],
        bars=[
            Bar(name="bytes of ours over fp32's", measured=1 / smaller, limit=1 / LEAST_SMALLER),
            Bar(name="seconds of ours over fp32's", measured=1 / faster, limit=1 / LEAST_FASTER),
        ],
    )


def _row(title: str, each: list[tuple[float, float, int, int, int]], n: int) -> list[str | float]:
    smaller, faster = (statistics.median(one[at] for one in each) for at in (0, 1))
    n_right, lost, won = (int(sum(one[at] for one in each)) for at in (2, 3, 4))
    low, high = paired_drop(lost, won, n * len(each))
    share = 100 * n_right / (n * len(each))
    interval = f"{100 * low:.2f} to {100 * high:.2f}" if title != FP32 else ""
    return [title, float(len(each)), smaller, faster, f"{share:.2f}", 100 * (lost - won) / (n * len(each)), interval]


def _forms(task: tasks.Task, seed: int, folder: Path, minutes: float) -> dict[str, Path]:
    """The forms of one seed's net that could be made here."""
    net = tasks.trained(task, seed)
    example = {"image": task.held_images[:2]}
    calibration = folder / "calibration.npz"
    images = task.held_images[:N_CALIBRATED]
    np.savez(calibration, image=images)
    samples = [{"image": image[None]} for image in images]
    files = {FP32: folder / "fp32.onnx"}
    whole = export(net, example, ("scores",))
    onnx.save(whole, files[FP32])
    files |= others.quantized(files[FP32], calibration, folder)
    pruned = export(others.pruned(net, task, 0.5, FINE_TUNING, seed), example, ("scores",))
    files["Torch-Pruning 1.6, half"] = folder / "pruned.onnx"
    onnx.save(pruned, files["Torch-Pruning 1.6, half"])
    files["Torch-Pruning half, then int8"] = folder / "pruned8.onnx"
    onnx.save(quantize(pruned, samples, Int8Recipe()).model, files["Torch-Pruning half, then int8"])
    ours = compressed(task, seed, max_drop=MAX_DROP, minutes=minutes)
    files[OURS] = next(iter(ours.variants.values()))
    return files
