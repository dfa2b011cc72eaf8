"""EfficientNet-Lite0 with its real weights on labelled photos: int8, calibrated on one half and asked on the other."""

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from PIL import Image

from benchmarks.codecs_at_cuts import PHOTOS, crops
from benchmarks.compression_parts.side_by_side import medians_s, opened
from benchmarks.report import Bar, Record
from compression.quantization.prepare import prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from tests import zoo

RECIPES: Final = {
    "minmax": Int8Recipe(),
    "minmax, bias corrected": Int8Recipe(bias_corrected=True),
    "percentile, bias corrected": Int8Recipe(ranges="percentile", bias_corrected=True),
    "entropy": Int8Recipe(ranges="entropy"),
}
ADVISED: Final = "minmax, bias corrected"
MOST_FLIPS: Final = 1
LEAST_SMALLER: Final = 3.5
SIZE: Final = 224
FP32: Final = "fp32"


def measured(n_rounds: int = 40) -> Record:
    """Each recipe twice: every second crop calibrates, the others are asked, then the other way round."""
    model = onnx.load(zoo.path(zoo.EFFICIENTNET))
    name = model.graph.input[0].name
    images, labels = _images()
    halves = [np.arange(len(images)) % 2 == half for half in (0, 1)]
    prepared = prepare(model)
    flips: dict[str, list[int]] = {}
    files: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix="photos-") as kept:
        files[FP32] = Path(kept) / "fp32.onnx"
        onnx.save(model, files[FP32])
        before = _classes(files[FP32], images)
        for title, recipe in RECIPES.items():
            for number, half in enumerate(halves):
                samples = [{name: images[at : at + 1]} for at in np.flatnonzero(half)]
                path = Path(kept) / f"{len(files)}-{number}.onnx"
                onnx.save(quantize(prepared, samples, recipe).model, path)
                asked = ~half & np.array([bool(label) for label in labels])
                flips.setdefault(title, []).append(int((_classes(path, images) != before)[asked].sum()))
            files[title] = path
        seconds = medians_s(files, images[:1], n_rounds)
        sizes = {title: path.stat().st_size for title, path in files.items()}
    rows: list[list[str | float]] = [
        [title, ", ".join(map(str, flips.get(title, ["–"]))), sizes[FP32] / sizes[title], 1e3 * seconds[title],
         seconds[FP32] / seconds[title]]
        for title in files
    ]  # fmt: skip
    n_labelled = sum(bool(label) for label in labels)
    return Record(
        name="compression_photos",
        claim="EfficientNet-Lite0 with its ImageNet weights: int8 on labelled photos",
        method=(
            f"{len(images)} crops of {len(PHOTOS)} photographs, {n_labelled} of which show what ImageNet has a class"
            " for; every second crop calibrates and the others are asked, then the other way round. Flips are labelled"
            " crops whose first class is another one than fp32's, of one half and of the other. One thread, in turns,"
            f" medians of {n_rounds} turns."
        ),
        seed=0,
        columns=("form", "flips of the halves", "times smaller", "ms", "times faster"),
        rows=rows,
        bars=[
            Bar(name=f"flips of a half ({ADVISED})", measured=max(flips[ADVISED]), limit=MOST_FLIPS),
            Bar(name="bytes over fp32's", measured=sizes[ADVISED] / sizes[FP32], limit=1 / LEAST_SMALLER),
            Bar(name="seconds over fp32's", measured=seconds[ADVISED] / seconds[FP32], limit=1.0),
        ],
    )


def _images() -> tuple[np.ndarray, list[Any]]:
    """All crops as the model takes them, and the classes that are right of each; empty where nobody knows."""
    found, labels = [], []
    for name, right in PHOTOS.items():
        for crop in crops(name):
            pixels = np.asarray(crop.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
            found.append(((pixels - 127.5) / 127.5).transpose(2, 0, 1))
            labels.append(right)
    return np.stack(found).astype(np.float32), labels


def _classes(path: Path, images: np.ndarray) -> np.ndarray:
    session = opened(path)
    name = session.get_inputs()[0].name
    return np.array([int(session.run(None, {name: image[None]})[0].argmax()) for image in images])
