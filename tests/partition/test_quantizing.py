"""Heads that quantize: the engine's levels are the codec's, bit for bit, on trained models and on odd ones."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from compression.codecs import catalog, graph_affine
from compression.codecs.affine import Levels
from compression.codecs.level_names import LevelNames
from compression.codecs.quantized import QuantizedCodec
from compression.errors import NotEncodable
from compression.tensor import TensorSpec
from hybrid.errors import PlanError, UnknownCut
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from tests import zoo
from tests.halves import Answers, distance, prepare_here, run_model
from tests.odd_models import text

CODECS = {256: "q8", 16: "q4"}
MODELS = ("efficientnet", "ppocr_det", "ppocr_rec", "ppocr_cls", "resnet50")


def codec_of(n_levels: int) -> QuantizedCodec:
    codec = catalog.get(CODECS[n_levels])
    assert isinstance(codec, QuantizedCodec)
    return codec


def levels_of(answers: Answers, names: LevelNames) -> Levels:
    return Levels(
        levels=answers[names.levels],
        scales=answers[names.scales].reshape(-1),
        zeros=answers[names.zeros].reshape(-1),
        axis=names.axis,
    )


def check(prepared: Prepared, cut: Cut, feeds: Answers, n_levels: int) -> Answers:
    """The engine's levels of every crossing tensor give the codec's own payload; returns what crosses, decoded."""
    plain = run_model(prepared.head_path(cut.id), feeds)
    answers = run_model(prepared.quantizing_head_path(cut.id, n_levels), feeds)
    names = prepared.level_names(cut.id)
    assert names
    specs = {spec.name: spec for spec in cut.tensors}
    decoded = {name: plain[name] for name in specs if name in plain} | {n: feeds[n] for n in specs if n in feeds}
    for one in names:
        np.testing.assert_array_equal(answers[one.tensor], plain[one.tensor])
        codec = codec_of(n_levels)
        payload = codec.encode(answers[one.tensor])
        assert codec.pack(levels_of(answers, one)) == payload
        decoded[one.tensor] = codec.decode(payload, specs[one.tensor])
    return decoded


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_gives_the_codecs_own_bytes(name: str, tmp_path: Path) -> None:
    feeds = zoo.feeds(name)
    prepared = prepare_here(zoo.path(name), feeds, tmp_path)
    whole = run_model(zoo.path(name), feeds)
    cuts = [cut for cut in prepared.table.interior if cut.id in prepared.table.pareto]
    quantized = [cut for cut in cuts if prepared.level_names(cut.id)]
    assert quantized
    for cut in quantized:
        assert all((prepared.folder / f"head-{cut.id}-q{n_levels}.onnx").exists() for n_levels in CODECS)
        for n_levels in CODECS:
            crossing = check(prepared, cut, feeds, n_levels)
            tail = run_model(prepared.tail_path(cut.id), crossing)
            if n_levels == 256:
                assert distance(tail | {n: whole[n] for n in cut.head_outputs}, whole) < 0.2


def test_the_engine_may_read_the_levels_too(tmp_path: Path) -> None:
    """A tail that begins with DequantizeLinear answers as one that is fed what the codec decodes."""
    feeds = zoo.feeds("ppocr_cls")
    prepared = prepare_here(zoo.path("ppocr_cls"), feeds, tmp_path)
    pareto = [cut for cut in prepared.table.interior if cut.id in prepared.table.pareto]
    for cut in [cut for cut in pareto if prepared.level_names(cut.id)]:
        answers = run_model(prepared.quantizing_head_path(cut.id, 16), feeds)
        crossing = check(prepared, cut, feeds, 16)
        tail = onnx.load(prepared.tail_path(cut.id), load_external_data=False)
        path = prepared.folder / "tail.onnx"
        path.write_bytes(graph_affine.dequantizing(tail, cut.tensors).SerializeToString())
        assert distance(run_model(path, answers), run_model(prepared.tail_path(cut.id), crossing)) <= 1e-6


BODY = "g (float[2,20,3,8] x) => (float[2,20,3,8] y) {{ a = Tanh(x) b = Mul(a, x) c = Add(b, x) y = Exp(c) }}"


def odd(folder: Path, opset: int, body: str = BODY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = text(body.format())
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("opset", [8, 9, 11, 12, 13, 17, 18, 21, 23])
def test_every_opset_from_8_on(opset: int, tmp_path: Path) -> None:
    """Reductions take their axes as attributes or inputs, the operators come from ONNX or from onnxruntime."""
    feeds = {"x": np.random.default_rng(opset).standard_normal((2, 20, 3, 8), dtype=np.float32)}
    prepared = prepare_here(odd(tmp_path, opset), feeds, tmp_path / "cache")
    for cut in prepared.table.interior:
        for n_levels in CODECS:
            check(prepared, cut, feeds, n_levels)


def test_an_older_opset_says_so(tmp_path: Path) -> None:
    feeds = {"x": np.ones((2, 20, 3, 8), np.float32)}
    prepared = prepare_here(odd(tmp_path, 7), feeds, tmp_path / "cache")
    cut = prepared.table.interior[0]
    with pytest.raises(PlanError, match="opset 7"):
        prepared.quantizing_head_path(cut.id, 256)
    assert prepared.head_path(cut.id).exists()


@pytest.mark.parametrize("shape", ["64", "4,40", "30,3", "3,4,32", "1,70,1,1", "1,9,9,4", "2,3,4,5,6"])
def test_any_shape_but_tiny_ones(shape: str, tmp_path: Path) -> None:
    body = f"g (float[{shape}] x) => (float[{shape}] y) {{{{ a = Tanh(x) y = Exp(a) }}}}"
    size = tuple(map(int, shape.split(",")))
    feeds = {"x": np.random.default_rng(1).standard_normal(size, dtype=np.float32)}
    prepared = prepare_here(odd(tmp_path, 17, body), feeds, tmp_path / "cache")
    for values in (feeds["x"], np.zeros(size, "f4"), np.full(size, -1e-30, "f4"), np.full(size, 3, "f4")):
        for n_levels in CODECS:
            check(prepared, prepared.table.interior[0], {"x": values}, n_levels)


@pytest.mark.parametrize("shape", ["", "1", "1,3", "0,70"])
def test_tiny_tensors_are_left_to_the_codec(shape: str, tmp_path: Path) -> None:
    body = f"g (float[{shape}] x) => (float[{shape}] y) {{{{ a = Tanh(x) y = Exp(a) }}}}"
    size = tuple(int(part) for part in shape.split(",") if part)
    prepared = prepare_here(odd(tmp_path, 17, body), {"x": np.ones(size, np.float32)}, tmp_path / "cache")
    for cut in prepared.table.interior:
        assert prepared.level_names(cut.id) == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_found_in_the_graph_too(value: float, tmp_path: Path) -> None:
    """An engine's minimum and maximum may pass over a NaN."""
    body = "g (float[1,24,8,8] x) => (float[1,24,8,8] y) {{ a = Neg(x) y = Exp(a) }}"
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 24, 8, 8), dtype=np.float32)}
    prepared = prepare_here(odd(tmp_path, 17, body), feeds, tmp_path / "cache")
    cut = prepared.table.interior[0]
    (names,) = prepared.level_names(cut.id)
    for at in (0, 777, -1):
        x = feeds["x"].copy()
        x.reshape(-1)[at] = value
        answers = run_model(prepared.quantizing_head_path(cut.id, 256), {"x": x})
        with pytest.raises(NotEncodable, match="finite"):
            codec_of(256).pack(levels_of(answers, names))


