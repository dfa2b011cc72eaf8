"""What is proved to keep rows apart does so in the engine; what mixes them, or might, is refused by name."""

import random
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from hybrid.artifact.digest import model_digest
from hybrid.errors import HybridError, ModelUnsupported
from hybrid.graph.model_file import load_proto
from hybrid.graph.open_rows import open_rows
from hybrid.graph.row_proof import measured_sizes, prove_rows
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
from tests import zoo
from tests.graph.random_rows import random_model

R = np.random.default_rng(7)
WEIGHTS = {
    "w": R.standard_normal((4, 4), dtype=np.float32),
    "v": R.standard_normal(4, dtype=np.float32),
    "conv": R.standard_normal((2, 3, 3, 3), dtype=np.float32),
    "many": R.standard_normal((3, 4), dtype=np.float32),
    "heads": R.standard_normal((2, 4, 5), dtype=np.float32),
    "table": R.standard_normal((10, 4), dtype=np.float32),
    "gates": R.standard_normal((1, 20, 4), dtype=np.float32),
    "again": R.standard_normal((1, 20, 5), dtype=np.float32),
    "square": R.standard_normal((1, 4), dtype=np.float32),
    **{f"i{n}": np.array([n], np.int64) for n in (0, 1, 2, 3, 4)},
    "m1": np.array([-1], np.int64),
    "s0": np.array(0, np.int64),
    "s1": np.array(1, np.int64),
    "depth": np.array(4, np.int64),
    "onoff": np.array([0, 1], np.float32),
    "far": np.array([2**31 - 1], np.int64),
    "no": np.array(False),
    "half": np.array(0.5, np.float32),
    "zero": np.array(3, np.uint8),
}
PICTURE, LINE, WORD, TWO = (3, 8, 8), (4,), (4,), (4, 4)


def made(body: str, shape: tuple[int, ...], kind: str = "float", outputs: str = "float[] y", **more: np.ndarray):
    """A model of one input x with open rows; weights that the body names are in it."""
    sizes = ",".join(["n", *map(str, shape)])
    head = f'<ir_version: 8, opset_import: ["" : 17]> g ({kind}[{sizes}] x) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(head)
    named = {name for node in model.graph.node for name in node.input}
    weights = {**WEIGHTS, **more}
    model.graph.initializer.extend(numpy_helper.from_array(weights[name], name) for name in named & set(weights))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def feed(n_rows: int, shape: tuple[int, ...], kind: str, seed: int = 0) -> np.ndarray:
    """Rows that differ, and in size too."""
    rng = np.random.default_rng(seed)
    if kind == "int64":
        return rng.integers(0, 4, (n_rows, *shape))
    scale = 10.0 ** rng.uniform(-1, 1, (n_rows, *[1] * len(shape)))
    return (rng.standard_normal((n_rows, *shape)) * scale).astype(np.float32)


