"""The form of a TensorFlow Lite body with a head of its own: an ONNX file in which the body is one node.

Design: the file has the model's own inputs and outputs, and the head's nodes and trainable weights as any ONNX variant
has them, so whoever reads heads reads this one too. The `.tflite` file is the node's attribute, as external data: what
finds, hashes, sends and stores a model's files finds it without a word about this form. The node's domain is ours: an
onnxruntime that is given such a file refuses it by name, instead of answering features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import onnx
from onnx import TensorProto, helper

from devices.onnx_engine import Port
from devices.tflite_magic import HEADED
from hybrid.errors import ModelInvalid, ModelUntrainable
from hybrid.federated.learning.graph_part import nodes_behind
from hybrid.graph.model_file import declared_inputs

DOMAIN: Final = "hybrid.tflite"
BODY: Final = "Body"
BODY_FILE: Final = "body.tflite"
"""What the body is called beside the file that names it."""

_FORM: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteBody:
    """The body that such a file names.

    Attributes:
        file: the `.tflite` file; its bytes, where they lie inside.
        inputs: the model's inputs, each with what the body calls it.
        feature: the model's name of what the body answers.
        output: the body's.
    """

    file: Path | bytes
    inputs: tuple[tuple[str, str], ...]
    feature: str
    output: str


def body_of_file(model: onnx.ModelProto, path: Path) -> LiteBody:
    """The body of a file of this form.

    Args:
        model: without the weights that lie in other files.
        path: where it lies.

    Raises:
        ModelInvalid: it is not of this form, or of one that this version does not know.
    """
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    if len(nodes) != 1 or nodes[0].op_type != BODY or len(nodes[0].output) != 1:
        raise ModelInvalid(f"{path}: exactly one node {DOMAIN}.{BODY} is wanted in such a file", path=str(path))
    node = nodes[0]
    said = {one.name: one for one in node.attribute}
    form = said["form"].i if "form" in said else 0
    if form != _FORM:
        raise ModelInvalid(
            f"{path}: its body is of form {form}, this version reads {_FORM}; upgrade hybrid", path=str(path)
        )
    try:
        held = said["file"].t
        names = [name.decode() for name in said["reads"].strings]
        output = said["gives"].s.decode()
    except (KeyError, ValueError) as exc:
        raise ModelInvalid(f"{path}: its node {BODY} lacks file, reads or gives", path=str(path)) from exc
    if len(names) != len(node.input) or not set(node.input) <= set(declared_inputs(model)):
        raise ModelInvalid(f"{path}: its body must read the model's inputs, and name each of them", path=str(path))
    return LiteBody(
        file=_file(held, path),
        inputs=tuple(zip(node.input, names, strict=True)),
        feature=node.output[0],
        output=output,
    )


def _file(held: onnx.TensorProto, path: Path) -> Path | bytes:
    if held.data_location != TensorProto.EXTERNAL:
        return bytes(held.raw_data)
    said = {entry.key: entry.value for entry in held.external_data}
    location = said.get("location", "")
    file, n_bytes = path.parent.joinpath(*PurePosixPath(location).parts), int(held.dims[0] if held.dims else 0)
    if said.get("offset", "0") != "0" or not file.is_file() or file.stat().st_size != n_bytes:
        raise ModelInvalid(
            f"{path}: {location!r} is not the whole file of {n_bytes} bytes that it names", path=str(path)
        )
    return file


def with_lite_body(
    model: onnx.ModelProto,
    feature: str,
    *,
    inputs: Sequence[tuple[str, Port]],
    output: str,
    n_bytes: int,
) -> onnx.ModelProto:
    """The same model with a TensorFlow Lite file in place of what its feature tensor is made by.

    Args:
        model: its head in a file of its own, whose place it keeps; not changed.
        feature: the tensor.
        inputs: the model's inputs that the body reads, each with the body's own; sizes that are fixed there are so in
            the file.
        output: what the body calls the feature tensor.
        n_bytes: of the body's file, `BODY_FILE`.

    Raises:
        ModelUntrainable: the head reads more than the features, or the tensor is an input of the model.
    """
    graph = model.graph
    if any(value.name == feature for value in graph.input):
        raise ModelUntrainable(f"the feature tensor {feature!r} is an input of the model: there is no body to replace")
    kept = {name for node in nodes_behind(model, feature, {}) for name in node.output}
    behind = [node for node in graph.node if not kept.isdisjoint(node.output)]
    reads = {name for node in behind for name in node.input if name}
    made = {name for node in behind for name in node.output} | {tensor.name for tensor in graph.initializer}
    around = sorted(reads - made - {feature})
    lost = sorted(value.name for value in graph.output if value.name not in made | {feature})
    if around or lost:
        raise ModelUntrainable(
            f"{', '.join((around or lost)[:3])} {'is read by the head' if around else 'is an output'} and does not "
            f"stand on {feature!r} alone; choose an earlier feature tensor"
        )
    whole = onnx.ModelProto(ir_version=model.ir_version, producer_name=HEADED)
    whole.opset_import.extend(one for one in model.opset_import if one.domain != DOMAIN)
    whole.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    whole.metadata_props.extend(model.metadata_props)
    whole.graph.name = graph.name or "graph"
    whole.graph.node.append(_node(feature, inputs, output, n_bytes))
    whole.graph.node.extend(behind)
    whole.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in reads)
    declared = {value.name: value for value in graph.input}
    for name, port in inputs:
        value = whole.graph.input.add()
        value.CopyFrom(declared[name])
        for dim, size in zip(value.type.tensor_type.shape.dim, port.shape, strict=False):
            if isinstance(size, int):
                dim.dim_value = size
    whole.graph.output.extend(graph.output)
    return whole


def as_bytes(model: onnx.ModelProto) -> bytes:
    """The file's bytes, the same for the same model."""
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _node(feature: str, inputs: Sequence[tuple[str, Port]], output: str, n_bytes: int) -> onnx.NodeProto:
    file = TensorProto(name="file", data_type=TensorProto.UINT8, dims=[n_bytes], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", BODY_FILE), ("offset", "0"), ("length", str(n_bytes))):
        file.external_data.add(key=key, value=value)
    node: onnx.NodeProto = helper.make_node(
        BODY, [name for name, _ in inputs], [feature], name="body", domain=DOMAIN, form=_FORM, file=file,
        reads=[port.name for _, port in inputs], gives=output,
    )  # fmt: skip
    return node
