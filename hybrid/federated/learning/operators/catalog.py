"""Every operator that a head or a whole model may have, by its ONNX name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from hybrid.federated.learning.operators import across, elementwise, grids, moves, products, rounding, windows
from hybrid.federated.learning.operators.call import Operator, Step

OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "Add": elementwise.add,
        "BatchNormalization": across.batch_normalization,
        "Cast": elementwise.cast,
        "Clip": elementwise.clip,
        "Concat": moves.concat,
        "Constant": moves.constant,
        "Conv": windows.conv,
        "DequantizeLinear": rounding.dequantize,
        "Div": elementwise.divide,
        "Dropout": elementwise.same,
        "Elu": elementwise.elu,
        "Erf": elementwise.erf,
        "Exp": elementwise.exponential,
        "Flatten": moves.flatten,
        "Gather": moves.gather,
        "Gelu": elementwise.gelu,
        "Gemm": products.gemm,
        "GlobalAveragePool": across.global_average,
        "HardSigmoid": elementwise.hard_sigmoid,
        "HardSwish": elementwise.hard_swish,
        "Identity": elementwise.same,
        "LayerNormalization": across.layer_normalization,
        "LeakyRelu": elementwise.leaky_relu,
        "Log": elementwise.logarithm,
        "LogSoftmax": across.log_softmax,
        "MatMul": products.matmul,
        "Max": elementwise.extreme(np.maximum),
        "Min": elementwise.extreme(np.minimum),
        "Mul": elementwise.multiply,
        "Neg": elementwise.negate,
        "PRelu": elementwise.p_relu,
        "Pow": elementwise.power,
        "QuantizeLinear": rounding.quantize,
        "ReduceMean": across.reduce_mean,
        "ReduceSum": across.reduce_sum,
        "Relu": elementwise.relu,
        "Reshape": moves.reshape,
        "Shape": moves.shape_of,
        "Sigmoid": elementwise.sigmoid,
        "Slice": moves.cut_out,
        "Softmax": across.softmax,
        "Sqrt": elementwise.square_root,
        "Squeeze": moves.squeeze,
        "Sub": elementwise.subtract,
        "Tanh": elementwise.tanh,
        "Transpose": moves.transpose,
        "Unsqueeze": moves.unsqueeze,
    }
)

BY_TORCH: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "AveragePool": windows.average_pool,
        "Conv": windows.conv_by_torch,
        "ConvTranspose": windows.conv_transpose,
        "GlobalMaxPool": windows.global_max,
        "MaxPool": windows.max_pool,
        "Pad": grids.pad,
        "ReduceMax": grids.reduce_max,
        "Resize": grids.resize,
    }
)
"""Those that torch computes; `Conv` where it is more than a product at each place."""


def operator_of(step: Step) -> Operator | None:
    """What computes a step; None where nothing does."""
    return OPERATORS.get(step.op) or BY_TORCH.get(step.op)


def needs_torch(step: Step) -> bool:
    """Whether a step is torch's."""
    return step.op in BY_TORCH and not (step.op == "Conv" and windows.is_pointwise(step, None))


SHAPES_ONLY: Final = frozenset({"Shape"})
"""Their answer does not follow the values of their inputs."""

DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
