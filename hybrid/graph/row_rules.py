"""For each operator that may be in a batched graph: where the rows of its outputs lie, or why it may mix them.

Design: an allow-list. Every rule looks at the attributes and constant operands through which the operator could reach
over rows; an operator without a rule is refused, and so is an opset that nobody has looked at yet.
"""

from collections.abc import Callable
from typing import Final

from hybrid.graph.row_facts import Fact, Fixed, Rows, Step
from hybrid.graph.row_moves import MOVES

Rule = Callable[[Step], list[Fact]]


def spread(step: Step) -> list[Fact]:
    """Element by element, with broadcasting."""
    rows = [fact for fact in step.inputs if isinstance(fact, Rows)]
    first = rows[0]
    if any(fact.back != first.back or fact.k != first.k for fact in rows):
        step.refuse("its inputs have their rows at different places")
    rank = first.rank
    for index, fact in enumerate(step.inputs):
        if isinstance(fact, Fixed) and len(fact.shape) >= first.back and fact.shape[-first.back] != 1:
            step.refuse(f"input {index} has something for each row already")
        rank = max(rank, len(fact.shape) if fact is not None else 0)
    return [step.along(rank - first.back, first.k)]


def sample_by_sample(step: Step) -> list[Fact]:
    """Convolutions, pools and normalisations, which take the leading axis as that of the samples."""
    rows = step.rows()
    if rows.axis != 0 or len(rows.shape) < 3:
        step.refuse(f"its samples are along axis 0 of 3 or more, the rows along axis {rows.axis} of {len(rows.shape)}")
    step.need_fixed(*range(1, len(step.inputs)))
    return [step.along(0, rows.k)]


def two_samples(step: Step) -> list[Fact]:
    """GridSample: a picture and a grid, both sample by sample."""
    picture, grid = step.rows(0), step.rows(1)
    if picture.axis or grid.axis or picture.k != grid.k or len(picture.shape) < 3:
        step.refuse("picture and grid have their rows at different places")
    return [step.along(0, picture.k)]


def batch_normalization(step: Step) -> list[Fact]:
    """With the statistics that it brings, never with those of the batch."""
    rows = step.rows()
    if step.attribute("training_mode", 0) or sum(bool(name) for name in step.outputs) > 1:
        step.refuse("it is in training, where it takes the mean of the batch")
    if rows.axis != 0 or len(rows.shape) < 2:
        step.refuse("its samples are along axis 0, the rows are not")
    step.need_fixed(1, 2, 3, 4)
    return [step.along(0, rows.k)]


def behind(step: Step) -> list[Fact]:
    """LayerNormalization and the like: everything from an axis on together."""
    rows = step.rows()
    axis = step.axis(-1, len(rows.shape))
    if axis <= rows.axis:
        step.refuse(f"it takes everything from axis {axis} on together, rows along axis {rows.axis} among it")
    for index in range(1, len(step.inputs)):
        fact = step.given(index)
        step.need_fixed(index)
        if fact is not None and len(fact.shape) >= rows.back:
            step.refuse(f"input {index} reaches over the rows")
    return [step.along(rows.axis, rows.k)]


def along_one(step: Step, default: int = -1) -> list[Fact]:
    """Along one axis, the others apart."""
    rows = step.rows()
    if step.axis(default, len(rows.shape)) == rows.axis:
        step.refuse("it works along the axis of the rows")
    step.need_fixed(*range(1, len(step.inputs)))
    return [step.along(rows.axis, rows.k, index) for index in range(len(step.outputs))]


def softmax(step: Step) -> list[Fact]:
    """Along one axis; before opset 13 over everything from an axis on."""
    if step.version >= 13:
        return along_one(step)
    rows = step.rows()
    if step.axis(1, len(rows.shape)) <= rows.axis:
        step.refuse("it works over the axis of the rows")
    return [step.along(rows.axis, rows.k)]


def reduce(step: Step) -> list[Fact]:
    """Over axes that are named, the rows' not among them."""
    rows = step.rows()
    rank = len(rows.shape)
    found = step.attribute("axes")
    axes = step.axes(step.numbers(1) if found is None else found, rank)
    if not axes:
        if step.attribute("noop_with_empty_axes", 0):
            step.refuse("it names no axes")
        step.refuse("it reduces over all axes, the rows' among them")
    if rows.axis in axes:
        step.refuse("it reduces over the rows")
    kept = step.attribute("keepdims", 1)
    axis = rows.axis if kept else rows.axis - sum(axis < rows.axis for axis in set(axes))
    return [step.along(axis, rows.k)]


def arg_reduce(step: Step) -> list[Fact]:
    """ArgMax and ArgMin: the place within one axis."""
    rows = step.rows()
    axis = step.axis(0, len(rows.shape))
    if axis == rows.axis:
        step.refuse("it looks for a place among the rows")
    return [step.along(rows.axis - (axis < rows.axis and not step.attribute("keepdims", 1)), rows.k)]


