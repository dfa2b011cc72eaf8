"""The model of a simulated fleet: an artifact with a head that learns, and the one registry that holds it."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hybrid.artifact.folder import Artifact, from_onnx, open_folder
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.artifact.signature import Signature
from hybrid.artifact.trainable import HEAD_FILE, Separated, declared
from hybrid.errors import BadMessage, NotFound
from hybrid.federated.learning.head import Head, open_head

if TYPE_CHECKING:
    from onnx import TensorProto

NAME = "simulated"
_INPUT = "x"


class Version(NamedTuple):
    """The one version."""

    name: str
    version: str
    sequence: int
    artifact_digest: str


class OneModel:
    """A registry of one artifact; a `Library`."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self._artifact = artifact
        self._version = Version(manifest.name, manifest.version, manifest.sequence, artifact.digest)
        self._blobs = {entry.sha256: artifact.folder / name for name, entry in manifest.files.items()}

    def resolve(self, name: str, version: str | None = None) -> Version:
        """It, or `NotFound`."""
        if name != self._version.name or version not in (None, self._version.version):
            raise NotFound(f"the simulation has {self._version.name}:{self._version.version}, not {name}")
        return self._version

    def list_versions(self, name: str | None = None) -> tuple[Version, ...]:
        """It."""
        return (self._version,) if name in (None, self._version.name) else ()

    def manifest_bytes(self, digest: str) -> bytes:
        """Its manifest."""
        if digest != self._version.artifact_digest:
            raise FileNotFoundError(digest)
        return self._artifact.manifest_bytes

    def signature(self, digest: str) -> Signature | None:
        """None: nothing simulated is signed."""
        del digest
        return None

    def find_blob(self, sha256: str) -> Path | None:
        """One of its files."""
        return self._blobs.get(sha256)

    def commit_version(
        self, manifest_bytes: bytes, signature: Signature | None = None, *, name: str | None = None
    ) -> Version:
        """Refused: nothing simulated becomes a version."""
        del manifest_bytes, signature, name
        raise NotFound("nothing simulated becomes a version")


def perceptron(folder: Path, n_features: int, n_hidden: int, n_classes: int, seed: int) -> Artifact:
    """An artifact of a network that learns whole: one hidden layer, or none where `n_hidden` is 0."""
    from onnx import TensorProto, helper

    sizes = [n_features, n_hidden, n_classes] if n_hidden else [n_features, n_classes]
    nodes, at = [], _INPUT
    for layer in range(len(sizes) - 1):
        out = "scores" if layer == len(sizes) - 2 else f"layer{layer}.sum"
        nodes.append(helper.make_node("Gemm", [at, f"layer{layer}.weight", f"layer{layer}.bias"], [out]))
        if out != "scores":
            at = f"layer{layer}.active"
            nodes.append(helper.make_node("Relu", [out], [at]))
    tensors, content = _weights(sizes, seed)
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info(_INPUT, TensorProto.FLOAT, ["n", n_features])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", n_classes])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / HEAD_FILE).write_bytes(content)
    apart = Separated(path=path, feature_tensor=_INPUT, node=_INPUT, head_file=HEAD_FILE, n_bytes=len(content))
    return declared(from_onnx(path, NAME, "1"), apart)


def _weights(sizes: list[int], seed: int) -> "tuple[list[TensorProto], bytes]":
    """The tensors, each in its place of the head's file, and that file."""
    from onnx import numpy_helper
    from onnx.external_data_helper import set_external_data

    rng = np.random.default_rng([seed, 4])
    tensors, content = [], b""
    for layer, (n_in, n_out) in enumerate(pairwise(sizes)):
        matrix = rng.normal(size=(n_in, n_out)) * np.sqrt((1.0 if layer == len(sizes) - 2 else 2.0) / n_in)
        for name, array in (("weight", matrix), ("bias", np.zeros(n_out))):
            tensor = numpy_helper.from_array(array.astype(np.float32), f"layer{layer}.{name}")
            set_external_data(tensor, location=HEAD_FILE, offset=len(content), length=4 * array.size)
            tensor.ClearField("raw_data")
            tensors.append(tensor)
            content += array.astype("<f4").tobytes()
    return tensors, content


def opened(folder: Path) -> Artifact:
    """An artifact of the user's own. Raises `NotFound`, `ModelInvalid`, `BadMessage`."""
    if not (folder / MANIFEST_NAME).is_file():
        raise NotFound(
            f"{folder}: no artifact's folder (no {MANIFEST_NAME} in it)",
            advice="`hybrid models pull NAME:VERSION --out DIR` fetches one, `hybrid compress --head` makes one; "
            "without MODEL a made-up network learns.",
        )
    return open_folder(folder)


def input_of(artifact: Artifact) -> str:
    """The name of a model's only input. Raises `BadMessage`."""
    import onnx

    model = onnx.load(artifact.folder / artifact.manifest.model_file, load_external_data=False)
    inside = {tensor.name for tensor in model.graph.initializer}
    names = [str(value.name) for value in model.graph.input if value.name not in inside]
    if len(names) != 1:
        raise BadMessage(f"the model has inputs {', '.join(names)}: give samples as .npz with one array an input")
    return names[0]


def head_of(artifact: Artifact, variant: str) -> tuple[str, Head]:
    """The variant that learns, and its head.

    Raises:
        BadMessage: no variant has trainable files, or several have and none was named.
    """
    able = [each.id for each in artifact.manifest.variants if each.trainable_files]
    chosen = variant or (able[0] if len(able) == 1 else "")
    if not chosen:
        raise BadMessage(f"{len(able)} variants have trainable files ({', '.join(able) or 'none'}): name one")
    return chosen, open_head(artifact.folder, artifact.manifest, chosen)
