"""TensorFlow Lite forms of the Fashion-MNIST net in LiteRT and in the old tflite-runtime: accuracy, bytes, time."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.compression_parts import foreign, tasks
from benchmarks.report import Bar, Record
from compression.tflite.export import export
from compression.tflite.int8 import quantized
from compression.tflite.runtimes import refusal_on_old_runtime
from hybrid.calibration.intervals import paired_drop

SEEDS: Final = (0, 1, 2)
FORMS: Final = ("float", "int8", "dynamic")
N_CALIBRATED: Final = 300
N_RUNS: Final = 300
MOST_LOST: Final = 0.5
OLD: Final = "tflite-runtime 2.14"


def measured() -> Record:
    """Each form of each seed's net, in each runtime that can be installed here."""
    task = tasks.fashion()
    runtimes = {"LiteRT": Path(sys.executable)}
    try:
        runtimes[OLD] = foreign.python_of("tflite-runtime")
    except foreign.Unavailable as exc:
        print(f"{OLD}: {exc}", flush=True)
    right: dict[tuple[str, str], list[np.ndarray]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, int] = {}
    refusals: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="tflite-") as kept:
        images = Path(kept) / "images.npz"
        np.savez(images, x=task.test_images)
        for seed in SEEDS:
            files = _forms(task, seed, Path(kept))
            sizes = {form: path.stat().st_size for form, path in files.items()}
            refusals = {form: refusal_on_old_runtime(path.read_bytes()) for form, path in files.items()}
            for runtime, python in runtimes.items():
                found = _run(python, images, Path(kept) / "found.npz", files)
                for form, path in files.items():
                    answers = found[f"scores:{path}"].argmax(1) == task.test_labels
                    right.setdefault((runtime, form), []).append(answers)
                    seconds.setdefault((runtime, form), []).append(float(np.median(found[f"seconds:{path}"])))
    whole = np.concatenate(right["LiteRT", "float"])
    base_s = np.median(seconds["LiteRT", "float"])
    rows: list[list[str | float]] = []
    lost: dict[tuple[str, str], float] = {}
    for (runtime, form), answers in right.items():
        each = np.concatenate(answers)
        counts = int((whole & ~each).sum()), int((each & ~whole).sum()), len(each)
        low, high = paired_drop(*counts)
        lost[runtime, form] = 100 * high
        rows.append([
            runtime, form, sizes[form] / 1e3, f"{100 * each.mean():.2f}", f"{100 * low:.2f} to {100 * high:.2f}",
            float(base_s / np.median(seconds[runtime, form])), "refused" if runtime == OLD and refusals[form] else "",
        ])  # fmt: skip
    wrong = [form for form in FORMS if lost.get((OLD, form), 0.0) > MOST_LOST and not refusals[form]]
    return Record(
        name="compression_tflite",
        claim="TensorFlow Lite: int8 in LiteRT, and what the old runtime computes wrongly",
        method=(
            f"The Fashion-MNIST net of `compression_fashion`, seeds {SEEDS}, exported by litert-torch and quantized by"
            f" litert-quantizer with {N_CALIBRATED} images; 10,000 test images a seed, all seeds together; one thread,"
            f" in turns, medians of {N_RUNS} runs. Lost in points against LiteRT's float, 95 % interval. Refused: by"
            " us, before such a file reaches a device with that runtime."
        ),
        seed=0,
        columns=("runtime", "form", "kB", "accuracy %", "points lost", "times as fast as float in LiteRT", "verdict"),
        rows=rows,
        bars=[
            Bar(name="points that int8 loses in LiteRT, upper end", measured=lost["LiteRT", "int8"], limit=MOST_LOST),
            Bar(name="forms that the old runtime computes wrongly and that are not refused for it",
                measured=float(len(wrong)), limit=0.0),
        ],
    )  # fmt: skip


def _forms(task: tasks.Task, seed: int, folder: Path) -> dict[str, Path]:
    whole = export(tasks.trained(task, seed), {"image": task.held_images[:1]}, ["scores"])
    samples = [{"image": image[None]} for image in task.held_images[:N_CALIBRATED]]
    made = {"float": whole, "int8": quantized(whole, samples, "int8"), "dynamic": quantized(whole, samples, "dynamic")}
    files = {form: folder / f"{form}.tflite" for form in FORMS}
    for form, path in files.items():
        path.write_bytes(made[form])
    return files


def _run(python: Path, images: Path, out: Path, files: dict[str, Path]) -> dict[str, np.ndarray]:
    command = [str(python), str(foreign.TOOLS / "tflite_timing.py"), str(images), str(out), str(N_RUNS)]
    subprocess.run([*command, *map(str, files.values())], check=True, timeout=900, capture_output=True)
    with np.load(out) as loaded:
        return {name: loaded[name] for name in loaded.files}
