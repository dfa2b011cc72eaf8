"""Binds a TensorFlow Lite file to one shape key, and says what can be known of it before that."""

from pathlib import Path
from typing import Final

from hybrid.graph.shape_key import ShapeKey
from hybrid.graph.view import GraphView
from hybrid.tflite.model_file import Model, read, write
from hybrid.tflite.names import names_of
from hybrid.tflite.shapes import bind, measured, open_sized
from hybrid.tflite.view import read_view, stateful_operators

GRAPH_FILE: Final = "graph.tflite"


def prepare(model_path: Path, shape_key: ShapeKey, folder: Path) -> tuple[GraphView, bool]:
    """Write the bound graph into `folder`; its view, and whether it remembers between runs.

    Raises:
        ModelMissing, ModelInvalid, ModelUnsupported: the file cannot be used.
        TensorMismatch: the shape key does not fit the model's inputs.
    """
    model = read(model_path)
    shapes = measured(write(model), model.subgraphs[0], shape_key, str(model_path))
    unsized = open_sized(model, shapes)
    bind(model, shapes[0], unsized)
    (folder / GRAPH_FILE).write_bytes(write(model))
    return read_view(model, unsized), is_stateful(model)


def is_stateful(model: Model) -> bool:
    """Whether a run of the model leaves something behind for the next one."""
    return bool(stateful_operators(model))


def declared_inputs(path: Path) -> dict[str, tuple[int | None, ...] | None]:
    """Shapes of what must be fed, None where a size is open; raises as `read` does."""
    graph = read(path).subgraphs[0]
    names = names_of(graph)
    found: dict[str, tuple[int | None, ...] | None] = {}
    for index in map(int, graph.inputs):
        tensor = graph.tensors[index]
        sizes = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        found[names[index]] = tuple(int(size) if size >= 0 else None for size in (() if sizes is None else sizes))
    return found
