"""What each codec makes of what crosses the cuts of trained models, fed with real photographs: bytes, time, answers.

An answer is the class with the highest score (EfficientNet-Lite0) or the text of a line (PP-OCRv6's recogniser, read
greedily); it agrees where it is the answer of the whole model. Some photographs show what ImageNet has a class for:
of these crops, the share that is answered rightly is the task's own accuracy.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import zstandard
from PIL import Image

from benchmarks.report import Bar, Record, publish
from compression.codecs import catalog
from compression.errors import NotEncodable
from compression.tensor import TensorSpec
from hybrid.artifact.digest import model_digest
from hybrid.cli.demo import reading
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare
from tests import zoo

PHOTOS = {
    "chelsea.png": (281, 282, 285),
    "coffee.png": (504, 967),
    "rocket.jpg": (657, 744),
    "motorcycle_left.png": (665, 670),
    "motorcycle_right.png": (665, 670),
    "astronaut.png": (),
    "retina.jpg": (),
    "hubble_deep_field.jpg": (),
    "ihc.png": (),
}
"""Photographs of scikit-image, and the classes that are right; none where ImageNet has no class for what it shows."""

SIZE = 224
ZOOMS = ((0.5, 0.5, 1.0), (0.5, 0.5, 0.85), (0.3, 0.4, 0.7), (0.7, 0.6, 0.7), (0.5, 0.5, 0.6))
"""Where the square is cut from each photograph: x and y of its middle, and its side as a share of the shorter side."""

N_ROUNDS = 9
PICTURES = ("lossless-webp", "jpeg", "jpeg75", "webp", "webp75")
NEIGHBOUR = "8 bit per tensor, zstd level 1"
Feeds = dict[str, np.ndarray]
Row = tuple[str | float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model, what it is fed, and what its outputs mean.

    Attributes:
        name: of the model in the zoo.
        feeds: one for each sample.
        answer: what the model's outputs say.
        right: for each sample, the answers that are right; empty where none is known.
    """

    name: str
    feeds: Sequence[Feeds]
    answer: Callable[[list[np.ndarray]], object]
    right: Sequence[Sequence[object]]


def crops(name: str) -> list[Image.Image]:
    """Five squares of a photograph, and two of them mirrored."""
    with Image.open(zoo.photo(name)) as opened:
        photo = opened.convert("RGB")
    shorter, squares = min(photo.size), []
    for x, y, share in ZOOMS:
        side = shorter * share
        left, top = (photo.width - side) * x, (photo.height - side) * y
        box = (round(left), round(top), round(left + side), round(top + side))
        squares.append(photo.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    mirrored = [square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for square in squares[:2]]
    return squares + mirrored


def convnet() -> Task:
    """EfficientNet-Lite0 on crops of photographs."""
    feeds: list[Feeds] = []
    right: list[Sequence[object]] = []
    for name, classes in PHOTOS.items():
        for crop in crops(name):
            pixels = (np.asarray(crop, np.float32) - 127.5) / 127.5
            feeds.append({"image": np.ascontiguousarray(pixels.transpose(2, 0, 1))[np.newaxis]})
            right.append(classes)
    return Task(name="efficientnet", feeds=feeds, answer=lambda outputs: int(outputs[0].argmax()), right=right)


def reader() -> Task:
    """The recogniser on the lines of a scanned page."""
    with Image.open(zoo.photo("page.png")) as opened:
        page = opened.convert("RGB")
    chances = session_of(zoo.path("ppocr_det")).run(None, {"x": reading.detector_input(page)})[0]
    boxes = reading.find_lines((chances * 255).astype(np.uint8))
    feeds = [{"x": reading.line_input(page, box)} for box in boxes]

    def text(outputs: list[np.ndarray]) -> object:
        steps = outputs[0].argmax(axis=2)[0]
        kept = (steps != 0) & np.concatenate(([True], steps[1:] != steps[:-1]))
        return tuple(steps[kept].tolist())

    return Task(name="ppocr_rec", feeds=feeds, answer=text, right=[()] * len(feeds))


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """An open model with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options)


def least_ms(call: Callable[[], object]) -> float:
    """CPU time of the shortest of several calls, all in this thread: other work on the machine hardly moves it."""
    seconds = []
    for _ in range(N_ROUNDS):
        started_s = time.thread_time()
        call()
        seconds.append(time.thread_time() - started_s)
    return 1e3 * min(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A codec or a neighbour of one: arrays to bytes and back."""

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, TensorSpec], np.ndarray]


