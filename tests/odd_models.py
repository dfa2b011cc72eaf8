"""Small models with what shipped files hold and textbooks do not, each with feeds."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, parser
from onnx.numpy_helper import from_array

OPSETS = '["" : 17, "ai.onnx.ml" : 3, "com.microsoft" : 1]'


@dataclass(frozen=True)
class Odd:
    """A model and what to feed it."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    crossings: tuple[frozenset[str], ...] = field(default=())  # sets of tensors that must be among the cuts


def _x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def text(body: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's own text form, with weights."""
    model = parser.parse_model(f"<ir_version: 8, opset_import: {OPSETS}> {body}")
    model.graph.initializer.extend(from_array(value, name) for name, value in weights.items())
    return model


def echoed_input() -> Odd:
    model = text("g (float[1,8] x) => (float[1,8] x, float[1,8] y) { a = Exp(x) b = Tanh(a) y = Neg(b) }")
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"a"}), frozenset({"b"})))


def output_used_later() -> Odd:
    model = text("g (float[1,8] x) => (float[1,8] a, float[1,8] y) { a = Exp(x) b = Tanh(a) y = Add(a, b) }")
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"a"}),))


def early_output_of_two_inputs() -> Odd:
    """y depends on tensors that z does not: it must be answered by the head where only a crosses."""
    body = """g (float[1,8] x, float[1,4] u) => (float[1,8] y, float[1,8] z) {
        a = Exp(x) c = ReduceSum(u) y = Mul(a, c) d = Tanh(a) z = Neg(d) }"""
    return Odd(text(body), {"x": _x(1, 8), "u": _x(1, 4, seed=1)})


def state_in_and_out() -> Odd:
    body = """g (float[1,8] x, float[1,8] state) => (float[1,8] y, float[1,8] state_n) {
        a = Add(x, state) state_n = Tanh(a) b = Exp(x) y = Mul(b, state_n) }"""
    return Odd(text(body), {"x": _x(1, 8), "state": _x(1, 8, seed=1)})


def constant_output() -> Odd:
    model = text(
        "g (float[1,8] x) => (float[1,8] y, float[2] k) { a = Exp(x) y = Tanh(a) k = Neg(w) }",
        w=np.array([1, 2], np.float32),
    )
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"a"}),))


def left_out_inputs() -> Odd:
    body = """g (float[1,3,8,8] x) => (float[1,3,16,16] y) {
        a = Exp(x) b = Clip(a, , top) c = Neg(b) y = Resize <mode = "nearest"> (c, , scales) }"""
    weights = {"top": np.array(1.5, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    return Odd(text(body, **weights), {"x": _x(1, 3, 8, 8)}, (frozenset({"a"}), frozenset({"b"})))


def no_elements() -> Odd:
    body = """g (float[0,4] x, float[2,4] u) => (float[2,4] y) {
        a = Exp(x) b = Neg(u) c = Concat<axis=0>(a, b) y = Tanh(c) }"""
    return Odd(text(body), {"x": _x(0, 4), "u": _x(2, 4)})


def strings() -> Odd:
    body = """g (string[N] s) => (float[N] y) {
        a = Concat <axis = 0> (s, s)
        b = ai.onnx.ml.LabelEncoder <keys_strings = ["a", "b"], values_floats = [1.0, 2.0], default_float = 7.0> (a)
        y = Neg(b) }"""
    return Odd(text(body), {"s": np.array(["a", "b", "grüß"], object)})


def data_dependent() -> Odd:
    body = """g (float[4,4] x) => (float[R,2] y) {
        a = Relu(x) n = NonZero(a) t = Transpose(n) c = Cast <to = 1> (t) y = Neg(c) }"""
    return Odd(text(body), {"x": _x(4, 4)}, (frozenset({"a"}), frozenset({"c"})))


def sequences() -> Odd:
    body = """g (float[4,4] x) => (float[2,4] y) {
        a = Relu(x) q = SplitToSequence <axis = 0> (a, two) b = SequenceAt(q, one) y = Exp(b) }"""
    return Odd(text(body, two=np.array(2, np.int64), one=np.array(1, np.int64)), {"x": _x(4, 4)}, (frozenset({"a"}),))


def branches_that_capture() -> Odd:
    """An If whose bodies use tensors of the outer graph that are not its inputs."""
    then = parser.parse_graph("then_body () => (float[1,8] r) { r = Mul(h, k) }")
    other = parser.parse_graph("else_body () => (float[1,8] r) { t = Exp(x) r = Add(t, h) }")
    model = text("g (float[1,8] x) => (float[1,8] y) { h = Tanh(x) s = ReduceSum<keepdims=0>(h) c = Greater(s, zero) }")
    model.graph.node.append(helper.make_node("If", ["c"], ["m"], then_branch=then, else_branch=other))
    model.graph.node.append(helper.make_node("Neg", ["m"], ["y"]))
    model.graph.initializer.extend([from_array(np.array(0, np.float32), "zero"), from_array(_x(1, 8, seed=2), "k")])
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"m"}),))


def loop() -> Odd:
    body = parser.parse_graph(
        "body (int64 i, bool go, float[1,8] v) => (bool go_on, float[1,8] w) { go_on = Identity(go) w = Mul(v, h) }"
    )
    model = text("g (float[1,8] x) => (float[1,8] y) { h = Tanh(x) e = Exp(h) }")
    model.graph.node.append(helper.make_node("Loop", ["trips", "", "e"], ["m"], body=body))
    model.graph.node.append(helper.make_node("Neg", ["m"], ["y"]))
    model.graph.initializer.append(from_array(np.array(3, np.int64), "trips"))
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"e", "h"}),))