def is_apart(model: onnx.ModelProto, shape: tuple[int, ...], kind: str = "float") -> bool | None:
    """Whether rows are the same alone and together, in the engine; None where it refuses the model at one of them."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        x = feed(5, shape, kind)
        alone = [session.run(None, {"x": x[i : i + 1]}) for i in range(5)]
        parts = [session.run(None, {"x": x[:3]}), session.run(None, {"x": x[3:]})]
    except Exception:  # noqa: BLE001 (the engine raises what it likes)
        return None
    for index in range(len(alone[0])):
        one = [found[index] for found in alone]
        many = [found[index] for found in parts]
        if any(array.ndim == 0 or len(array) != 1 for array in one) or [len(a) for a in many if a.ndim] != [3, 2]:
            return False
        if len({array.shape[1:] for array in (*one, *many)}) > 1:
            return False
        if not np.allclose(np.concatenate(one), np.concatenate(many), rtol=1e-3, atol=1e-4, equal_nan=True):
            return False
    return True


def is_proved(model: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    try:
        prove_rows(model, Path(), {"x": feed(1, shape, "float")})
    except ModelUnsupported as exc:
        assert "row" in str(exc), exc
        return False
    return True


APART = {
    "elementwise": ("a = Relu(x) b = Mul(a, v) c = Greater(x, half) y = Where(c, b, x)", LINE),
    "convolution": ("a = Conv <pads=[1,1,1,1]> (x, conv) b = MaxPool <kernel_shape=[2,2]> (a) y = GlobalAveragePool(b)",
                    PICTURE),
    "matrices": ("a = MatMul(x, w) y = Gemm(a, w, v)", LINE),
    "attention": ("t = Transpose <perm=[0,2,1]> (x) a = MatMul(x, t) s = Softmax <axis=-1> (a) y = MatMul(s, x)", TWO),
    "heads": ("a = Reshape(x, fold) h = MatMul(a, w) b = Softmax <axis=1> (h) y = Reshape(b, back)", TWO),
    "norms": ("a = LayerNormalization <axis=-1> (x, v) y = LpNormalization <axis=1> (a)", TWO),
    "reductions": ("a = ReduceMean <axes=[2], keepdims=0> (x) b = Unsqueeze(a, i2) c = Sub(x, b) y = ReduceSum(c, i1)",
                   TWO),
    "places": ("a = ArgMax <axis=1, keepdims=0> (x) y = Cast <to=1> (a)", LINE),
    "sorted": ("y, at = TopK <axis=1> (x, i2)", LINE),
    "sums": ("y = CumSum(x, s1)", LINE),
    "a sequence": (("t = Transpose <perm=[1,0,2]> (x) o, h = LSTM <hidden_size=5> (t, gates, again) "
                   "y = Transpose <perm=[1,0,2]> (h)"), TWO),
    "parts": ("a, b = Split <axis=1> (x, halves) c = Slice(b, i0, i1, i1) y = Concat <axis=1> (c, a)", LINE),
    "sides": ("a = Pad(x, pads) y = Slice(a, i0, far, i0)", LINE),
    "larger": ("y = Resize <mode=\"nearest\"> (x, , scales)", PICTURE),
    "einsum": ("y = Einsum <equation=\"nij,jk->nik\"> (x, w)", TWO),
    "levels": ("q = QuantizeLinear(x, half, zero) y = DequantizeLinear(q, half, zero)", LINE),
    "triangle": ("y = Trilu(x)", TWO),
    "no training": ("y = Dropout(x, half, no)", LINE),
    "vector": ("y = MatMul(x, v)", TWO),
    "flat": ("a = Flatten(x) y = Relu(a)", PICTURE),
}  # fmt: skip
MORE = {
    "fold": np.array([-1, 2, 4], np.int64), "back": np.array([-1, 4, 4], np.int64),
    "halves": np.array([3, 1], np.int64), "pads": np.array([0, 1, 0, 2], np.int64),
    "scales": np.array([1, 1, 2, 2], np.float32), "flip": np.array([4, -1], np.int64),
    "rotated": np.array([1, -1], np.int64), "taller": np.array([2, 1, 1, 1], np.float32),
    "wider": np.array([9, 12], np.int64), "behind": np.array([1, 0, 0, 0], np.int64),
    "fixed": np.array([1, 4], np.int64), "twice": np.array([2, 1], np.int64),
    "per_row": np.ones(2, np.float32), "zeros": np.zeros(2, np.uint8),
    "four": np.ones(4, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_rows_that_stay_apart_are_proved_to(name: str) -> None:
    body, shape = APART[name]
    model = made(body, shape, **MORE)
    prove_rows(model, Path(), {"x": feed(1, shape, "float")})
    assert is_apart(model, shape) is True


def test_look_ups_in_a_table_are_proved_apart() -> None:
    for body, kind in (("y = Gather(table, x)", "float"), ("a = Gather <axis=1> (x, i1) y = Abs(a)", "int64")):
        model = made(body, WORD, "int64", f"{kind}[] y")
        prove_rows(model, Path(), {"x": feed(1, WORD, "int64")})
        assert is_apart(model, WORD, "int64") is True


MIXED = {
    "the mean of the batch": ("m = ReduceMean <axes=[0]> (x) y = Sub(x, m)", LINE, "ReduceMean"),
    "the mean of all": ("m = ReduceMean(x) y = Sub(x, m)", LINE, "ReduceMean"),
    "a reduction by an input": ("m = ReduceSum(x, i0) y = Sub(x, m)", LINE, "ReduceSum"),
    "softmax over rows": ("y = Softmax <axis=0> (x)", LINE, "Softmax"),
    "softmax over rows, counted back": ("y = Softmax <axis=-2> (x)", LINE, "Softmax"),
    "the first row for all": ("a = Gather <axis=0> (x, i0) y = Add(x, a)", LINE, "Gather"),
    "a row by its number": ("a = Slice(x, i0, i1, i0) y = Add(x, a)", LINE, "Slice"),
    "rows backwards": ("y = Slice(x, m1, back_end, i0, m1)", LINE, "Slice"),
    "folded otherwise": ("t = Transpose(x) y = Reshape(t, rotated4)", LINE, "Reshape"),
    "reshaped across": ("a = Reshape(x, flip) b = Softmax <axis=1> (a) y = Reshape(b, rotated4)", LINE, "Reshape"),
    "folded and summed": ("a = Reshape(x, m1) b = Softmax <axis=0> (a) y = Reshape(b, rotated4)", LINE, "Softmax"),
    "the rows as the summed axis": ("t = Transpose(x) a = MatMul(t, x) y = MatMul(x, a)", LINE, "MatMul"),
    "each with each": ("t = Transpose(x) a = MatMul(x, t) y = ReduceSum(a, i1)", LINE, "MatMul"),
    "each with each, broadcast": ("a = Unsqueeze(x, i1) b = Unsqueeze(x, i0) c = Mul(a, b) y = ReduceSum(c, i1)", LINE,
                                  "Mul"),
    "summed matrices": ("a = Gemm <transA=1> (x, x) y = MatMul(x, a)", LINE, "Gemm"),
    "training": ("y, m, s = BatchNormalization <training_mode=1> (x, v, v, v, four)", LINE, "BatchNormalization"),
    "running sum": ("y = CumSum(x, s0)", LINE, "CumSum"),
    "the greatest rows": ("y, at = TopK <axis=0> (x, i1)", LINE, "TopK"),
    "the greatest row": ("a = ArgMax <axis=0> (x) b = Cast <to=1> (a) y = Add(x, b)", LINE, "ArgMax"),
    "levels of the batch": ("q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)", LINE, "DynamicQuant"),
    "control flow": (("m = ReduceMax <keepdims=0> (x) c = Greater(m, half) "
                     "y = If (c) <then_branch = a () => (float[] t) { t = Neg(x) }, "
                     "else_branch = b () => (float[] e) { e = Identity(x) }>"), LINE, "ReduceMax"),
    "a branch by a constant": (("y = If (no) <then_branch = a () => (float[] t) { t = Neg(x) }, "
                               "else_branch = b () => (float[] e) { e = Identity(x) }>"), LINE, "If"),
    "their number": ("s = Shape(x) n = Gather(s, s0) f = Cast <to=1> (n) y = Mul(x, f)", LINE, "Cast"),
    "copies of their number": (("s = Shape(x) n = Gather(s, i0) e = Expand(n, i4) f = Cast <to=1> (e) y = Mul(x, f)"),
                               LINE, "Expand"),
    "their number, tiled": ("s = Shape(x) n = Gather(s, i0) e = Tile(n, i4) f = Cast <to=1> (e) y = Mul(x, f)", LINE,
                            "Tile"),
    "their number as a width": (("s = Shape(x) n = Gather(s, i0) t = Concat <axis=0> (i1, n) "
                                 "c = Slice(x, i0, n, i1) y = ReduceSum(c, i1)"), LINE, "Slice"),
    "one for each row": (("s = Shape(x) n = Gather(s, s0) r = Range(s0, n, s1) f = Cast <to=1> (r) "
                         "u = Unsqueeze(f, i1) y = Add(x, u)"), LINE, "Range"),
    "rows put behind": ("a = Concat <axis=0> (x, x) y = Slice(a, i0, i1, i0)", LINE, "Concat"),
    "rows split": ("a, b = Split <axis=0> (x) y = Add(a, b)", LINE, "Split"),
    "rows padded": ("y = Pad(x, behind)", LINE, "Pad"),
    "rows made more": ("y = Resize <mode=\"nearest\"> (x, , taller)", PICTURE, "Resize"),
    "rows copied": ("y = Tile(x, twice)", LINE, "Tile"),
    "a fixed number of rows": ("y = Expand(square, fixed)", LINE, "output"),
    "reshaped to one": ("y = Reshape(x, rotated)", LINE, "output"),
    "their axis squeezed": ("a = Squeeze(x) y = Relu(a)", LINE, "Squeeze"),
    "normalised over rows": ("y = LayerNormalization <axis=0> (x, v)", LINE, "LayerNormalization"),
    "unit rows": ("y = LpNormalization <axis=0> (x)", LINE, "LpNormalization"),
    "rows as channels": ("a = Unsqueeze(x, i0) b = GlobalAveragePool(a) c = Squeeze(b, i0) y = Sub(x, c)", LINE,
                         "GlobalAveragePool"),
    "rows as a picture": ("u = Unsqueeze(x, i0) y = GlobalMaxPool(u)", PICTURE, "GlobalMaxPool"),
    "a sequence of rows": ("o, h = LSTM <hidden_size=5> (x, gates, again) y = Identity(o)", TWO, "LSTM"),
    "scattered": ("y = ScatterElements(x, at, x) at = Cast <to=7> (x)", LINE, "ScatterElements"),
    "triangle of rows": ("y = Trilu(x)", LINE, "Trilu"),
    "a result that is one": ("y = ReduceSum <keepdims=0> (x, i0)", LINE, "ReduceSum"),
    "rows at the end": ("y = Transpose(x)", LINE, "output"),
    "einsum of all": ("a = Einsum <equation=\"ni,nj->ij\"> (x, x) y = MatMul(x, a)", LINE, "Einsum"),
    "something for each row": ("y = Add(x, many)", LINE, "Add"),
    "a level for each row": ("q = QuantizeLinear <axis=0> (x, per_row, zeros) y = DequantizeLinear(q, half, zero)",
                             LINE, "QuantizeLinear"),
    "random": ("r = RandomNormalLike(x) y = Add(x, r)", LINE, "RandomNormalLike"),
    "values as sizes": ("a = ReduceMax <axes=[1]> (x) b = Cast <to=7> (a) y = NonZero(b)", LINE, "NonZero"),
    "another's operator": ("y = FusedThing(x)", LINE, "FusedThing"),
}  # fmt: skip
ALSO = {
    **MORE, "rotated4": np.array([-1, 4], np.int64), "back_end": np.array([-100], np.int64),
    "m1": np.array([-1], np.int64),
}  # fmt: skip


CAUTIOUS = ("a branch by a constant", "rows as channels")
"""Rows stay apart here, and nobody needs it proved."""


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_rows_is_refused_and_named(name: str) -> None:
    body, shape, said = MIXED[name]
    model = made(body, shape, **ALSO)
    with pytest.raises(ModelUnsupported, match=f"{said}|Shape|Expand|Reshape|in parts"):
        prove_rows(model, Path(), {"x": feed(1, shape, "float")})
    assert is_apart(model, shape) is not True or name in CAUTIOUS


def test_zeros_hide_from_a_trial_what_the_proof_sees() -> None:
    """Rows of zeros are the same alone and together in a model that takes the batch's mean away."""
    model = made(*MIXED["the mean of the batch"][:2], **ALSO)
    session = ort.InferenceSession(model.SerializeToString())
    zeros = np.zeros((3, *LINE), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": zeros})[0][:1], session.run(None, {"x": zeros[:1]})[0])
    assert not is_proved(model, LINE)


# -- what has two meanings, or none -----------------------------------------------------------------------------------


def ambiguous(name: str) -> onnx.ModelProto:
    """The sum that is taken away is over axis 1 in one reading, over the rows in the other."""
    model = made("r = ReduceSum(x, axis) y = Sub(x, r)", LINE, axis=np.array([1], np.int64))
    rows = numpy_helper.from_array(np.array([0], np.int64), "axis")
    if name == "two initializers":
        model.graph.initializer.append(rows)
    elif name == "a constant node beside":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["axis"], value=rows))
    elif name == "a node that makes it":
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "other"))
        model.graph.node.insert(0, onnx.helper.make_node("Identity", ["other"], ["axis"]))
    elif name == "an input too":
        model.graph.input.append(onnx.helper.make_tensor_value_info("axis", onnx.TensorProto.INT64, [1]))
    elif name == "two opsets":
        model.opset_import.append(onnx.helper.make_opsetid("ai.onnx", 11))
    elif name == "two attributes":
        model.graph.node[0].attribute.extend(onnx.helper.make_attribute("keepdims", keeps) for keeps in (1, 0))
    elif name == "computed from constants":
        model.graph.initializer.append(numpy_helper.from_array(np.array([2**30], np.int32), "a"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([4], np.int32), "b"))
        del model.graph.initializer[0]
        model.graph.node.insert(0, onnx.helper.make_node("Mul", ["a", "b"], ["c"]))  # int32: 0, not 2**32
        model.graph.node.insert(1, onnx.helper.make_node("Cast", ["c"], ["axis"], to=onnx.TensorProto.INT64))
    return model


