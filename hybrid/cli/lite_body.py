"""`hybrid models push --lite-body`: the model with a TensorFlow Lite file as its body, and its ONNX twin beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hybrid.cli.output import note

if TYPE_CHECKING:
    from hybrid.artifact.folder import Artifact
    from hybrid.artifact.trainable import Separated

HELP = (
    "With --head: the model up to that tensor, as a .tflite file. Boxes with LiteRT then make features by it "
    "and compute the head in numpy; the ONNX model goes along for the others. Both learn the same head."
)

Dressed = Callable[["Artifact"], "Artifact"]


def with_lite_body(
    file: Path, body: Path, separate: Callable[[Path], "Separated"], folder: Path
) -> tuple["Separated", Dressed, Callable[[float], dict[str, float]]]:
    """The model in its new form, what makes an artifact of it, and the tolerances of golden outputs.

    Args:
        file: the ONNX model.
        body: the `.tflite` file.
        separate: writes the model with its head apart into a folder.
        folder: where all of it is written.

    Raises:
        ModelUntrainable, ModelInvalid, DeviceError: as `hybrid.federated.lite_variant.with_body`.
    """
    from hybrid.artifact.trainable import declared
    from hybrid.federated.lite_variant import TWIN, tolerances, with_body, with_twin

    if not body.is_file():
        raise typer.BadParameter(f"no file at {body}; --lite-body is the part of {file.name} before its head")
    twin = separate(folder / TWIN)
    made = with_body(twin, body, folder)
    note(made.body_text)
    return (
        made.apart,
        lambda artifact: with_twin(declared(artifact, made.apart), made, twin),
        lambda tolerance: tolerances(made, tolerance),
    )