def weights_in_constant_nodes() -> Odd:
    model = text("g (float[1,8] x) => (float[1,4] y) { a = Exp(x) }")
    weight = from_array(_x(8, 4, seed=3), "w")
    model.graph.node.append(helper.make_node("Constant", [], ["w"], value=weight))
    model.graph.node.append(helper.make_node("MatMul", ["a", "w"], ["b"]))
    model.graph.node.append(helper.make_node("Tanh", ["b"], ["y"]))
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"a"}), frozenset({"b"})))


def weights_listed_as_inputs() -> Odd:
    model = text("g (float[1,8] x, float[8,4] w) => (float[1,4] y) { a = Exp(x) b = MatMul(a, w) y = Tanh(b) }")
    model.ir_version = 3
    model.opset_import[0].version = 8
    model.graph.initializer.append(from_array(_x(8, 4, seed=3), "w"))
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"a"}), frozenset({"b"})))


def quantised() -> Odd:
    """Weights behind a DequantizeLinear that is not folded: both sides keep what they need of it."""
    body = """g (float[1,8] x) => (float[1,8] y) {
        w = DequantizeLinear(q, s, z) a = Mul(x, w) b = Tanh(a) c = Mul(b, w) y = Exp(c) }"""
    weights = {
        "q": np.random.default_rng(4).integers(-99, 99, (1, 8), dtype=np.int8),
        "s": np.array(0.01, np.float32),
        "z": np.array(0, np.int8),
    }
    return Odd(text(body, **weights), {"x": _x(1, 8)}, (frozenset({"b"}),))


def half_precision() -> Odd:
    body = "g (float16[1,8] x) => (float16[1,8] y) { a = Exp(x) b = Tanh(a) y = Neg(b) }"
    return Odd(text(body), {"x": _x(1, 8).astype(np.float16)})


def model_functions() -> Odd:
    source = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[1,8] x) => (float[1,8] y) { a = Exp(x) b = local.twice(a) y = Tanh(b) }
        <domain: "local", opset_import: ["" : 17]> twice (p) => (r) { r = Add(p, p) }"""
    return Odd(parser.parse_model(source), {"x": _x(1, 8)}, (frozenset({"a"}), frozenset({"b"})))


def sparse_weights() -> Odd:
    model = text("g (float[1,4] x) => (float[1,4] y) { a = Exp(x) b = MatMul(a, w) y = Tanh(b) }")
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    indices = helper.make_tensor("w_at", TensorProto.INT64, [3], [0, 6, 11])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    return Odd(model, {"x": _x(1, 4)}, (frozenset({"a"}),))


def operators_of_the_engine() -> Odd:
    """onnx knows no shapes for com.microsoft; onnxruntime does."""
    body = """g (float[B,8] x) => (float[B,4] y) {
        a = com.microsoft.QuickGelu(x) b = com.microsoft.FastGelu(a) y = MatMul(b, w) }"""
    return Odd(text(body, w=_x(8, 4, seed=5)), {"x": _x(3, 8)}, (frozenset({"a"}), frozenset({"b"})))


def unused_results() -> Odd:
    body = """g (float[1,8] x) => (float[1,4] y) {
        a = Exp(x) l, r = Split <axis = 1> (a) dead = Neg(r) b, idx = TopK(l, k) y = Tanh(b) }"""
    return Odd(text(body, k=np.array([4], np.int64)), {"x": _x(1, 8)}, (frozenset({"a"}), frozenset({"l"})))


def unused_input() -> Odd:
    model = text("g (float[1,8] x, float[1,2] spare) => (float[1,8] y) { a = Exp(x) y = Tanh(a) }")
    return Odd(model, {"x": _x(1, 8), "spare": _x(1, 2)}, (frozenset({"a"}),))


def one_node() -> Odd:
    return Odd(text("g (float[1,8] x) => (float[1,8] y) { y = Tanh(x) }"), {"x": _x(1, 8)})


def every_datatype() -> Odd:
    """One tensor of each plain datatype crosses in the middle."""
    names = {
        "f": TensorProto.FLOAT, "d": TensorProto.DOUBLE, "i8": TensorProto.INT8, "i16": TensorProto.INT16,
        "i32": TensorProto.INT32, "i64": TensorProto.INT64, "u8": TensorProto.UINT8, "u16": TensorProto.UINT16,
        "u32": TensorProto.UINT32, "u64": TensorProto.UINT64, "h": TensorProto.FLOAT16, "t": TensorProto.BOOL,
    }  # fmt: skip
    there = " ".join(f"c_{n} = Cast <to = {to}> (a)" for n, to in names.items() if n != "d")
    there += " d = Cast <to = 11> (a) c_d = Neg(d)"  # a lone cast to double and back is folded away
    back = " ".join(f"r_{n} = Cast <to = 1> (c_{n})" for n in names)
    total = ", ".join(f"r_{n}" for n in names)
    model = text(f"g (float[1,8] x) => (float[1,8] y) {{ a = Exp(x) {there} {back} y = Sum({total}) }}")
    return Odd(model, {"x": _x(1, 8)}, (frozenset({"a"}),))


ODD: dict[str, Callable[[], Odd]] = {
    make.__name__: make
    for make in (
        echoed_input, output_used_later, early_output_of_two_inputs, state_in_and_out, constant_output,
        left_out_inputs, no_elements, strings, data_dependent, sequences, branches_that_capture, loop,
        weights_in_constant_nodes, weights_listed_as_inputs, quantised, half_precision, model_functions,
        sparse_weights, operators_of_the_engine, unused_results, unused_input, one_node, every_datatype,
    )
}  # fmt: skip
