"""Runs a cut's two halves one after the other, and measures how far two answers are apart."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from compression.tensor import datatype_of
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition import store
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, open_prepared
from hybrid.partition.worker import prepare_into

Answers = dict[str, np.ndarray]


def prepare_here(model_path: Path, feeds: Answers, cache: Path) -> Prepared:
    """What `prepare` gives, made in this process: the same work without 0.3 s of start-up."""
    digest, shape_key = "0" * 64, ShapeKey.of(feeds)
    folder = store.folder_for(cache, digest, shape_key)
    folder.mkdir(parents=True)
    prepare_into(model_path, digest, shape_key, folder)
    prepared = open_prepared(digest, shape_key, cache)
    assert prepared is not None
    return prepared


def run_model(path_or_bytes, feeds: Answers) -> Answers:
    """All outputs of a model by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    source = path_or_bytes if isinstance(path_or_bytes, bytes) else str(path_or_bytes)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True))


def run_split(prepared: Prepared, cut: Cut, feeds: Answers) -> Answers:
    """All outputs of the model, head and tail computed apart; only the cut's tensors pass between them."""
    head = {} if cut.kind == "input" else run_model(prepared.head_path(cut.id), feeds)
    crossing = {spec.name: head.get(spec.name, feeds.get(spec.name)) for spec in cut.tensors}
    for spec in cut.tensors:
        assert spec.accepts(datatype_of(crossing[spec.name]), crossing[spec.name].shape), spec
    tail = {} if cut.kind == "output" else run_model(prepared.tail_path(cut.id), crossing)
    assert set(tail) == set(cut.tail_outputs)
    return tail | {name: head[name] for name in cut.head_outputs}


def distance(answer: Answers, wanted: Answers) -> float:
    """The largest max|a-b| / max|b| over all outputs; infinite where shape, dtype, NaNs or names differ."""
    if set(answer) != set(wanted):
        return float("inf")
    return max(_distance(answer[name], wanted[name]) for name in wanted)


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    if isinstance(theirs, list):
        return max((_distance(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if theirs.dtype.kind not in "fiub" or theirs.size == 0 or theirs.dtype == np.bool_:
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()
    size = np.abs(theirs.astype(np.float64)).max()
    return float(gap / size) if size else (0.0 if gap == 0 else float("inf"))
