"""Where a model's head begins in exports of the script's module, in which tensors have other names.

Design: found by values. The tensor is meant that holds the same numbers in both graphs for one sample; pruned and
trained forms of the module are exported alike, so its name holds for them too.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime

from compression.errors import NotTrainable
from devices.onnx_engine import open_session
from hybrid.calibration.judge import distance
from hybrid.calibration.samples import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

SAME: Final = 1e-2
"""Relative distance up to which two tensors hold the same, as for the outputs of module and model."""


def counterpart(path: Path, head: str, exported: "ModelProto", feeds: Feeds) -> str:
    """The export's tensor that holds what a tensor of the model holds; empty where none does.

    Args:
        path: of the model.
        head: the tensor that its head stands on.
        exported: the same net as its module is exported.
        feeds: of one sample.
    """
    import onnx

    from compression.training.head_graphs import stand_of

    wanted = _values(onnx.load(path), [head], feeds)[head]
    names = [name for node in exported.graph.node for name in node.output if name]
    found = _values(exported, names, feeds)
    for name in reversed(names):
        value = found.get(name)
        if value is None or value.shape != wanted.shape or distance(value, wanted) > SAME:
            continue
        try:
            return stand_of(exported, name).tensor
        except NotTrainable:
            continue
    return ""


def _values(model: "ModelProto", names: list[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """What float tensors of a model hold for a sample."""
    import onnx
    from onnx import TensorProto, helper, shape_inference

    inferred = shape_inference.infer_shapes(model)
    floats = {
        info.name
        for info in (*inferred.graph.value_info, *inferred.graph.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    kept = [name for name in names if name in floats]
    told = onnx.ModelProto()
    told.CopyFrom(model)
    del told.graph.output[:]
    told.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in kept)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = open_session(told.SerializeToString(), options, ["CPUExecutionProvider"])
    return dict(zip(kept, session.run(kept, dict(feeds)), strict=True))