def contenders(*, of_input: bool) -> list[Coded]:
    """The codecs that are meant for this kind of cut, and at interior ones a neighbour that is often used."""
    names = [name for name in catalog.CODECS if of_input == (name in PICTURES) or name in ("none", "lossless")]
    found = [
        Coded(name=f"`{name}`", encode=catalog.get(name).encode, decode=catalog.get(name).decode) for name in names
    ]
    return found if of_input else [*found, Coded(name=NEIGHBOUR, encode=_whole_encode, decode=_whole_decode)]


def _whole_encode(array: np.ndarray) -> bytes:
    """One scale and zero point for all channels, as DynamicQuantizeLinear has it."""
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    levels = np.clip(np.rint(array / np.float32(scale)) + round(-low / scale), 0, 255).astype(np.uint8)
    head = np.array([scale, round(-low / scale)], np.float32).tobytes()
    return head + zstandard.ZstdCompressor(level=1).compress(levels.tobytes())


def _whole_decode(payload: bytes, spec: TensorSpec) -> np.ndarray:
    scale, zero = np.frombuffer(payload[:8], np.float32)
    levels = np.frombuffer(zstandard.ZstdDecompressor().decompress(payload[8:]), np.uint8)
    shape = [size or 0 for size in spec.shape]
    values: np.ndarray = ((levels.astype(np.float32) - zero) * scale).reshape(shape)
    return values


def rows_of(task: Task, prepared: Prepared, cut: Cut) -> list[Row]:
    """One row a codec: over all samples, bytes, their share of raw, ms, SQNR and how many answers stay."""
    whole = session_of(prepared.graph_path)
    tail = whole if cut.kind == "input" else session_of(prepared.tail_path(cut.id))
    names = [spec.name for spec in cut.tensors]
    if cut.kind == "input":
        crossing = [list(feeds.values()) for feeds in task.feeds]
    else:
        head = session_of(prepared.head_path(cut.id))
        crossing = [head.run(names, feeds) for feeds in task.feeds]
    wanted = [task.answer(whole.run(None, feeds)) for feeds in task.feeds]
    what = "input" if cut.kind == "input" else " + ".join("×".join(map(str, spec.shape)) for spec in cut.tensors)
    rows: list[Row] = []
    for codec in contenders(of_input=cut.kind == "input"):
        try:
            rows.append(
                (
                    task.name,
                    what,
                    codec.name,
                    *_measured(task, codec, tail=tail, names=names, crossing=crossing, wanted=wanted),
                )
            )
        except NotEncodable:
            continue
    return rows