@pytest.mark.parametrize(
    "name",
    ["two initializers", "a constant node beside", "a node that makes it", "an input too", "two opsets",
     "two attributes", "computed from constants"],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(name: str) -> None:
    prove_rows(made("r = ReduceSum(x, i1) y = Sub(x, r)", LINE), Path(), {"x": feed(1, LINE, "float")})
    with pytest.raises(ModelUnsupported):
        prove_rows(ambiguous(name), Path(), {"x": feed(1, LINE, "float")})


def test_sizes_that_are_declared_and_not_true_change_nothing() -> None:
    model = made("t = Relu(x) s = Shape(t) n = Gather(s, i0) c = Concat <axis=0> (n, m1) a = Reshape(x, c) "
                 "b = Softmax <axis=1> (a) y = Reshape(b, rotated4)", LINE, **ALSO)  # fmt: skip
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, [1, 4]))
    assert not is_proved(model, LINE)


def test_a_shape_at_which_onnx_itself_aborts_ends_the_preparation_alone(tmp_path: Path) -> None:
    """Sizes are looked at here only once a process of its own has prepared the graph for them."""
    model = made("a = MaxPool <kernel_shape=[3,3]> (x) y = Slice(a, i0, i1, i2)", (3, 8, 8))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"open{axis}"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(HybridError):
        prepare(tmp_path / "m.onnx", "d" * 64, ShapeKey.of({"x": np.zeros((1, 3, 1, 1), np.float32)}), tmp_path / "c")


