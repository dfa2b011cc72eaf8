"""A model whose body LiteRT computes: its head and its ONNX twin's are the same bytes, so both learn together.

Design: the body is made elsewhere (by `hybrid compress`, or any converter) and its answer must be the feature tensor
itself, in the model's own layout. Nothing about it is believed: names, types and sizes are compared with the ONNX
model, then both answer the same requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnxruntime

from devices.errors import DeviceError
from devices.onnx_engine import Port, open_session, ports
from devices.tflite_engine import TfliteSession
from devices.tflite_magic import is_tflite
from hybrid.artifact.digest import hashed_files
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.folder import Artifact, from_onnx, made_at, open_folder
from hybrid.artifact.golden_files import write_golden
from hybrid.artifact.manifest import FileEntry, Manifest, Variant, canonical_bytes
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.artifact.trainable import TOLERANCE, Separated, declared, drawn_inputs, separated
from hybrid.errors import ModelInvalid, ModelUntrainable
from hybrid.federated.learning.body import Body
from hybrid.federated.learning.head import read_head, variant_of
from hybrid.federated.learning.lite_form import BODY_FILE, as_bytes, with_lite_body
from hybrid.federated.learning.lite_session import LiteHeadSession
from hybrid.graph.model_file import load_proto

TWIN: Final = "onnx"
"""Variant id, and folder, of the ONNX model beside the one whose body LiteRT computes."""

MOST_APART: Final = 0.1
"""Of an output's largest value: further apart than an int8 body is from a float one, it is another model."""

_N_COMPARED: Final = 4

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteHeaded:
    """A body in LiteRT with a head of its own.

    Attributes:
        apart: its file, and what of it can learn.
        precision: of the body: `native`, or `int8`.
        distance: largest difference of an output to the ONNX model's, of that output's largest value.
        n_compared: on how many requests.
    """

    apart: Separated
    precision: str
    distance: float
    n_compared: int

    @property
    def body_text(self) -> str:
        """Of the body, for people."""
        return (
            f"the body is {BODY_FILE} ({self.precision}); answers differ from the ONNX model's by {self.distance:.2%} "
            f"of the largest value at most ({self.n_compared} requests)"
        )


