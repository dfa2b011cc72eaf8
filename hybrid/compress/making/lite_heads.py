"""A trainable head behind a TensorFlow Lite body: the file that names both, and what lies beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybrid.artifact.digest import files_of_model
from hybrid.artifact.trainable import HEAD_FILE
from hybrid.calibration.samples import Feeds
from hybrid.errors import ModelUntrainable

if TYPE_CHECKING:
    import torch

N_LOOKED: Final = 4
"""Requests on which the feature tensor is looked for in the module."""


def body_file(module: "torch.nn.Module", twin: Path, feature_tensor: str, feeds: Sequence[Feeds]) -> bytes:
    """The module's part before the head of an ONNX model of it, as a TensorFlow Lite file in float.

    Args:
        module: in evaluation mode.
        twin: the ONNX model, with its head in a file of its own.
        feature_tensor: on which that stands.
        feeds: requests of one size.

    Raises:
        NotExportable: it cannot be written.
        ModelUntrainable: the head does not stand on the tensor alone, or has an operator that numpy has not.
    """
    from compression.tflite.body import export_body
    from hybrid.federated.learning.body import Body
    from hybrid.federated.learning.head import read_head

    file = _head_file(twin)
    head = read_head(twin, feature_tensor, {file.name: file.stat().st_size})
    body = Body(head)
    some = list(feeds[:N_LOOKED])
    return export_body(module, some, [body.features(one) for one in some], feature_tensor)


def headed_files(body: bytes, twin: Path, feature_tensor: str, name: str) -> Mapping[str, bytes]:
    """The files of a variant whose body is this, by name; its head is the twin's, byte for byte.

    Raises:
        ModelUntrainable: the head does not stand on the tensor alone.
    """
    from devices.tflite_engine import TfliteSession
    from hybrid.federated.learning.lite_form import BODY_FILE, as_bytes, with_lite_body
    from hybrid.graph.model_file import load_proto

    inputs = [(port.name, port) for port in TfliteSession(body, 1).get_inputs()]
    model = load_proto(twin)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = HEAD_FILE
    whole = with_lite_body(model, feature_tensor, inputs=inputs, output=feature_tensor, n_bytes=len(body))
    return {name: as_bytes(whole), BODY_FILE: body, HEAD_FILE: _head_file(twin).read_bytes()}


def _head_file(twin: Path) -> Path:
    """What can learn of an ONNX model, beside it.

    Raises:
        ModelUntrainable: it has other weights in files of their own.
    """
    found = [file.path for file in files_of_model(twin)[1:]]
    if len(found) != 1:
        raise ModelUntrainable(f"{twin.name} has {len(found)} files of weights beside it, one with its head is wanted")
    return found[0]