def test_a_fixed_leading_size_is_opened_only_where_it_was_the_rows() -> None:
    """[1, 8] to [2, -1] is no row after another: opened as [0, -1] it would be another model already for one row."""
    model = made("a = Reshape(x, two) y = Reshape(a, one)", (8,), two=np.array([2, -1]), one=np.array([1, -1]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    given = {"x": feed(1, (8,), "float")}
    opened = open_rows(model, measured_sizes(model, Path(), given))
    assert opened.graph.node[0].input[1] == "two"  # as it was
    with pytest.raises(ModelUnsupported):
        prove_rows(opened, Path(), given)


# -- graphs made at random: what is proved holds in the engine --------------------------------------------------------


def test_whatever_is_proved_of_graphs_made_at_random_holds_in_the_engine() -> None:
    n_apart = n_mixed = n_proved = 0
    for seed in range(1500):
        model, shape = random_model(seed)
        proved = is_proved(model, shape)
        found = is_apart(model, shape)
        if found is None:
            continue
        n_proved += proved
        n_apart += found
        n_mixed += not found
        assert not proved or found, onnx.printer.to_text(model)
    assert n_mixed > 300  # the graphs do mix rows,
    assert n_proved > 200  # and the proof is no refusal of everything:
    assert n_proved > 0.6 * n_apart  # what keeps rows apart is mostly proved to


@pytest.mark.parametrize("seed", range(3))
def test_one_mixing_operator_anywhere_is_enough_to_refuse(seed: int) -> None:
    draw = random.Random(seed)
    calm = ["Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Softplus"]
    for name in (
        "the mean of the batch",
        "softmax over rows",
        "running sum",
        "the first row for all",
        "summed matrices",
    ):
        before, after = draw.randrange(4), draw.randrange(4)
        body, current = "", "x"
        for number in range(before):
            body += f"b{number} = {draw.choice(calm)}({current}) "
            current = f"b{number}"
        inner = MIXED[name][0].replace("(x", f"({current}").replace(", x", f", {current}")
        inner = inner.replace("y =", "z =")
        body += inner + " "
        current = "z"
        for number in range(after):
            body += f"d{number} = {draw.choice(calm)}({current}) "
            current = f"d{number}"
        model = made(f"{body} y = Mul({current}, {current})", LINE, **ALSO)
        with pytest.raises(ModelUnsupported):
            prove_rows(model, Path(), {"x": feed(1, LINE, "float")})


# -- models as they are shipped ---------------------------------------------------------------------------------------

REFUSED = {
    "silero": "no common number of rows",
    "silero_if": "no common number of rows",
    "minilm": "Expand",
}


@pytest.mark.parametrize("name", [*zoo.TRAINED, zoo.EFFICIENTNET, "squeezenet", "shufflenet"])
def test_real_models_are_proved_and_states_between_requests_are_not(name: str, tmp_path: Path) -> None:
    feeds = zoo.feeds(name)
    path = zoo.path(name)
    prepared = prepare(path, model_digest(path), ShapeKey.of(feeds), tmp_path)

    def proved(file: Path, given: zoo.Feeds) -> None:
        bound = load_proto(file)
        prove_rows(open_rows(bound, measured_sizes(bound, prepared.folder, given)), prepared.folder, given)

    if name in REFUSED:
        with pytest.raises(ModelUnsupported, match=REFUSED[name]):
            proved(prepared.graph_path, feeds)
        return
    proved(prepared.graph_path, feeds)
    cuts = [cut for cut in prepared.table.interior if cut.id in prepared.table.pareto]
    for cut in [cut for cut in cuts if all(spec.shape and spec.shape[0] == 1 for spec in cut.tensors)][:2]:
        names = [spec.name for spec in cut.tensors]
        head = ort.InferenceSession(str(prepared.head_path(cut.id)))
        proved(prepared.tail_path(cut.id), dict(zip(names, head.run(names, feeds), strict=True)))