def with_body(twin: Separated, body: Path, folder: Path, *, samples: Sequence[Feeds] = ()) -> LiteHeaded:
    """Writes the model again with a TensorFlow Lite file as its body; its head is the same bytes.

    Args:
        twin: the ONNX model, with its head in a file of its own.
        body: a `.tflite` file that answers the feature tensor.
        folder: where it is written, with body and head beside it; made, and not the twin's.
        samples: requests to compare on; none draws four.

    Raises:
        ModelUntrainable: the body does not fit: other inputs, another shape or layout, or other answers; or the head
            reads more than the features.
        ModelInvalid, DeviceError: a file that no engine opens.
        DiskFull, StorageError: a file was not written.
    """
    if not is_tflite(body):
        raise ModelInvalid(
            f"{body}: no TensorFlow Lite file; give the model's part before {twin.feature_tensor!r} as one",
            path=str(body),
        )
    model = load_proto(twin.path)
    onnx_session = _opened(twin.path)
    lite = TfliteSession(body, 1)
    inputs, output = _matched(ports(onnx_session)[0], lite, body)
    n_bytes = body.stat().st_size
    whole = with_lite_body(model, twin.feature_tensor, inputs=inputs, output=output, n_bytes=n_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((body, BODY_FILE), (twin.path.parent / twin.head_file, twin.head_file)):
        write_atomically(folder / name, source.read_bytes(), is_shown=True)
    path = folder / twin.path.name
    write_atomically(path, as_bytes(whole), is_shown=True)
    requests = list(samples) or [drawn_inputs(onnx_session, seed) for seed in range(_N_COMPARED)]
    _check_features(twin, lite, requests[0], {name: port.name for name, port in inputs}, output)
    distance = _distance(onnx_session, _headed(path), requests)
    if not distance <= MOST_APART:
        raise ModelUntrainable(
            f"with {body.name} as its body the model's answers are {distance:.1%} of the largest value away from the "
            f"ONNX model's, {MOST_APART:.0%} is allowed: it is not the part before {twin.feature_tensor!r}, or "
            "has other weights"
        )
    apart = replace(twin, path=path)
    precision = "int8" if lite.has_integers() else "native"
    return LiteHeaded(apart=apart, precision=precision, distance=distance, n_compared=len(requests))


def with_twin(artifact: Artifact, made: LiteHeaded, twin: Separated) -> Artifact:
    """The artifact of `made` with its ONNX twin as a second variant, for machines without LiteRT.

    Args:
        artifact: of `made.apart.path`, as `from_onnx` and `declared` make it.
        made: what it is of.
        twin: the ONNX model in the folder `TWIN` of the artifact's.
    """
    shipped = msgspec.structs.replace(artifact.manifest.variants[0], precision=made.precision)
    found = {f"{TWIN}/{file.name}": FileEntry(sha256=file.sha256, size=file.size) for file in hashed_files(twin.path)}
    second = Variant(
        id=TWIN,
        engine="onnxruntime",
        precision="native",
        files=tuple(found),
        feature_tensor=twin.feature_tensor,
        trainable_files=(f"{TWIN}/{twin.head_file}",),
    )
    manifest = msgspec.structs.replace(
        artifact.manifest, variants=(shipped, second), files=artifact.manifest.files | found
    )
    return replace(artifact, manifest=manifest, manifest_bytes=canonical_bytes(manifest))


def onnx_twin(manifest: Manifest, variant_id: str) -> Variant:
    """The variant for onnxruntime whose head is the very same bytes; the variant itself, where it is one.

    Raises:
        NotFound: no such variant.
        ModelUntrainable: there is none.
    """
    variant = variant_of(manifest, variant_id)
    wanted = [manifest.files[name].sha256 for name in variant.trainable_files]
    for one in (variant, *manifest.variants):
        if one.engine == "onnxruntime" and [manifest.files[name].sha256 for name in one.trainable_files] == wanted:
            return one
    raise ModelUntrainable(
        f"variant {variant_id!r} is for {variant.engine}, and no variant for onnxruntime beside it has its head; its "
        "learned version is what `hybrid rounds promote` makes"
    )


def tolerances(made: LiteHeaded, tolerance: float) -> dict[str, float]:
    """How far golden outputs, which the LiteRT variant gave, may be off: the twin by twice what was seen at least."""
    return {"tflite-head": tolerance, "onnxruntime": max(tolerance, 2.0 * made.distance)}


def lite_artifact(  # noqa: PLR0913  (as `trainable_artifact`, with a body)
    model: Path,
    body: Path,
    out: Path,
    *,
    name: str,
    head: str = "auto",
    rank: int | None = None,
    version: str = "1",
    sequence: int = 1,
    inputs: Feeds | None = None,
    tolerance: float = TOLERANCE,
) -> Artifact:
    """An artifact of a model whose body LiteRT computes, its ONNX twin beside it, and golden files.

    Args:
        model: an ONNX file.
        body: its part before the feature tensor, as a `.tflite` file.
        out: the artifact's folder; must not exist, or be empty.
        name, version, sequence: of the artifact.
        head, rank: as `hybrid.artifact.trainable.separated` takes them.
        inputs: of one request, for the golden files; None draws them, the same each time.
        tolerance: how far a box's golden outputs may be off, of the largest value, in LiteRT.

    Raises:
        NotTrainable, ModelUntrainable, ModelInvalid, DeviceError, DiskFull, StorageError: as `separated` and
            `with_body`; nothing is left behind.
        Conflict: something is at the artifact's place.
    """
    with made_at(out) as staging:
        twin = separated(model, head, staging / TWIN, rank=rank)
        made = with_body(twin, body, staging, samples=[inputs] if inputs is not None else ())
        bare = declared(from_onnx(made.apart.path, name, version, sequence=sequence), made.apart)
        both = with_twin(bare, made, twin)
        feeds = inputs if inputs is not None else drawn_inputs(_opened(twin.path))
        session = _headed(made.apart.path)
        names = [port.name for port in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        golden, entries = write_golden(staging, feeds, outputs, tolerances(made, tolerance))
        manifest = msgspec.structs.replace(both.manifest, golden=golden, files={**both.manifest.files, **entries})
        write_atomically(staging / MANIFEST_NAME, canonical_bytes(manifest), is_shown=True)
    return open_folder(out)


def _opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return open_session(path, options, ["CPUExecutionProvider"])


def _headed(path: Path) -> LiteHeadSession:
    try:
        return LiteHeadSession(path, 1)
    except DeviceError as exc:
        raise ModelUntrainable(f"the body does not fit: {exc}") from exc


def _matched(wanted: Sequence[Port], lite: TfliteSession, body: Path) -> tuple[list[tuple[str, Port]], str]:
    """The model's inputs with the body's, by name, else by their order; and the name of the body's one output."""
    given, outputs = lite.get_inputs(), lite.get_outputs()
    if len(outputs) != 1:
        raise ModelUntrainable(
            f"{body.name} gives {len(outputs)} outputs; one that is the feature tensor alone is wanted"
        )
    by_name = {port.name: port for port in given}
    mine = [port for port in wanted if port.name in by_name] if len(wanted) != len(given) else list(wanted)
    if len(mine) != len(given):
        raise ModelUntrainable(
            f"{body.name} reads {', '.join(by_name)}; the model's inputs are {', '.join(port.name for port in wanted)}"
        )
    pairs = list(zip(mine, given, strict=True))
    if {port.name for port in mine} == set(by_name):
        pairs = [(port, by_name[port.name]) for port in mine]
    for port, theirs in pairs:
        is_same = len(port.shape) == len(theirs.shape) and all(
            not isinstance(one, int) or not isinstance(other, int) or one == other
            for one, other in zip(port.shape, theirs.shape, strict=True)
        )
        if port.type != theirs.type or not is_same:
            raise ModelUntrainable(
                f"{body.name} reads {theirs.name!r} as {theirs.type} {list(theirs.shape)}, the model's {port.name!r} "
                f"is {port.type} {list(port.shape)}; convert the body with the model's own layout and float inputs"
            )
    return [(port.name, theirs) for port, theirs in pairs], outputs[0].name


def _check_features(twin: Separated, lite: TfliteSession, feeds: Feeds, inputs: Mapping[str, str], output: str) -> None:
    """See that the body answers an array of the feature tensor's shape."""
    sizes = {twin.head_file: twin.n_bytes}
    wanted = Body(read_head(twin.path, twin.feature_tensor, sizes)).features(feeds)
    (found,) = lite.run([output], {theirs: feeds[mine] for mine, theirs in inputs.items()})
    if found.shape != wanted.shape:
        swapped = sorted(found.shape) == sorted(wanted.shape)
        advice = (
            "it keeps channels elsewhere: convert it in the model's own layout" if swapped else "end the body there"
        )
        raise ModelUntrainable(
            f"the body answers {list(found.shape)}, the feature tensor {twin.feature_tensor!r} is "
            f"{list(wanted.shape)}; {advice}"
        )


def _distance(one: Any, other: Any, requests: Sequence[Feeds]) -> float:
    """The largest of all outputs, each over all requests together: one request near zero says little by itself."""
    names = [port.name for port in one.get_outputs()]
    wanted = [one.run(names, dict(feeds)) for feeds in requests]
    known = {port.name for port in other.get_inputs()}
    found = [other.run(names, {name: array for name, array in feeds.items() if name in known}) for feeds in requests]
    worst = 0.0
    for at in range(len(names)):
        a = np.concatenate([np.ravel(each[at]).astype(np.float64) for each in found])
        b = np.concatenate([np.ravel(each[at]).astype(np.float64) for each in wanted])
        largest = float(np.abs(b).max(initial=0.0))
        apart = float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else np.inf
        worst = max(worst, apart / largest if largest else (0.0 if not apart else np.inf))
    return worst
