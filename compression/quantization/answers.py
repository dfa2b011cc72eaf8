"""What a float model answers to samples, and how far another model's answers are from that."""

from collections.abc import Sequence

import numpy as np
import onnx

from compression.errors import NotQuantizable
from compression.measuring import Feeds
from compression.quantization.running import open_session, run


class Answers:
    """What a float model answers to samples; other models are held against it."""

    def __init__(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> None:
        self._samples = samples
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
        self._names = [name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT]
        if not self._names:
            raise NotQuantizable("the model has no float32 output to compare; wanted one, its logits say")
        session = open_session(model)
        self._wanted = [run(session, self._names, feeds) for feeds in samples]

    def distance(self, model: onnx.ModelProto) -> float:
        """The mean over samples and outputs of ‖y − ŷ‖ / ‖y‖."""
        session = open_session(model)
        parts = []
        for feeds, wanted in zip(self._samples, self._wanted, strict=True):
            for want, have in zip(wanted, run(session, self._names, feeds), strict=True):
                length = float(np.linalg.norm(want.astype(np.float64)))
                apart = float(np.linalg.norm(want.astype(np.float64) - have))
                parts.append(apart / length if length else apart)
        return float(np.mean(parts))
