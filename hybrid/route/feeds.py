"""Whether a request's feeds may travel: plain arrays that the model declares, nothing else.

Whatever does not fit goes to the local session, which raises what onnxruntime raises.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime

_NUMPY_KINDS = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
}

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Input names with their shapes, in the model's order."""


@dataclass(frozen=True, slots=True)
class DeclaredInput:
    """An input as the model declares it; `dtype` is None where it never travels by value checks (strings)."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Declared:
    """The inputs and outputs of a model, and whether all of them can travel.

    Attributes:
        inputs: in the model's order.
        outputs: names in the model's order.
        obstacle: why this model always stays local (sequences, maps, optionals), or an empty string.
    """

    inputs: tuple[DeclaredInput, ...]
    outputs: tuple[str, ...]
    obstacle: str

    @classmethod
    def of(cls, session: onnxruntime.InferenceSession) -> "Declared":
        """Reads the declarations of an open session."""
        inputs, obstacle = [], ""
        if getattr(session, "keeps_state", False):  # a trial run would already be one that the caller did not make
            obstacle = "the model remembers something between runs, so that all of them must be this device's"
        for node in session.get_inputs():
            if node.type != "tensor(string)" and node.type not in _NUMPY_KINDS:
                obstacle = obstacle or f"input {node.name} is a {node.type}, which does not travel"
            shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
            inputs.append(DeclaredInput(node.name, _NUMPY_KINDS.get(node.type), shape))
        for node in session.get_outputs():
            if node.type != "tensor(string)" and node.type not in _NUMPY_KINDS:
                obstacle = obstacle or f"output {node.name} is a {node.type}, which does not travel"
        return cls(tuple(inputs), tuple(node.name for node in session.get_outputs()), obstacle)

    def static_shapes(self) -> Shapes | None:
        """The only shapes that the model takes, or None where a dimension is free."""
        shapes = []
        for declared in self.inputs:
            known = tuple(size for size in declared.shape if size is not None)
            if len(known) != len(declared.shape):
                return None
            shapes.append((declared.name, known))
        return tuple(shapes)

    def shapes_of(self, feeds: Mapping[str, object]) -> Shapes | None:
        """The shapes of feeds that may travel; None where onnxruntime itself has to judge them."""
        if len(feeds) != len(self.inputs):
            return None
        shapes = []
        for declared in self.inputs:
            array = feeds.get(declared.name)
            if type(array) is not np.ndarray or not _fits(array, declared):
                return None
            shapes.append((declared.name, array.shape))
        return tuple(shapes)


def _fits(array: np.ndarray, declared: DeclaredInput) -> bool:
    if declared.dtype is None:
        # Of other objects onnxruntime makes text in a way of its own: they stay here.
        if array.dtype.kind != "U" and not (array.dtype.kind == "O" and all(type(item) is str for item in array.flat)):
            return False
    elif array.dtype != declared.dtype:
        return False
    if array.ndim != len(declared.shape):
        return False
    return all(want is None or want == size for want, size in zip(declared.shape, array.shape, strict=True))
