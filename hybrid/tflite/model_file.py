"""A TensorFlow Lite file as objects, and back: with the schema that LiteRT's own wheel carries.

Design: the generated code of the schema knows the whole file format, control flow and newest operators included, and
follows it with each release; nothing of the format is written down here a second time. Weights that lie behind the
flatbuffer (`Buffer.offset`, as litert-quantizer writes them) are taken into it: a piece that kept such an offset would
point into another file. Weights are written at multiples of 16 bytes, as kernels want them, which the generated code
does not.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from devices.tflite_magic import MAGIC
from hybrid.errors import ModelInvalid, ModelMissing, ModelUnsupported
from hybrid.tflite.names import text

ALIGNMENT: Final = 16
MOST_BYTES: Final = 2**31 - 1
"""A flatbuffer ends before this."""

Model = Any
"""The schema's `ModelT`: plain objects, generated, without types."""


def schema(path: str = "") -> Any:
    """The schema of LiteRT's wheel, loaded at the first use.

    Raises:
        ModelUnsupported: LiteRT is not installed (tflite-runtime carries no schema).
    """
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError as exc:
        raise ModelUnsupported(
            f"{path or 'a TensorFlow Lite model'} can be divided only with the schema of ai-edge-litert, which is not "
            "installed; install hybrid-split[tflite], or use the model whole",
            path=path,
        ) from exc


def read(path: Path) -> Model:
    """The model of this file, with all its weights inside.

    Raises:
        ModelMissing: no such file.
        ModelInvalid: not a TensorFlow Lite model, or a damaged one.
        ModelUnsupported: weights in other files, or no schema here.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise ModelMissing(f"{path}: no such file; give the path of a .tflite model", path=str(path)) from exc
    except OSError as exc:
        raise ModelInvalid(f"{path}: cannot be read ({exc.strerror or exc})", path=str(path)) from exc
    return parse(data, str(path))


def parse(data: bytes, shown: str) -> Model:
    """The model of these bytes; raises as `read` does."""
    if data[4:8] != MAGIC:
        raise ModelInvalid(f"{shown}: not a TensorFlow Lite model; fetch or convert it again", path=shown)
    generated = schema(shown)
    try:
        model = generated.ModelT.InitFromPackedBuf(data, 0)
        if not model.subgraphs or not model.buffers:
            raise ModelInvalid(f"{shown}: holds no graph; fetch or convert it again", path=shown)
        if model.externalBuffers:
            raise ModelUnsupported(f"{shown}: its weights lie in other files; write it with its weights", path=shown)
        _inline(model, data)
        for tensor in model.subgraphs[0].tensors:
            tensor.name = text(tensor.name)
    except (ModelInvalid, ModelUnsupported):
        raise
    except Exception as exc:  # (the generated code raises what comes: struct.error, IndexError, TypeError)
        raise ModelInvalid(
            f"{shown}: a damaged TensorFlow Lite model ({exc}); fetch or convert it again", path=shown
        ) from exc
    return model


def _inline(model: Model, data: bytes) -> None:
    """Take what lies behind the flatbuffer into it."""
    view = np.frombuffer(data, np.uint8)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0: inside; 1: a placeholder of writers that did not fill it in
            buffer.data = _slice(view, buffer.offset, buffer.size)
        buffer.offset = buffer.size = 0
    for operator in (found for graph in model.subgraphs for found in graph.operators or ()):
        if operator.largeCustomOptionsOffset > 1:
            operator.customOptions = _slice(view, operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize)
            operator.largeCustomOptionsOffset = operator.largeCustomOptionsSize = 0


def _slice(view: np.ndarray, offset: int, size: int) -> np.ndarray:
    if offset + size > len(view):
        raise ModelInvalid(f"a weight ends at byte {offset + size} of {len(view)}; the file is cut off")
    return view[offset : offset + size]


def write(model: Model) -> bytes:
    """The file of this model, the same bytes for the same model.

    Raises:
        ModelUnsupported: it would be larger than a flatbuffer may be.
    """
    import flatbuffers

    n_bytes = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    if n_bytes > MOST_BYTES - (64 << 20):
        raise ModelUnsupported(f"a part of {n_bytes} bytes of weights is more than one TensorFlow Lite file may hold")
    builder = flatbuffers.Builder(n_bytes + 64 * len(model.buffers) + (1 << 16))
    kept, model.buffers = model.buffers, [_Aligned(buffer.data) for buffer in model.buffers]
    try:
        builder.Finish(model.Pack(builder), file_identifier=MAGIC)
    finally:
        model.buffers = kept
    return bytes(builder.Output())


class _Aligned:
    """Weights that pack themselves at a multiple of `ALIGNMENT` bytes."""

    def __init__(self, data: np.ndarray | list[int] | None) -> None:
        self._data = None if data is None else np.asarray(data, np.uint8).tobytes()

    def Pack(self, builder: Any) -> Any:  # noqa: N802  (the generated code calls it)
        """The place of the packed buffer."""
        generated = schema()
        place = None
        if self._data:
            builder.StartVector(1, len(self._data), ALIGNMENT)
            head = builder.Head() - len(self._data)
            builder.head = head
            builder.Bytes[head : head + len(self._data)] = self._data
            place = builder.EndVector()
        generated.BufferStart(builder)
        if place is not None:
            generated.BufferAddData(builder, place)
        return generated.BufferEnd(builder)