def cumulate(step: Step) -> list[Fact]:
    """CumSum: its axis is an input."""
    rows = step.rows()
    if rows.axis in step.axes(step.numbers(1), len(rows.shape)) or not step.numbers(1):
        step.refuse("it adds up along the rows")
    return [step.along(rows.axis, rows.k)]


def product(step: Step) -> list[Fact]:
    """Matrix products: rows are never what is summed over, and meet only at the same place of a batch of matrices."""
    a, b = step.given(0), step.given(1)
    if isinstance(a, Rows) and isinstance(b, Rows):
        if a.back != b.back or a.back < 3 or a.k != b.k:
            step.refuse("the rows of one factor meet those of the other")
        return [step.along(max(len(a.shape), len(b.shape)) - a.back, a.k)]
    rows, other = (a, b) if isinstance(a, Rows) else (b, a)
    assert isinstance(rows, Rows)
    if not isinstance(other, Fixed) or not other.shape:
        step.refuse("a factor is no matrix")
    summed_back = 1 if rows is a or len(rows.shape) == 1 else 2
    if rows.back == summed_back:
        step.refuse("it sums over the rows")
    if rows.back > 2 and len(other.shape) >= rows.back and other.shape[-rows.back] != 1:
        step.refuse("the other factor has a matrix for each row already")
    n_dropped = int(len(other.shape) == 1)  # a vector's only axis is summed over and gone
    back = rows.back - n_dropped
    rank = max(len(rows.shape), len(other.shape), 2) - n_dropped - (len(rows.shape) == 1)
    return [step.along(rank - back, rows.k)]


def general_product(step: Step) -> list[Fact]:
    """Gemm: the rows of the first matrix, with the same second one for all."""
    rows = step.rows(0)
    if rows.axis != 0 or step.attribute("transA", 0):
        step.refuse("it sums over the rows")
    step.need_fixed(1)
    bias = step.given(2)
    if isinstance(bias, Rows):
        if bias.axis != 0 or bias.k != rows.k or len(bias.shape) != 2:
            step.refuse("what it adds has its rows at another place")
    elif bias is not None and len(bias.shape) == 2 and bias.shape[0] != 1:
        step.refuse("what it adds has something for each row already")
    return [step.along(0, rows.k)]


def quantize(step: Step) -> list[Fact]:
    """To levels and back, with scales that are the same for all rows."""
    rows = step.rows()
    step.need_fixed(1, 2)
    scale = step.given(1)
    if not isinstance(scale, Fixed) or len(scale.shape) > 1 or step.attribute("block_size", 0):
        step.refuse("its scales are not one a channel")
    if scale.shape not in ((), (1,)) and step.axis(1, len(rows.shape)) == rows.axis:
        step.refuse("it has a scale for each row")
    return [step.along(rows.axis, rows.k)]


def integer_product(step: Step) -> list[Fact]:
    """MatMulInteger and QLinearMatMul, with scales and zero points that are the same for all rows."""
    places = (0, 3) if step.op == "QLinearMatMul" else (0, 1)
    others = [index for index in range(len(step.inputs)) if index not in places]
    step.need_fixed(*others)
    step.need_fixed(places[1])
    for index in others:
        fact = step.given(index)
        if fact is not None and fact.shape not in ((), (1,)):
            step.refuse(f"input {index} may be one a row")
    factors = [step.given(place) for place in places]
    step.inputs = factors
    return product(step)


def recurrent(step: Step) -> list[Fact]:
    """LSTM, GRU and RNN: along the sequence, with the rows along axis 1."""
    rows = step.rows(0)
    if step.attribute("layout", 0) or rows.axis != 1:
        step.refuse("its sequences are along axis 1, the rows are not")
    step.need_fixed(1, 2, 3, 7)
    for index, axis in ((4, 0), (5, 1), (6, 1)):
        state = step.given(index)
        if state is not None and not (isinstance(state, Rows) and state.axis == axis and state.k == rows.k):
            step.refuse(f"input {index} does not have its rows along axis {axis}")
    axes = (2, 1, 1)
    return [step.along(axes[index], rows.k, index) if name else rows for index, name in enumerate(step.outputs)]


def dropout(step: Step) -> list[Fact]:
    """Nothing, outside of training."""
    training = step.numbers(2)
    if (training and training[0]) or step.attribute("is_test", 1) != 1:
        step.refuse("it is in training")
    return [step.rows()]


_ELEMENTWISE: Final = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
_SAMPLES: Final = (
    "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalLpPool",
    "GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "QLinearConv",
    "SpaceToDepth",
)  # fmt: skip
_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_ELEMENTWISE, spread),
    **dict.fromkeys(_SAMPLES, sample_by_sample),
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), behind),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduce),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(("MatMulInteger", "QLinearMatMul"), integer_product),
    "BatchNormalization": batch_normalization,
    "CumSum": cumulate,
    "Dropout": dropout,
    "Gemm": general_product,
    "GridSample": two_samples,
    "LpNormalization": along_one,
    "MatMul": product,
    "TopK": along_one,
    **MOVES,
}
