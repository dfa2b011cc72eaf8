"""Heads and tails of TensorFlow Lite files: together they are the whole, at every cut that is tried."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from devices.tflite_engine import TfliteSession
from hybrid.artifact.digest import model_digest
from hybrid.errors import ModelInvalid, ModelUnsupported, PlanError, TensorMismatch
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare
from hybrid.tflite.model_file import parse, read
from hybrid.tflite.operators import op_name
from hybrid.tflite.piece import tail_file
from tests import zoo
from tests.tflite.made import feeds_for, voice, with_weights_behind

N_TRIED = 7


def prepared(path: Path, cache: Path) -> Prepared:
    feeds = feeds_for(TfliteSession(path))
    return prepare(path, model_digest(path), ShapeKey.of(feeds), cache)


def in_two(graph: Prepared, cut: Cut, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """What head and tail answer to these requests, one after the other."""
    head, tail = TfliteSession(graph.head_path(cut.id), 1), TfliteSession(graph.tail_path(cut.id), 1)
    answers = []
    for feeds in requests:
        names = [port.name for port in head.get_outputs()]
        found = dict(zip(names, head.run(names, {p.name: feeds[p.name] for p in head.get_inputs()}), strict=True))
        crossing = {spec.name: found.get(spec.name, feeds.get(spec.name)) for spec in cut.tensors}
        assert all(crossing[spec.name].shape == spec.shape for spec in cut.tensors)
        names = [port.name for port in tail.get_outputs()]
        assert tuple(names) == cut.tail_outputs
        found |= zip(names, tail.run(names, {p.name: crossing[p.name] for p in tail.get_inputs()}), strict=True)
        answers.append(found)
    return answers


@pytest.mark.parametrize("name", zoo.TFLITE)
def test_head_and_tail_are_the_whole_at_cuts_of_one_tensor_and_of_many(name: str, tmp_path: Path) -> None:
    path = zoo.tflite(name)
    graph = prepared(path, tmp_path)
    cuts = graph.table.interior
    assert {cut.id for cut in cuts if cut.id in graph.table.pareto}, "no cut is worth timing"
    tried = cuts[:: max(1, len(cuts) // N_TRIED)]
    if name != "wake_word":
        assert any(len(cut.tensors) > 1 for cut in tried)
        assert any(len(cut.tensors) == 1 for cut in tried)
    for cut in tried:
        whole = TfliteSession(path, 1)
        requests = voice(whole) if graph.table.keeps_state else [feeds_for(whole)]
        names = [port.name for port in whole.get_outputs()]
        wanted = [dict(zip(names, whole.run(None, feeds), strict=True)) for feeds in requests]
        for found, answer in zip(in_two(graph, cut, requests), wanted, strict=True):
            assert all(np.array_equal(found[name], answer[name]) for name in names), cut.id


def test_variables_stay_in_the_head_and_no_cut_lies_before_them(tmp_path: Path) -> None:
    graph = prepared(zoo.tflite("wake_word"), tmp_path)
    assert graph.table.keeps_state
    assert not graph.table.cuts[0].sized  # the whole is nobody else's to compute
    for cut in graph.table.interior:
        paths = (graph.head_path(cut.id), graph.tail_path(cut.id))
        kinds = [{op_name(*pair) for pair in _operators(path)} for path in paths]
        assert {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"} <= kinds[0]
        assert not {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"} & kinds[1]


def test_constants_that_are_unpacked_follow_who_reads_them(tmp_path: Path) -> None:
    """DENSIFY and DEQUANTIZE of weights are no place to cut, and lie on each side that needs them."""
    path = zoo.tflite("face_sparse")
    graph = prepared(path, tmp_path)
    unpacked = sum(op_name(*pair) == "DENSIFY" for pair in _operators(path))
    assert unpacked > 3
    middle = graph.table.interior[len(graph.table.interior) // 2]
    sides = [
        sum(op_name(*pair) == "DENSIFY" for pair in _operators(found))
        for found in (graph.head_path(middle.id), graph.tail_path(middle.id))
    ]
    assert min(sides) > 0
    assert sum(sides) >= unpacked
    assert not any("densify" in spec.name.lower() for cut in graph.table.interior for spec in cut.tensors)


def test_a_custom_operator_is_kept_on_its_side(tmp_path: Path) -> None:
    graph = prepared(zoo.tflite("selfie"), tmp_path)
    middle = graph.table.interior[len(graph.table.interior) // 2]
    assert "custom:Convolution2DTransposeBias" in {op_name(*pair) for pair in _operators(graph.tail_path(middle.id))}


def test_weights_behind_the_flatbuffer_are_taken_into_it(tmp_path: Path) -> None:
    """As litert-quantizer writes files: a piece with the old offsets would compute with whatever lies there."""
    plain = zoo.tflite("face")
    moved = with_weights_behind(plain, tmp_path / "moved.tflite")
    feeds = feeds_for(TfliteSession(plain))
    wanted = TfliteSession(plain, 1).run(None, feeds)
    assert all(map(np.array_equal, TfliteSession(moved, 1).run(None, feeds), wanted))
    graph = prepared(moved, tmp_path / "cache")
    cut = graph.table.interior[20]
    found = in_two(graph, cut, [feeds])[0]
    names = [port.name for port in TfliteSession(plain).get_outputs()]
    assert all(np.array_equal(found[name], answer) for name, answer in zip(names, wanted, strict=True))


def test_cut_ids_do_not_depend_on_where_the_file_lies(tmp_path: Path) -> None:
    copied = tmp_path / "face_detection_short_range.tflite"
    shutil.copy(zoo.tflite("face"), copied)
    one, other = prepared(zoo.tflite("face"), tmp_path / "a"), prepared(copied, tmp_path / "b")
    assert one.model_digest == other.model_digest
    assert [cut.id for cut in one.table.cuts] == [cut.id for cut in other.table.cuts]
    cut = one.table.interior[5].id
    assert one.tail_path(cut).read_bytes() == other.tail_path(cut).read_bytes()


def test_prepared_graphs_are_found_again_and_quantize_in_codecs_alone(tmp_path: Path) -> None:
    graph = prepared(zoo.tflite("face"), tmp_path)
    made = graph.graph_path.stat().st_mtime_ns
    again = prepared(zoo.tflite("face"), tmp_path)
    assert (again.folder, again.graph_path.stat().st_mtime_ns) == (graph.folder, made)
    assert again.graph_path.name == "graph.tflite"
    with pytest.raises(PlanError, match="ONNX"):
        again.quantizing_head_path(again.table.interior[0].id, 256)


def test_tensors_that_do_not_determine_the_rest_are_refused(tmp_path: Path) -> None:
    graph = prepared(zoo.tflite("face"), tmp_path)
    deep = graph.table.interior[-5]
    with pytest.raises(ModelUnsupported, match="do not determine"):
        tail_file(read(graph.graph_path), [deep.tensors[0].name], deep.tail_outputs)


def test_what_is_no_sound_file_is_refused_by_name(tmp_path: Path) -> None:
    data = zoo.tflite("face").read_bytes()
    with pytest.raises(ModelInvalid, match="not a TensorFlow Lite"):
        parse(b"\x08\x01" + data[2:4] + b"ONNX" + data[8:], "mine.tflite")
    cut_off = tmp_path / "short.tflite"
    cut_off.write_bytes(data[:3000])
    with pytest.raises(ModelInvalid, match=r"short\.tflite"):
        prepared_bytes(cut_off, tmp_path)


def prepared_bytes(path: Path, cache: Path) -> Prepared:
    return prepare(path, model_digest(path), ShapeKey((("input", (1, 128, 128, 3)),)), cache)


def test_shapes_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    path = zoo.tflite("face")
    with pytest.raises(TensorMismatch, match="128"):
        prepare(path, model_digest(path), ShapeKey((("input", (1, 64, 64, 3)),)), tmp_path)


def _operators(path: Path) -> list[tuple[object, object]]:
    model = read(path)
    return [(model, operator) for operator in model.subgraphs[0].operators]
