"""Models as people ship them: each cut of each odd graph, head then tail, equals the whole."""

import numpy as np
import onnx
import pytest

from tests.halves import distance, prepare_here, run_model, run_split
from tests.odd_models import ODD, text


@pytest.mark.parametrize("name", ODD)
def test_every_cut_of_an_odd_graph_equals_the_whole(name, tmp_path):
    odd = ODD[name]()
    path = tmp_path / "model.onnx"
    onnx.save(odd.model, path)
    whole = run_model(path, odd.feeds)
    prepared = prepare_here(path, odd.feeds, tmp_path / "cache")
    found = {frozenset(spec.name for spec in cut.tensors) for cut in prepared.table.cuts}
    assert found.issuperset(odd.crossings)
    assert [cut.kind for cut in prepared.table.cuts[:: len(prepared.table.cuts) - 1]] == ["input", "output"]
    for cut in prepared.table.cuts:
        assert distance(run_split(prepared, cut, odd.feeds), whole) <= 1e-4, cut


def _table(name, tmp_path):
    odd = ODD[name]()
    onnx.save(odd.model, tmp_path / "model.onnx")
    return prepare_here(tmp_path / "model.onnx", odd.feeds, tmp_path / "cache").table


def _crossings(table):
    return [{spec.name for spec in cut.tensors} for cut in table.interior]


def test_an_output_that_is_read_later_crosses_and_is_answered_by_the_head(tmp_path):
    cut = next(c for c in _table("output_used_later", tmp_path).interior if {s.name for s in c.tensors} == {"a"})
    assert cut.head_outputs == ("a",)
    assert cut.tail_outputs == ("y",)


def test_an_output_that_needs_more_than_what_crosses_is_answered_by_the_head(tmp_path):
    cuts = _table("early_output_of_two_inputs", tmp_path).interior
    assert ("y",) in [cut.head_outputs for cut in cuts if {s.name for s in cut.tensors} == {"a"}]


def test_an_input_that_only_the_head_reads_does_not_cross(tmp_path):
    assert any("state" not in crossing and crossing for crossing in _crossings(_table("state_in_and_out", tmp_path)))


def test_strings_cross_without_a_known_size(tmp_path):
    table = _table("strings", tmp_path)
    (cut,) = [cut for cut in table.interior if cut.tensors[0].dtype == "BYTES"]
    assert not cut.sized
    assert cut.n_bytes == 0
    assert cut.id not in table.pareto


def test_sizes_that_the_data_decides_make_no_candidates_and_the_note_says_so(tmp_path):
    table = _table("data_dependent", tmp_path)
    unsized = [cut for cut in table.interior if not cut.sized]
    assert unsized
    assert not {cut.id for cut in unsized} & set(table.pareto)
    assert "only the data decides" in (table.note or "")


def test_a_sequence_never_crosses(tmp_path):
    assert not any("q" in crossing for crossing in _crossings(_table("sequences", tmp_path)))


def test_what_a_branch_captures_crosses_with_it(tmp_path):
    crossings = _crossings(_table("branches_that_capture", tmp_path))
    assert {"m"} in crossings
    assert any("h" in crossing and "x" in crossing for crossing in crossings)
    assert not any("r" in crossing or "t" in crossing for crossing in crossings)  # the bodies stay whole


def test_a_random_source_is_never_computed_on_both_sides(tmp_path):
    body = """g (float[1,8] x) => (float[1,8] y, float[1,8] z) {
        n = RandomNormal <shape = [1, 8]> () a = Add(x, n) b = Exp(a) y = Mul(b, n) c = Tanh(b) z = Neg(c) }"""
    onnx.save(text(body), tmp_path / "model.onnx")
    feeds = {"x": np.zeros((1, 8), np.float32)}
    prepared = prepare_here(tmp_path / "model.onnx", feeds, tmp_path / "cache")
    assert len(prepared.table.interior) >= 2
    for cut in prepared.table.interior:
        sides = [onnx.load(p(cut.id), load_external_data=False) for p in (prepared.head_path, prepared.tail_path)]
        assert sum(node.op_type == "RandomNormal" for side in sides for node in side.graph.node) == 1, cut


def test_every_plain_datatype_is_among_the_crossing_tensors(tmp_path):
    table = _table("every_datatype", tmp_path)
    crossing = {spec.dtype for cut in table.interior for spec in cut.tensors}
    assert crossing == {
        "FP32", "FP64", "FP16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL",
    }  # fmt: skip
