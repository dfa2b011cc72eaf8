"""The head of a model's variant: what learns, as arrays and as the file that the artifact carries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from devices.tflite_magic import is_tflite
from hybrid.artifact.manifest import Manifest, Variant
from hybrid.errors import ModelInvalid, ModelUntrainable, NotFound, TensorMismatch
from hybrid.federated.layout import Layout
from hybrid.federated.learning.graph_part import (
    Place,
    constants_of,
    nodes_before,
    nodes_behind,
    opset_of,
    places,
    step_of,
)
from hybrid.federated.learning.operators.windows import with_window
from hybrid.federated.learning.program import Arrays, HeadProgram
from hybrid.graph.model_file import load_proto, needs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What learns of one variant.

    Attributes:
        model: the graph, without the weights that lie in other files.
        path: the model file.
        feature: the tensor that the head stands on.
        program: the head.
        layout: of all that learns, in the order of the trainable files.
        arrays: as they lie in these files now.
        files: paths, in the artifact, of the trainable files, each with its size in bytes.
    """

    model: onnx.ModelProto
    path: Path
    feature: str
    program: HeadProgram
    layout: Layout
    arrays: Arrays
    files: Mapping[str, int]
    _places: tuple[Place, ...]
    _locations: Mapping[str, str]

    @property
    def vector(self) -> np.ndarray:
        """All that learns as one vector, as it lies in the files now."""
        return self.layout.vector(self.arrays)

    def packed(self, arrays: Arrays) -> dict[str, bytes]:
        """The trainable files of a head that has learned, by their paths in the artifact.

        Raises:
            TensorMismatch: a tensor that is missing, too many, or of another shape or datatype.
        """
        self.layout.vector(arrays)
        found = {}
        for name, n_bytes in self.files.items():
            content = bytearray(n_bytes)
            for place in self._places:
                if place.location == self._locations[name]:
                    array = np.ascontiguousarray(arrays[place.name], "<f4")
                    content[place.offset : place.offset + place.length] = array.tobytes()
            found[name] = bytes(content)
        return found


def open_head(folder: Path, manifest: Manifest, variant_id: str, *, output: str = "") -> Head:
    """The head of a variant of the artifact in a folder.

    Args:
        folder: the artifact's.
        manifest: what it says.
        variant_id: which variant.
        output: the model's output that learning looks at; needed where the head has several with different scores.

    Raises:
        NotFound: no such variant.
        ModelUntrainable: nothing of it may learn, or not with numpy alone; says why and what to do.
        ModelInvalid: files that are not what the model says.
    """
    variant = variant_of(manifest, variant_id)
    path = folder.joinpath(*PurePosixPath(variant.files[0]).parts)
    _check_variant(manifest, variant)
    if is_tflite(path):
        raise ModelUntrainable(
            f"variant {variant_id!r} is a TensorFlow Lite file, which holds its weights itself; ship its body with "
            "a head of its own (`hybrid models push --lite-body`), or an ONNX variant (`hybrid compress --head`)"
        )
    sizes = {name: manifest.files[name].size for name in variant.trainable_files}
    beside = PurePosixPath(variant.files[0]).parent.as_posix()
    return read_head(path, variant.feature_tensor or "", sizes, output=output, folder=beside)


def variant_of(manifest: Manifest, variant_id: str) -> Variant:
    """A variant by its id; raises `NotFound`."""
    for variant in manifest.variants:
        if variant.id == variant_id:
            return variant
    known = ", ".join(variant.id for variant in manifest.variants)
    raise NotFound(f"{manifest.name}:{manifest.version} has no variant {variant_id!r}; it has {known}")


def _check_variant(manifest: Manifest, variant: Variant) -> None:
    shown = f"variant {variant.id!r} of {manifest.name}:{manifest.version}"
    if not variant.trainable_files or not variant.feature_tensor:
        raise ModelUntrainable(f"{shown} has no trainable files; publish it anew with `hybrid compress --head`")
    if variant.files[0] in variant.trainable_files:
        raise ModelUntrainable(f"{shown} names the model file itself as trainable; what learns is a file of its own")


