"""The body of a model, from its inputs to the feature tensor, as a model of its own that an engine can run.

Design: nothing is written: the body's graph is made in memory and its external weights stay in the files beside the
model, which the engine maps. Features are computed one sample at a time, so that a request never waits for a batch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from devices.errors import DeviceError
from devices.tflite_magic import is_headed
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

_FOLDER: Final = "session.model_external_initializers_file_folder_path"

Feeds = Mapping[str, np.ndarray]


def body_model(head: Head) -> onnx.ModelProto | None:
    """The graph from the model's inputs to the feature tensor; None where that is an input itself.

    Its external weights lie where those of the model do.
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
    body.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in wanted)
    body.graph.sparse_initializer.extend(one for one in graph.sparse_initializer if one.values.name in wanted)
    inputs = wanted if body.ir_version < 4 else wanted & set(declared_inputs(head.model))  # older ones list weights too
    body.graph.input.extend(value for value in graph.input if value.name in inputs)
    body.graph.output.append(declared.get(head.feature) or onnx.ValueInfoProto(name=head.feature))
    return body


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
        self._head = head
        self._session: Any = None
        if is_headed(head.path):
            self._session, names = _lite(head)
        elif (model := body_model(head)) is None:
            names = [head.feature]
        else:
            self._session = _opened(model, head.path.parent, options, providers)
            names = list(declared_inputs(model))
        self._names = frozenset(names)
        self._types = {value.name: value.type for value in head.model.graph.input if value.name in self._names}

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
        found = feeds[self._head.feature] if self._session is None else self._run(feeds, run_options)
        if found.ndim < 1 or found.dtype.kind not in "fiu":
            raise TensorMismatch(f"the feature tensor {self._head.feature!r} is {found.dtype} {list(found.shape)}")
        return np.ascontiguousarray(found, np.float32)

    def _run(self, feeds: Feeds, run_options: Any) -> np.ndarray:
        try:
            found = self._session.run([self._head.feature], {name: feeds[name] for name in self._names}, run_options)
        except Exception as exc:
            self._check_shapes(feeds)
            said = str(exc).strip().splitlines()[:1]
            raise EngineFailed(f"the engine could not make features of a sample: {''.join(said)[:200]}") from exc
        return np.asarray(found[0])

    def _check_shapes(self, feeds: Feeds) -> None:
        for name, kind in self._types.items():
            spec, found = spec_of(name, kind), feeds[name].shape
            if spec is not None and not spec.accepts(spec.dtype, found):
                wanted = "x".join("?" if size is None else str(size) for size in spec.shape)
                raise TensorMismatch(f"{name!r} is {'x'.join(map(str, found))}, the model wants {wanted}")


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
