"""Opens an ONNX file without its external weights, and says what is wrong with one that cannot be opened."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from hybrid.errors import ModelInvalid, ModelMissing


def load_proto(path: Path) -> onnx.ModelProto:
    """The model's graph; weights kept in other files stay there.

    Raises:
        ModelMissing: no such file.
        ModelInvalid: not an ONNX model, or a file of external weights is missing or too short.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as exc:
        raise ModelMissing(f"{path}: no such file; give the path of an ONNX model", path=str(path)) from exc
    except IsADirectoryError as exc:
        raise ModelInvalid(f"{path}: a folder; give the path of the .onnx file in it", path=str(path)) from exc
    except OSError as exc:
        raise ModelInvalid(f"{path}: cannot be read ({exc.strerror or exc})", path=str(path)) from exc
    except (DecodeError, ValueError) as exc:
        raise ModelInvalid(
            f"{path}: not an ONNX model, or a damaged one ({exc}); fetch or export it again", path=str(path)
        ) from exc
    if not model.HasField("graph") or not model.opset_import:
        raise ModelInvalid(f"{path}: holds no ONNX graph; fetch or export it again", path=str(path))
    check_external_data(model, path)
    return model


def check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """See that each file of external weights exists beside the model and is long enough.

    Raises:
        ModelInvalid: one is missing, too short, or lies outside the model's folder.
    """
    sizes: dict[str, int] = {}
    for tensor in external_tensors(model.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = path.parent / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelInvalid(
                f"{path}: weight {tensor.name!r} lies at {location!r}; external weights must lie in the model's folder",
                path=str(path),
            )
        if location not in sizes:
            try:
                sizes[location] = file.stat().st_size
            except OSError as exc:
                raise ModelInvalid(
                    f"{path}: its weights file {location!r} is missing; put it beside the model", path=str(path)
                ) from exc
        start, length = (_count(entries.get(key, "0")) for key in ("offset", "length"))
        if start is None or length is None:
            raise ModelInvalid(
                f"{path}: weight {tensor.name!r} has no sound place in {location!r}; export the model again",
                path=str(path),
            )
        end = start + length
        if end > sizes[location]:
            raise ModelInvalid(
                f"{path}: weight {tensor.name!r} ends at byte {end} of {location!r}, which has {sizes[location]}; "
                "fetch the file again",
                path=str(path),
            )


def declared_inputs(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...] | None]:
    """Shapes of what must be fed, None where a size is open; None for an input without a rank, or that is no tensor."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, tuple[int | None, ...] | None] = {}
    for value in model.graph.input:
        if value.name not in defaults:
            tensor = value.type.tensor_type
            dims = tensor.shape.dim if tensor.HasField("shape") else None
            found[value.name] = None if dims is None else tuple(size_of(dim) for dim in dims)
    return found


def size_of(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """A declared size, None where it is open; Paddle writes -1 for "open"."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def files_of(path: Path) -> list[Path]:
    """The model file and its files of external weights.

    Raises:
        ModelInvalid: as `load_proto`.
    """
    found = {path: None}
    for tensor in external_tensors(load_proto(path).graph):
        found |= {path.parent / entry.value: None for entry in tensor.external_data if entry.key == "location"}
    return list(found)


def external_tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Every tensor of the graph and its subgraphs whose bytes lie in another file."""
    external = onnx.TensorProto.EXTERNAL
    found = [tensor for tensor in graph.initializer if tensor.data_location == external]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_location == external:
                found.append(attribute.t)
            found += [tensor for tensor in attribute.tensors if tensor.data_location == external]
    for subgraph in subgraphs_of(graph):
        found += external_tensors(subgraph)
    return found


def subgraphs_of(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The bodies of the graph's own control flow nodes, one level down."""
    return [body for node in graph.node for body in bodies_of(node)]


def bodies_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs that a node carries."""
    bodies: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            bodies.append(attribute.g)
        bodies += attribute.graphs
    return bodies


def captures_of(node: onnx.NodeProto) -> list[str]:
    """Names of the outer graph that the node's subgraphs use, in order of first use."""
    found: dict[str, None] = {}
    for body in bodies_of(node):
        known = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        known |= {tensor.values.name for tensor in body.sparse_initializer}
        for inner in body.node:
            found.update((name, None) for name in needs_of(inner) if name not in known)
            known.update(inner.output)
        found.update((value.name, None) for value in body.output if value.name and value.name not in known)
    return list(found)


def needs_of(node: onnx.NodeProto) -> list[str]:
    """Names of all tensors that the node reads: its inputs that are given, and what its subgraphs capture."""
    return [name for name in node.input if name] + (captures_of(node) if node.attribute else [])
