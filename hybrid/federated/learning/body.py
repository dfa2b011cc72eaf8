"""The body of a model, from its inputs to the feature tensor, as a model of its own that an engine can run.

Design: nothing is written, and no large weight copied: the body's graph is made in memory, its weights stay in the
model's file and in those beside it, which the engine maps. To write them into a message would take 2 ms a megabyte with
the interpreter's lock held, and three times their room. Features are computed one sample at a time, so that a request
never waits for a batch.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from compression.tensor import NUMPY_OF
from devices.errors import DeviceError
from devices.tflite_magic import is_headed
from hybrid.artifact.external_data import fields
from hybrid.artifact.manifest import Manifest, Variant
from hybrid.errors import EngineFailed, ModelInvalid, ModelUntrainable, TensorMismatch
from hybrid.federated.learning.graph_part import nodes_before
from hybrid.federated.learning.head import Head
from hybrid.federated.learning.lite_form import body_of_file
from hybrid.graph.model_file import declared_inputs, needs_of
from hybrid.graph.read import spec_of

if TYPE_CHECKING:
    import onnxruntime

    from hybrid.federated.learning.lite_session import LiteFeatures

_GRAPH, _WEIGHT, _NAME, _RAW = 7, 5, 8, 9
_BYTES: Final = 2
_LARGE_BYTES: Final = 64 << 10
_FOLDER: Final = "session.model_external_initializers_file_folder_path"

Feeds = Mapping[str, np.ndarray]


def body_model(head: Head) -> onnx.ModelProto | None:
    """The graph from the model's inputs to the feature tensor; None where that is an input itself.

    Its external weights lie where those of the model do, and large ones inside the model's file.

    Raises:
        ModelUntrainable: that file cannot be read.
    """
    graph = head.model.graph
    if any(value.name == head.feature for value in graph.input):
        return None
    kept = nodes_before(head.model, head.feature)
    wanted = {name for node in kept for name in needs_of(node)}
    declared = {value.name: value for value in (*graph.value_info, *graph.output)}
    body = onnx.ModelProto(ir_version=head.model.ir_version, producer_name="hybrid")
    body.opset_import.extend(head.model.opset_import)
    body.functions.extend(head.model.functions)
    body.graph.name = graph.name or "graph"
    body.graph.node.extend(kept)
    try:
        inside = dict(_large_weights(head.path))
    except (OSError, ValueError) as exc:  # it is being replaced
        raise ModelUntrainable(f"{head.path.name} cannot be read any more: {exc}") from exc
    body.graph.initializer.extend(
        _outside(tensor, head.path.name, *inside[tensor.name]) if tensor.name in inside else tensor
        for tensor in graph.initializer
        if tensor.name in wanted
    )
    body.graph.sparse_initializer.extend(one for one in graph.sparse_initializer if one.values.name in wanted)
    inputs = wanted if body.ir_version < 4 else wanted & set(declared_inputs(head.model))  # older ones list weights too
    body.graph.input.extend(value for value in graph.input if value.name in inputs)
    body.graph.output.append(declared.get(head.feature) or onnx.ValueInfoProto(name=head.feature))
    return body


def _large_weights(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, first byte and length of the large weights that lie in a model's own file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for number, wire, low, high in fields(view, 0, len(view)):
            if number != _GRAPH or wire != _BYTES:
                continue
            for inner, kind, start, end in fields(view, low, high):
                if inner == _WEIGHT and kind == _BYTES and end - start >= _LARGE_BYTES:
                    spans = {field: (first, last) for field, _, first, last in fields(view, start, end)}
                    if _RAW in spans and _NAME in spans:
                        (first, last), (begin, behind) = spans[_RAW], spans[_NAME]
                        yield bytes(view[begin:behind]).decode(), (first, last - first)


def _outside(tensor: onnx.TensorProto, location: str, offset: int, n_bytes: int) -> onnx.TensorProto:
    """The same weight, to be read from a file."""
    found = onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(n_bytes))):
        found.external_data.add(key=key, value=value)
    return found


def body_key(manifest: Manifest, variant: Variant) -> str:
    """Names a body's features: SHA-256 over the variant's files that never learn, and the feature tensor."""
    files = [[name, manifest.files[name].sha256] for name in variant.files if name not in variant.trainable_files]
    said = json.dumps([variant.engine, variant.feature_tensor, sorted(files)], separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


class Body:
    """Makes features; holds an open engine, unless the features are the inputs themselves.

    The engine is onnxruntime, or LiteRT in one thread where the variant's body is a TensorFlow Lite file.

    Args:
        head: of the variant.
        options: onnxruntime's; a copy is not made, and the place of external weights is set in it. None: one thread.
        providers: onnxruntime's.

    Raises:
        ModelUntrainable: the engine refuses the body.
    """

    def __init__(
        self, head: Head, options: "onnxruntime.SessionOptions | None" = None, providers: tuple[str, ...] = ()
    ) -> None:
        self._feature = head.feature  # and nothing else of the head, which holds the model's weights
        self._session: Any = None
        if is_headed(head.path):
            self._session, names = _lite(head)
        elif (model := body_model(head)) is None:
            names = [head.feature]
        else:
            self._session = _opened(model, head.path.parent, options, providers)
            names = list(declared_inputs(model))
        self._names = frozenset(names)
        self._types = {value.name: _copy(value.type) for value in head.model.graph.input if value.name in self._names}

    def features(self, feeds: Feeds, run_options: Any = None) -> np.ndarray:
        """The feature tensor of one request, float32, (rows, …).

        Args:
            feeds: the model's inputs; those that only the head reads may be among them.
            run_options: through which another thread may end the run; LiteRT looks at it before a run alone.

        Raises:
            TensorMismatch: an input is missing or of another shape, or no rows come out.
            EngineFailed: the engine refused, or was stopped.
        """
        missing = sorted(self._names - set(feeds))
        if missing:
            raise TensorMismatch(f"a sample lacks input {missing[0]!r} of the model; it has {', '.join(sorted(feeds))}")
        if self._session is None:
            self._check_shapes(feeds)
            found = feeds[self._feature]
        else:
            found = self._run(feeds, run_options)
        if found.ndim < 1 or found.dtype.kind not in "fiu":
            raise TensorMismatch(f"the feature tensor {self._feature!r} is {found.dtype} {list(found.shape)}")
        return np.ascontiguousarray(found, np.float32)

    def _run(self, feeds: Feeds, run_options: Any) -> np.ndarray:
        try:
            found = self._session.run([self._feature], {name: feeds[name] for name in self._names}, run_options)
        except Exception as exc:
            self._check_shapes(feeds)
            self._check_kinds(feeds)
            said = str(exc).strip().splitlines()[:1]
            raise EngineFailed(f"the engine could not make features of a sample: {''.join(said)[:200]}") from exc
        return np.asarray(found[0])

    def _check_shapes(self, feeds: Feeds) -> None:
        for name, kind in self._types.items():
            spec, found = spec_of(name, kind), feeds[name].shape
            if spec is not None and not spec.accepts(spec.dtype, found):
                wanted = "x".join("?" if size is None else str(size) for size in spec.shape)
                raise TensorMismatch(f"{name!r} is {'x'.join(map(str, found))}, the model wants {wanted}")

    def _check_kinds(self, feeds: Feeds) -> None:
        for name, kind in self._types.items():
            spec, found = spec_of(name, kind), feeds[name].dtype
            wanted = None if spec is None else NUMPY_OF[spec.dtype]
            if wanted is not None and (found.kind, found.itemsize) != (wanted.kind, wanted.itemsize):
                advice = f"Write it as that: array.astype({wanted.name!r})."
                raise TensorMismatch(f"{name!r} holds {found.name}, the model wants {wanted.name}", advice=advice)


def _copy(kind: onnx.TypeProto) -> onnx.TypeProto:
    """The same type; a part of a message keeps the whole of it in memory."""
    found = onnx.TypeProto()
    found.CopyFrom(kind)
    return found


class _LiteRuns:
    """A TensorFlow Lite body as its ONNX twin is asked: for the one tensor that it gives."""

    def __init__(self, features: "LiteFeatures") -> None:
        self._features = features

    def run(self, _names: list[str], feeds: Feeds, options: Any) -> list[np.ndarray]:
        return [self._features.run(feeds, options)]


def _lite(head: Head) -> tuple[_LiteRuns, list[str]]:
    """An open body, and the inputs that it reads."""
    from hybrid.federated.learning.lite_session import LiteFeatures

    try:
        body = body_of_file(head.model, head.path)
        return _LiteRuns(LiteFeatures(body, 1)), [name for name, _ in body.inputs]
    except (DeviceError, ModelInvalid) as exc:
        raise ModelUntrainable(f"the engine refuses the part of the model before its features: {exc}") from exc


def _opened(
    model: onnx.ModelProto, folder: Path, options: "onnxruntime.SessionOptions | None", providers: tuple[str, ...]
) -> Any:
    import onnxruntime as ort

    from devices.onnx_engine import open_session

    if options is None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
    options.add_session_config_entry(_FOLDER, str(folder))
    try:
        return open_session(model.SerializeToString(), options, list(providers) or ["CPUExecutionProvider"])
    except DeviceError as exc:
        raise ModelUntrainable(f"the engine refuses the part of the model before its features: {exc}") from exc
    except ValueError as exc:  # more than 2 GB in one message
        raise ModelUntrainable(f"the body is too large for one message ({exc}); keep its weights in a file") from exc
