"""What each codec makes of a photograph normalised for a network, in bytes and milliseconds, beside its neighbours."""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import zstandard
from PIL import Image

from benchmarks.report import Bar, Record, publish
from compression.codecs import catalog
from compression.tensor import TensorSpec
from tests import zoo

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "page.png")
SIZE = (640, 640)
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
N_ROUNDS = 9
CODECS = ("none", "lossless", "lossless-webp", "fp16", "jpeg", "jpeg75", "webp", "webp75")
"""Those that are meant for images; what crosses inside a model has `codecs_at_cuts.py`."""

ENCODE_LIMIT_MS = 10.0


def pixels_of(name: str) -> np.ndarray:
    """The photograph as a detector takes it: uint8 `(640, 640, 3)`."""
    with Image.open(zoo.photo(name)) as image:
        return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def normalised(pixels: np.ndarray) -> np.ndarray:
    """FP32 `(1, 3, 640, 640)` with ImageNet's mean and deviation."""
    values = ((pixels / 255 - MEAN) / DEVIATION).astype(np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))[np.newaxis]


def file_of(pixels: np.ndarray, kind: str, **options: int | bool) -> bytes:
    """An image file of the bytes before they were normalised."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def least_ms(call: Callable[[], object]) -> float:
    """CPU time of the shortest of several calls, all in this thread: other work on the machine hardly moves it."""
    seconds = []
    for _ in range(N_ROUNDS):
        started_s = time.thread_time()
        call()
        seconds.append(time.thread_time() - started_s)
    return 1e3 * min(seconds)


def rows_of_catalog(arrays: list[np.ndarray]) -> list[tuple[str | float, ...]]:
    """One row a codec: medians over the photographs."""
    rows: list[tuple[str | float, ...]] = []
    for codec in map(catalog.get, CODECS):
        sizes, encode_ms, decode_ms, errors = [], [], [], []
        for array in arrays:
            spec = TensorSpec(name="x", dtype="FP32", shape=array.shape)
            payload = codec.encode(array)
            sizes.append(len(payload) / 1e3)
            encode_ms.append(least_ms(partial(codec.encode, array)))
            decode_ms.append(least_ms(partial(codec.decode, payload, spec)))
            errors.append(float(np.abs(codec.decode(payload, spec) - array).mean()))
        kilobytes = statistics.median(sizes)
        share = kilobytes / (arrays[0].nbytes / 1e3)
        rows.append(
            (
                f"`{codec.name}`",
                kilobytes,
                share,
                statistics.median(encode_ms),
                statistics.median(decode_ms),
                statistics.median(errors),
            )
        )
    return rows


def rows_of_neighbours(photos: list[np.ndarray], arrays: list[np.ndarray]) -> list[tuple[str | float, ...]]:
    """zstd of the floats, and image formats of the bytes that they came from."""
    makers: dict[str, Callable[[int], bytes]] = {
        "zstd level 1 of the floats": lambda i: zstandard.ZstdCompressor(level=1).compress(arrays[i].data),
        "PNG level 1 of the bytes": lambda i: file_of(photos[i], "PNG", compress_level=1),
        "WebP lossless, method 0, of the bytes": lambda i: file_of(
            photos[i], "WEBP", lossless=True, method=0, quality=0
        ),
    }
    rows: list[tuple[str | float, ...]] = []
    for name, make in makers.items():
        kilobytes = statistics.median(len(make(i)) / 1e3 for i in range(len(photos)))
        milliseconds = statistics.median(least_ms(partial(make, i)) for i in range(len(photos)))
        rows.append((name, kilobytes, kilobytes / (arrays[0].nbytes / 1e3), milliseconds, "", 0.0))
    return rows


def main() -> int:
    """Measures every codec on every photograph and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    photos = [pixels_of(name) for name in PHOTOS]
    arrays = [normalised(pixels) for pixels in photos]
    rows = rows_of_catalog(arrays)
    lossless = next(row for row in rows if row[0] == "`lossless`")
    return publish(
        Record(
            name="codecs",
            claim="A normalised photograph travels as its bytes, and comes back bit for bit",
            method=f"{len(PHOTOS)} photographs of scikit-image, resized to 640 x 640, normalised with ImageNet's mean"
            f" and deviation, FP32 (1, 3, 640, 640). Medians over them of bytes, mean absolute error, and CPU"
            f" time of the shortest of {N_ROUNDS} calls.",
            seed=seed,
            columns=("codec", "kB", "share of raw", "encode (ms)", "decode (ms)", "mean abs error"),
            rows=rows + rows_of_neighbours(photos, arrays),
            bars=[Bar(name="`lossless` encodes in", measured=float(lossless[3]), limit=ENCODE_LIMIT_MS, unit=" ms")],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