def read_head(path: Path, feature: str, files: Mapping[str, int], *, output: str = "", folder: str = ".") -> Head:
    """The head of a model file.

    Args:
        path: the ONNX model; its external weights lie beside it.
        feature: the tensor on which the head stands; may be the model's input.
        files: trainable files, each with its size in bytes: paths in the artifact.
        output: as `open_head` has it.
        folder: the model's, in the artifact.

    Raises:
        ModelUntrainable, ModelInvalid: as `open_head`.
    """
    model = load_proto(path)
    locations = {name: PurePosixPath(name).relative_to(folder).as_posix() for name in files}
    learning = places(model, dict.fromkeys(locations.values()))
    if not learning:
        raise ModelUntrainable(f"{path.name} has no tensor in {', '.join(files)}; nothing of it may learn")
    idle = sorted(set(locations.values()) - {place.location for place in learning})
    if idle:
        raise ModelUntrainable(f"{idle[0]} is named as trainable, but no weight of {path.name} lies in it")

    def read(location: str, offset: int, length: int) -> bytes:
        with path.parent.joinpath(*PurePosixPath(location).parts).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    trainable = [place.name for place in learning]
    _check_body(model, feature, trainable)
    nodes = nodes_behind(model, feature, dict.fromkeys(trainable))
    sizes = {tensor.name: tuple(tensor.dims)[2:] for tensor in model.graph.initializer}
    steps = [with_window(step_of(node, opset_of(model)), sizes) for node in nodes]
    needed = {name for step in steps for name in step.inputs} - set(trainable)
    constants = dict(constants_of(model, needed, read))
    program = _looking_at(
        _outputs(model, nodes, output, feature),
        lambda name: HeadProgram.of(steps, constants, feature=feature, trainable=trainable, output=name),
    )
    try:
        arrays = {
            place.name: np.frombuffer(read(place.location, place.offset, place.length), "<f4").reshape(place.shape)
            for place in learning
        }
    except (OSError, ValueError) as exc:
        raise ModelInvalid(f"{path}: its trainable files are not what it says ({exc})", path=str(path)) from exc
    layout = Layout.of(arrays)
    return Head(
        model=model, path=path, feature=feature, program=program, layout=layout, arrays=arrays, files=dict(files),
        _places=tuple(learning), _locations=locations,
    )  # fmt: skip


def full_arrays(head: Head, learned: Arrays) -> dict[str, np.ndarray]:
    """All tensors of a head: those that were learned, and for personal ones what the artifact has.

    Raises:
        TensorMismatch: a name that the head has not.
    """
    strange = sorted(set(learned) - set(head.layout.names))
    if strange:
        raise TensorMismatch(f"{', '.join(strange[:5])} is no tensor of this head")
    return {name: learned.get(name, head.arrays[name]) for name in head.layout.names}


def _check_body(model: onnx.ModelProto, feature: str, trainable: Sequence[str]) -> None:
    """See that features stay what they are while the head learns."""
    made = {name for node in model.graph.node for name in node.output} | {value.name for value in model.graph.input}
    if feature not in made:
        raise ModelUntrainable(f"the model has no tensor {feature!r}, on which its head is said to stand")
    read = {name for node in nodes_before(model, feature) for name in needs_of(node)}
    early = sorted(read & set(trainable))
    if early:
        raise ModelUntrainable(
            f"{', '.join(early[:3])} may learn, but the features {feature!r} are made with it; choose an earlier "
            "feature tensor"
        )


def _outputs(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], wanted: str, feature: str) -> list[str]:
    """The outputs that learning may look at."""
    made = {name for node in nodes for name in node.output}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)
    found = [
        value.name
        for value in model.graph.output
        if value.name in made and value.type.tensor_type.elem_type in floats and wanted in ("", value.name)
    ]
    if not found:
        raise ModelUntrainable(f"no float output{f' {wanted!r}' if wanted else ''} stands on {feature!r}; name another")
    return found


def _looking_at(outputs: Sequence[str], made: Callable[[str], HeadProgram]) -> HeadProgram:
    """The program of the one output, or of several that show the same scores, such as logits and probabilities."""
    found: list[HeadProgram] = []
    refusal: ModelUntrainable | None = None
    for name in outputs:
        try:
            found.append(made(name))
        except ModelUntrainable as exc:
            refusal = refusal or exc
    if refusal is not None and not found:
        raise refusal
    if len({program.scores for program in found}) > 1:
        names = ", ".join(program.output for program in found)
        raise ModelUntrainable(f"the outputs {names} stand on the features and show different scores; name one of them")
    return found[0]