def _measured(
    task: Task,
    codec: Coded,
    *,
    tail: onnxruntime.InferenceSession,
    names: list[str],
    crossing: list[list[np.ndarray]],
    wanted: list[object],
) -> Row:
    """Bytes, share, encode ms, decode ms, SQNR, agreement, right answers."""
    sizes, ratios_db, answers = [], [], []
    for arrays in crossing:
        payloads = [codec.encode(array) for array in arrays]
        specs = [TensorSpec(name="t", dtype="FP32", shape=array.shape) for array in arrays]
        decoded = [codec.decode(payload, spec) for payload, spec in zip(payloads, specs, strict=True)]
        sizes.append(sum(map(len, payloads)))
        signal = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
        noise = sum(
            float(np.square(back.astype(np.float64) - array).sum()) for back, array in zip(decoded, arrays, strict=True)
        )
        ratios_db.append(10 * np.log10(signal / noise) if noise else np.inf)
        answers.append(task.answer(tail.run(None, dict(zip(names, decoded, strict=True)))))
    arrays = crossing[0]
    payloads = [codec.encode(array) for array in arrays]
    specs = [TensorSpec(name="t", dtype="FP32", shape=array.shape) for array in arrays]
    encode_ms = least_ms(lambda: [codec.encode(array) for array in arrays])
    decode_ms = least_ms(lambda: [codec.decode(*pair) for pair in zip(payloads, specs, strict=True)])
    same = sum(answer == one for answer, one in zip(answers, wanted, strict=True))
    known = [(answer, right) for answer, right in zip(answers, task.right, strict=True) if right]
    n_right = sum(answer in right for answer, right in known)
    db = float(statistics.median(ratios_db))
    return (
        statistics.fmean(sizes) / 1e3,
        statistics.fmean(sizes) / sum(array.nbytes for array in arrays),
        encode_ms,
        decode_ms,
        "exact" if np.isinf(db) else db,
        f"{same}/{len(answers)}",
        f"{n_right}/{len(known)}" if known else "",
    )


def cuts_of(prepared: Prepared) -> list[Cut]:
    """The input cut, and the cuts worth timing that carry more than 4 kB."""
    table = prepared.table
    pareto = [cut for cut in table.interior if cut.id in table.pareto and cut.n_bytes > 4096]
    return [table.cuts[0], *pareto]


def measured(cache: Path, *, quick: bool) -> list[Row]:
    """The rows of all tasks; `quick` takes the first samples of one task and two of its cuts."""
    rows: list[Row] = []
    for make in (convnet,) if quick else (convnet, reader):
        task = make()
        if quick:
            task = Task(name=task.name, feeds=task.feeds[:2], answer=task.answer, right=task.right[:2])
        path = zoo.path(task.name)
        prepared = prepare(path, model_digest(path), ShapeKey.of(task.feeds[0]), cache)
        for cut in cuts_of(prepared)[: 2 if quick else None]:
            rows += rows_of(task, prepared, cut)
    return rows


def bars_of(rows: list[Row]) -> list[Bar]:
    """8 bit at a quarter and 4 bit with entropy at an eighth of float32, and what they cost."""
    made = []
    for codec, limit in (("`q8z`", 1 / 4), ("`q4z`", 1 / 8)):
        found = [row for row in rows if row[2] == codec]
        shares = [float(row[4]) for row in found]
        made.append(Bar(name=f"{codec}: median share of raw", measured=statistics.median(shares), limit=limit))
        lost, n_known = 0, 0
        for row in found:
            exact = next(one for one in rows if one[:2] == row[:2] and one[2] == "`none`")
            if row[9]:
                lost += int(str(exact[9]).split("/", 1)[0]) - int(str(row[9]).split("/", 1)[0])
                n_known += int(str(row[9]).split("/", 1)[1])
        if n_known:
            name = f"{codec}: accuracy lost, share of {n_known} answers at all cuts"
            made.append(Bar(name=name, measured=lost / n_known, limit=0.01))
    return made


def main() -> int:
    """Measures all tasks and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two samples, two cuts; publishes nothing")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), quick=quick)
    if quick:
        print(*rows, sep="\n")
        return 0
    columns = (
        "model",
        "crosses",
        "codec",
        "kB",
        "share of raw",
        "encode (ms)",
        "decode (ms)",
        "SQNR (dB)",
        "agree",
        "right",
    )
    return publish(
        Record(
            name="codecs_at_cuts",
            claim="What codecs cost and keep at the cuts of trained models",
            method=f"{len(PHOTOS)} photographs of scikit-image, {len(ZOOMS) + 2} crops each, and the lines of its page;"
            " means of bytes, median SQNR, answers that are the whole model's, and right answers where the photograph"
            f" has some. CPU time of the shortest of {N_ROUNDS} calls, numpy, one thread. Picture codecs at the input"
            f" stand beside the interior cuts; *{NEIGHBOUR}* is the usual neighbour of `q8z`.",
            seed=0,
            columns=columns,
            rows=rows,
            bars=bars_of(rows),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
