"""Every operator that a head may have, by its ONNX name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from hybrid.federated.learning.operators import across, elementwise, moves, products, rounding
from hybrid.federated.learning.operators.call import Operator

OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "Add": elementwise.add,
        "BatchNormalization": across.batch_normalization,
        "Cast": elementwise.cast,
        "Clip": elementwise.clip,
        "Concat": moves.concat,
        "Constant": moves.constant,
        "Conv": products.pointwise_conv,
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

SHAPES_ONLY: Final = frozenset({"Shape"})
"""Their answer does not follow the values of their inputs."""

DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
