"""A trainable head in every form of a model: bodies are changed by themselves, heads lie in files of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import NotTrainable
from hybrid.artifact.trainable import HEAD_FILE

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """A model as it is kept: its bytes, its head's file if it has one apart, and what is to be said of that."""

    content: bytes
    head_files: dict[str, bytes | Path]
    feature_tensor: str
    note: str


def around_head(
    model: "ModelProto", feature_tensor: str, change: Callable[["ModelProto"], "ModelProto"]
) -> "ModelProto":
    """The model with its body changed, and its head as it was; all of it where it has no such head."""
    from compression.training.head_graphs import around

    return around(model, feature_tensor, change) if _has(model, feature_tensor) else change(model)


def body_alone(model: "ModelProto", feature_tensor: str) -> "ModelProto":
    """The model without its head; all of it where it has no such head."""
    from compression.training.head_graphs import body_of

    return body_of(model, feature_tensor) if _has(model, feature_tensor) else model


def filed(model: "ModelProto", feature_tensor: str) -> Filed:
    """A model's bytes, with the head in a file of its own where it can be."""
    from compression.training.heads import separate_head

    if not feature_tensor:
        return Filed(content=model.SerializeToString(deterministic=True), head_files={}, feature_tensor="", note="")
    try:
        apart = separate_head(model, feature_tensor, file=HEAD_FILE)
    except NotTrainable as exc:
        whole = model.SerializeToString(deterministic=True)
        return Filed(content=whole, head_files={}, feature_tensor="", note=f"its head cannot learn: {exc}")
    return Filed(
        content=apart.model.SerializeToString(deterministic=True),
        head_files={apart.file: apart.content},
        feature_tensor=feature_tensor,
        note="",
    )


def nodes_of_head(model: "ModelProto", feature_tensor: str) -> tuple[str, ...]:
    """Names of the head's nodes as a quantizer takes them; none where the model has no such head."""
    from compression.quantization.prepare import prepare
    from compression.training.heads import head_nodes

    prepared = prepare(model)
    return head_nodes(prepared, feature_tensor) if feature_tensor and _has(prepared, feature_tensor) else ()


def _has(model: "ModelProto", feature_tensor: str) -> bool:
    from compression.training.head_graphs import stand_of

    if not feature_tensor:
        return False
    try:
        stand_of(model, feature_tensor)
    except NotTrainable:
        return False
    return True
