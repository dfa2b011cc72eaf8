"""Measures the parts of the matrix's models on this machine and keeps them for `hybrid bench`.

    python benchmarks/matrix_parts.py [MODEL …] [--seconds S]

The models are trained ones from pinned packages (`tests/zoo.py`); the inputs are real: photographs, lines of printed
text, files, and words.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hybrid.artifact.cache import cache_dir  # noqa: E402
from hybrid.bench.measure import Effort, Subject, measure  # noqa: E402
from hybrid.bench.parts import write  # noqa: E402
from hybrid.bench.shelf import FOLDER, shelved  # noqa: E402
from tests import zoo  # noqa: E402

Feeds = dict[str, np.ndarray]

PHOTOS = (
    "coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png",
)  # fmt: skip
TEXTS = ("page.png", "text.png")
N_SAMPLES = 200
"""No changed answer among so many shows a drop of at most 1.9 % (Wilson, 95 %)."""

RNG = np.random.default_rng(3)


def pictures(names: tuple[str, ...]) -> list[np.ndarray]:
    from PIL import Image

    found = []
    for name in names:
        path = zoo.photo(name)
        if path.is_file():
            found.append(np.asarray(Image.open(path).convert("RGB")))
    return found


def crops(images: list[np.ndarray], n: int, height: int, width: int, least: float = 0.6) -> list[np.ndarray]:
    """Random crops of the shape's aspect, each at least that share of the picture, resized."""
    from PIL import Image

    made = []
    for number in range(n):
        image = images[number % len(images)]
        scale = RNG.uniform(least, 1.0) * min(image.shape[0] / height, image.shape[1] / width)
        rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
        top, left = (
            int(RNG.integers(0, 1 + max(0, size - part)))
            for size, part in zip(image.shape[:2], (rows, columns), strict=True)
        )
        part = Image.fromarray(image[top : top + rows, left : left + columns])
        pixels = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
        made.append(pixels[:, ::-1] if number // len(images) % 2 else pixels)
    return made


def tensor(pixels: np.ndarray, mean: tuple[float, ...], deviation: tuple[float, ...]) -> np.ndarray:
    scaled = (pixels.astype(np.float32) / 255.0 - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def efficientnet() -> tuple[list[Feeds], str]:
    images = crops(pictures(PHOTOS), N_SAMPLES, 224, 224)
    return [{"image": tensor(image, *HALF)} for image in images], "crops of photographs of scikit-image, 224 x 224"


def detector(size: int, n: int) -> tuple[list[Feeds], str]:
    images = crops(pictures((*TEXTS, *PHOTOS)), n, size, size)
    return [{"x": tensor(image, *IMAGENET)} for image in images], f"crops of pages and photographs, {size} x {size}"


def recogniser() -> tuple[list[Feeds], str]:
    images = crops(pictures(TEXTS), N_SAMPLES, 48, 320, least=0.5)
    return [{"x": tensor(image, *HALF)} for image in images], "crops of printed pages, 48 x 320"


def magika() -> tuple[list[Feeds], str]:
    files = sorted(Path(np.__file__).parent.rglob("*"))
    files = [file for file in files if file.is_file() and file.stat().st_size > 2048]
    picked = [files[int(at)] for at in RNG.choice(len(files), N_SAMPLES, replace=False)]
    feeds = []
    for file in picked:
        content = file.read_bytes()
        both = content[:1024] + content[-1024:]
        feeds.append({"bytes": np.frombuffer(both, np.uint8).astype(np.int32)[None]})
    return feeds, "first and last 1024 bytes of files of numpy's package"


def minilm() -> tuple[list[Feeds], str]:
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))[:12]).split()
    feeds = []
    for start in range(0, 128 * N_SAMPLES, 128):
        words = text[start % len(text) :][:126]
        ids = np.full((1, 128), 0, np.int64)
        tokens = [101, *(999 + crc32(word.lower().encode()) % 29_000 for word in words), 102]
        ids[0, : len(tokens)] = tokens
        feeds.append({"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
    return feeds, "words of this project's pages, hashed to token ids, 128 tokens"


MODELS = {
    "efficientnet": ("efficientnet", "EfficientNet-Lite0 (ImageNet)", efficientnet),
    "ppocr_rec": ("ppocr_rec", "PP-OCRv6 recogniser (text lines)", recogniser),
    "ppocr_det": ("ppocr_det", "PP-OCRv6 detector (text), 320 x 320", lambda: detector(320, N_SAMPLES)),
    "ppocr_det640": ("ppocr_det", "PP-OCRv6 detector (text), 640 x 640", lambda: detector(640, N_SAMPLES)),
    "magika": ("magika", "Magika (file types)", magika),
    "minilm": ("minilm", "MiniLM-L3 (sentences)", minilm),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing, a model")
    parser.add_argument("--calibration", type=float, default=150.0, help="seconds of calibrating codecs, a model")
    parser.add_argument("--again", action="store_true", help="time anew, keep the calibrations that are there")
    given = parser.parse_args()
    for name in given.models:
        file, title, samples_of = MODELS[name]
        samples, data = samples_of()
        subject = Subject(name=name, path=zoo.path(file), samples=samples, title=title, data=data)
        effort = Effort(timing_s=given.seconds, calibration_s=0.0 if given.again else given.calibration)
        known = shelved([name])[0] if given.again else None
        parts = measure(
            subject,
            effort,
            cache=cache_dir() / "graphs",
            known=known,
            step=partial(print, f"{name}:", flush=True),
        )
        path = write(parts, FOLDER)
        print(f"{name}: {1e3 * parts.whole_s:.1f} ms whole, {len(parts.cuts) - 1} interior cuts -> {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
