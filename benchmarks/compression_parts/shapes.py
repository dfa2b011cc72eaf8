"""Nets of well-known shapes at 224x224: int8 against fp32, ours beside other tools' int8, in turns and one thread."""

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from benchmarks.compression_parts import others
from benchmarks.compression_parts.side_by_side import medians_s
from benchmarks.report import Bar, Record
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from tests.shaped_nets import mobilenet_v2, resnet50

FLOORS: Final = {"ResNet-50": 3.2, "MobileNetV2": 1.8}
"""How many times faster than fp32 int8 is wanted to be on a machine with VNNI."""

N_SAMPLES: Final = 16
SEEDS: Final = (0, 1, 2)


def measured(n_rounds: int = 30) -> Record:
    """Times both nets with each seed's weights and images; the median over the seeds is held against the bars."""
    rows: list[list[str | float]] = []
    ratios: dict[str, list[float]] = {name: [] for name in FLOORS}
    with tempfile.TemporaryDirectory(prefix="shapes-") as kept:
        for seed in SEEDS:
            for name, make in (("ResNet-50", resnet50), ("MobileNetV2", mobilenet_v2)):
                files = _made(make(seed=seed), seed, Path(kept) / f"{name}-{seed}")
                image = np.random.default_rng(seed).standard_normal((1, 3, 224, 224)).astype(np.float32)
                seconds = medians_s(files, image, n_rounds, n_runs=3)
                ratios[name].append(seconds["fp32"] / seconds["hybrid"])
                rows += [
                    [name, float(seed), title, path.stat().st_size / 1e6, 1e3 * seconds[title],
                     seconds["fp32"] / seconds[title]]
                    for title, path in files.items()
                ]  # fmt: skip
    medians = {name: float(np.median(found)) for name, found in ratios.items()}
    return Record(
        name="compression_shapes",
        claim="Nets of the shapes of ResNet-50 and MobileNetV2 at 224²: int8 against fp32",
        method=(
            f"Random weights, seeds {SEEDS}, ranges from {N_SAMPLES} random images; one thread, in turns, the fastest"
            f" of 3 runs a turn, medians of {n_rounds} turns. Bars are held against the median over the seeds;"
            " other tools with the first seed."
        ),
        seed=0,
        columns=("net", "seed", "form", "MB", "ms", "times faster"),
        rows=rows,
        bars=[
            Bar(name=f"{name}: int8 seconds over fp32's", measured=1 / medians[name], limit=1 / floor)
            for name, floor in FLOORS.items()
        ],
    )


def _made(model: onnx.ModelProto, seed: int, folder: Path) -> dict[str, Path]:
    """The forms of a net: fp32, ours, and for the first seed those of other tools that work here."""
    folder.mkdir()
    name = model.graph.input[0].name
    images = np.random.default_rng(seed + 100).standard_normal((N_SAMPLES, 3, 224, 224)).astype(np.float32)
    calibration = folder / "calibration.npz"
    given: dict[str, Any] = {name: images}
    np.savez(calibration, **given)
    files = {"fp32": folder / "fp32.onnx", "hybrid": folder / "hybrid.onnx"}
    onnx.save(model, files["fp32"])
    onnx.save(quantize(model, [{name: image[None]} for image in images], Int8Recipe()).model, files["hybrid"])
    return files if seed else files | others.quantized(files["fp32"], calibration, folder)
