"""Levels that the engine computes at the head's end, or reads at the tail's start, against the codec in numpy.

Both ways give the same bytes (tests/partition/test_quantizing.py); here is what they take. The two ways run in turn,
so that noise falls on both; ratios are those of the lower quartiles.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from benchmarks.codecs_at_cuts import Feeds, Row, session_of
from benchmarks.report import Bar, Record, publish
from compression.codecs import catalog, graph_affine
from compression.codecs.affine import Levels
from compression.codecs.level_names import LevelNames
from compression.codecs.quantized import QuantizedCodec
from hybrid.artifact.digest import model_digest
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare
from tests import zoo

MODELS = ("efficientnet", "ppocr_det", "ppocr_rec", "ppocr_cls")
N_ROUNDS = 31
LEAST_BYTES = 4096


def quartiles_ms(calls: list[Callable[[], object]], n_rounds: int) -> list[float]:
    """Lower quartile of each call's milliseconds, all called in turn."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(n_rounds):
        for call, taken in zip(calls, seconds, strict=True):
            started_s = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started_s)
    return [1e3 * sorted(taken)[len(taken) // 4] for taken in seconds]


def levels_of(arrays: list[np.ndarray], names: tuple[LevelNames, ...]) -> list[Levels]:
    """The levels that a quantizing head answered with: three arrays a tensor."""
    return [
        Levels(levels=levels, scales=scales.reshape(-1), zeros=zeros.reshape(-1), axis=one.axis)
        for one, levels, scales, zeros in zip(names, arrays[0::3], arrays[1::3], arrays[2::3], strict=True)
    ]


def row_of(name: str, prepared: Prepared, cut: Cut, feeds: Feeds, *, codec: str, n_rounds: int) -> Row:
    """Head and encoding, and decoding and tail, either way."""
    found = catalog.get(codec)
    assert isinstance(found, QuantizedCodec)
    names = prepared.level_names(cut.id)
    specs = {spec.name: spec for spec in cut.tensors}
    tensors = [one.tensor for one in names]
    parts = [part for one in names for part in (one.levels, one.scales, one.zeros)]
    plain = session_of(prepared.head_path(cut.id))
    quantizing = session_of(prepared.quantizing_head_path(cut.id, found.n_levels))

    def by_numpy() -> list[bytes]:
        return [found.encode(array) for array in plain.run(tensors, feeds)]

    def by_engine() -> list[bytes]:
        return [found.pack(levels) for levels in levels_of(quantizing.run(parts, feeds), names)]

    payloads = by_engine()
    assert payloads == by_numpy()
    # Apart: a run of the plain head just before would leave its weights in the cache for one of the two ways only.
    (head_ms,) = quartiles_ms([lambda: plain.run(tensors, feeds)], n_rounds)
    numpy_ms, engine_ms = quartiles_ms([by_numpy, by_engine], n_rounds)
    tail = session_of(prepared.tail_path(cut.id))
    reading_path = prepared.folder / "reading.onnx"
    proto = onnx.load(prepared.tail_path(cut.id), load_external_data=False)
    reading_path.write_bytes(graph_affine.dequantizing(proto, cut.tensors).SerializeToString())
    reading = session_of(reading_path)
    fed = {key: array for key, array in feeds.items() if key in specs}

    def read_by_numpy() -> object:
        decoded = [found.decode(payload, specs[key]) for payload, key in zip(payloads, tensors, strict=True)]
        return tail.run(None, fed | dict(zip(tensors, decoded, strict=True)))

    def read_by_engine() -> object:
        given = dict(fed)
        for payload, one in zip(payloads, names, strict=True):
            levels, shape = found.unpack(payload, specs[one.tensor]), () if one.axis is None else (-1,)
            given |= {one.levels: levels.levels, one.scales: levels.scales.reshape(shape)}
            given[one.zeros] = levels.zeros.reshape(shape)
        return reading.run(None, given)

    tail_numpy_ms, tail_engine_ms = quartiles_ms([read_by_numpy, read_by_engine], n_rounds)
    what = " + ".join("×".join(map(str, specs[key].shape)) for key in tensors)
    return (
        name, what, f"`{codec}`", head_ms, numpy_ms, engine_ms, engine_ms / numpy_ms,
        tail_numpy_ms, tail_engine_ms, tail_engine_ms / tail_numpy_ms,
    )  # fmt: skip


def rows_of(name: str, cache: Path, *, n_rounds: int, n_cuts: int | None) -> list[Row]:
    """Two rows a cut, 8 and 4 bit; a model whose graph cannot quantize has none."""
    path, feeds = zoo.path(name), zoo.feeds(name)
    prepared = prepare(path, model_digest(path), ShapeKey.of(feeds), cache)
    table = prepared.table
    cuts = [cut for cut in table.interior if cut.id in table.pareto and cut.n_bytes > LEAST_BYTES]
    cuts = [cut for cut in cuts if list(prepared.folder.glob(f"head-{cut.id}-q*.onnx"))]
    return [
        row_of(name, prepared, cut, feeds, codec=codec, n_rounds=n_rounds)
        for cut in cuts[:n_cuts]
        for codec in ("q8", "q4")
    ]


def median_by_model(rows: list[Row], column: int) -> list[float]:
    """Median of a column over each model's rows: one disturbed row of a busy machine says nothing."""
    models = dict.fromkeys(row[0] for row in rows)
    return [statistics.median(float(row[column]) for row in rows if row[0] == model) for model in models]


def record_of(rows: list[Row]) -> Record:
    """The table and what is promised of it."""
    heads, tails = median_by_model(rows, 6), median_by_model(rows, 9)
    return Record(
        name="codecs_in_graph",
        claim="The engine quantizes at the head's end sooner than numpy does behind it",
        method=f"Pareto cuts of over {LEAST_BYTES} bytes, one thread; {N_ROUNDS} rounds of both ways in turn,"
        " lower quartiles. Head: alone, with the codec in numpy, with levels from the engine and their packing."
        " Tail: decoding in numpy and the tail, and a tail that begins with DequantizeLinear (not offered: it"
        " would hold the tail's weights a second time).",
        seed=0,
        columns=(
            "model", "crosses", "codec", "head (ms)", "+ numpy (ms)", "+ engine (ms)", "ratio",
            "numpy + tail (ms)", "engine's tail (ms)", "ratio",
        ),
        rows=rows,
        bars=[
            Bar(name="heads: ratio of the worst model (median of its rows)", measured=max(heads), limit=1.0),
            Bar(name="tails: the same, for the record", measured=max(tails), limit=1.0),
        ],
    )  # fmt: skip


def main() -> int:
    """Measures all models and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one cut of one model; publishes nothing")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        if quick:
            print(*rows_of("ppocr_cls", cache, n_rounds=3, n_cuts=1), sep="\n")
            return 0
        rows = [row for name in MODELS for row in rows_of(name, cache, n_rounds=N_ROUNDS, n_cuts=None)]
    return publish(record_of(rows))


if __name__ == "__main__":
    sys.exit(main())