def test_only_what_the_head_makes_is_quantized(tmp_path: Path) -> None:
    """A mask of whole numbers, and an input that both sides read, cross as they are."""
    body = (
        "g (float[1,64] x, float[1,64] z) => (float[1,64] y)"
        " {{ a = Exp(x) m = Greater(a, z) b = Cast<to: int = 1>(m) y = Mul(b, z) }}"
    )
    feeds = {"x": np.linspace(-1, 1, 64, dtype=np.float32)[None], "z": np.ones((1, 64), np.float32)}
    prepared = prepare_here(odd(tmp_path, 17, body), feeds, tmp_path / "cache")
    for cut in prepared.table.interior:
        names = prepared.level_names(cut.id)
        assert {one.tensor for one in names} <= {"a", "b"}
        if not names:
            with pytest.raises(PlanError, match="quantized"):
                prepared.quantizing_head_path(cut.id, 256)
        else:
            check(prepared, cut, feeds, 256)
    assert any(not prepared.level_names(cut.id) for cut in prepared.table.interior)


def test_ends_and_strangers_have_no_quantizing_head(tmp_path: Path) -> None:
    feeds = {"x": np.ones((2, 20, 3, 8), np.float32)}
    prepared = prepare_here(odd(tmp_path, 17), feeds, tmp_path / "cache")
    for cut in (prepared.table.cuts[0], prepared.table.cuts[-1]):
        assert prepared.level_names(cut.id) == ()
        with pytest.raises(PlanError, match=cut.kind):
            prepared.quantizing_head_path(cut.id, 256)
    with pytest.raises(UnknownCut):
        prepared.quantizing_head_path("0123456789abcdef", 256)


def test_one_that_is_missing_is_written_again(tmp_path: Path) -> None:
    feeds = {"x": np.ones((2, 20, 3, 8), np.float32)}
    prepared = prepare_here(odd(tmp_path, 17), feeds, tmp_path / "cache")
    cut = prepared.table.interior[-1]
    path = prepared.quantizing_head_path(cut.id, 16)
    before = path.read_bytes()
    path.write_bytes(b"")  # as a power cut leaves it
    assert prepared.quantizing_head_path(cut.id, 16).read_bytes() == before


def test_tensors_that_no_graph_quantizes_are_refused() -> None:
    model = text("g (int64[4] x) => (int64[4] y) { a = Neg(x) y = Neg(a) }")
    spec = TensorSpec(name="a", dtype="INT64", shape=(4,))
    with pytest.raises(NotEncodable, match="FP32"):
        graph_affine.quantizing(model, [spec], 256)
    with pytest.raises(NotEncodable, match="FP32"):
        graph_affine.dequantizing(model, [spec])
