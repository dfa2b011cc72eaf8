"""Artifacts whose head can learn: its weights lie in a file of their own, and the manifest says so.

Design: the body's bytes never change when the head learns, so that a version that has learned differs from its base in
`trainable_files` and golden outputs alone, and a box fetches only these. With a rank the head itself is of what never
changes, and the file has A and B, which are added to what its products answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from hybrid.artifact.durable import write_atomically
from hybrid.artifact.folder import Artifact, from_onnx, made_at, open_folder
from hybrid.artifact.golden_files import write_golden
from hybrid.artifact.manifest import canonical_bytes
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.errors import ModelInvalid

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime

HEAD_FILE: Final = "head.bin"
"""What can learn, beside the model."""

WHOLE: Final = "input"
"""What is said in place of a tensor where the whole model is to learn."""

TOLERANCE: Final = 1e-3
_MOST_BYTES: Final = (1 << 31) - (1 << 20)
_DRAWN: Final = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8", "tensor(int8)": "int8",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Separated:
    """A model whose head lies in a file of its own.

    Attributes:
        path: of the model.
        feature_tensor: on which the head stands.
        node: the head's first, and its operator.
        head_file: name of the file that can learn, beside the model.
        n_bytes: of that file.
        rank: of the updates that learn beside the frozen head; 0 where the head's own weights learn.
        n_products: that such updates stand beside.
        is_whole: whether the feature tensor is the model's input, so that all of it learns.
    """

    path: Path
    feature_tensor: str
    node: str
    head_file: str
    n_bytes: int
    rank: int = 0
    n_products: int = 0
    is_whole: bool = False

    @property
    def text(self) -> str:
        """For people."""
        if self.is_whole:
            return f"all of the model learns: its {self.n_bytes} bytes of float weights are {self.head_file}"
        begins = f"the head begins at {self.node}, on {self.feature_tensor!r}"
        if not self.rank:
            return f"{begins}; its {self.n_bytes} bytes are {self.head_file}"
        what = "its product" if self.n_products == 1 else f"{self.n_products} of its products"
        return (
            f"{begins}; it stays: {self.head_file} has updates of rank {self.rank} beside {what}, {self.n_bytes} bytes"
        )


def separated(model: Path, head: str, folder: Path, *, rank: int | None = None, may_be_whole: bool = True) -> Separated:
    """Writes a model into a folder with what can learn in a file of its own; it computes the same.

    Args:
        model: an ONNX file, float in its head; with a rank the head may be int8.
        head: the tensor that the head stands on, `auto` for the input of the last product by float weights, or `input`
            (or the model's only input by its name): all of the model learns.
        folder: where model and head are written; made.
        rank: of updates A, B beside the frozen products of the head, which alone learn; None: all of the head's float
            weights learn.
        may_be_whole: else a head that is the whole model is refused.

    Raises:
        NotTrainable: no such tensor, no head that can learn, or a rank that makes none of its products smaller; says
            why, and what names are near.
        ModelInvalid: no ONNX model, or one that takes more than 2 GB in one piece.
        DiskFull, StorageError: a file was not written.
    """
    from compression.errors import NotTrainable
    from compression.training.head_graphs import stand_of
    from compression.training.heads import low_rank_head, separate_head

    whole = _loaded(model)
    tensor = _input_meant(whole, head) if may_be_whole else ""
    if tensor and rank is not None:
        raise NotTrainable("a rank is of a head behind a body: name a tensor behind the input, or leave the rank out")
    if tensor:
        node, apart = "its input", separate_head(whole, tensor, file=HEAD_FILE, is_whole=True)
    else:
        stand = stand_of(whole, head)
        tensor, node = stand.tensor, stand.node
        if rank is None:
            apart = separate_head(whole, tensor, file=HEAD_FILE)
        else:
            apart = low_rank_head(whole, tensor, rank, file=HEAD_FILE)
    path = folder / model.name
    write_atomically(folder / apart.file, apart.content, is_shown=True)
    write_atomically(path, apart.model.SerializeToString(deterministic=True), is_shown=True)
    return Separated(
        path=path,
        feature_tensor=tensor,
        node=node,
        head_file=apart.file,
        n_bytes=apart.n_bytes,
        rank=rank or 0,
        n_products=len(apart.tensors) // 2 if rank else 0,
        is_whole=node == "its input",
    )


def _input_meant(model: "onnx.ModelProto", said: str) -> str:
    """The model's only input where that is meant; empty where another tensor is.

    Raises:
        NotTrainable: the input is meant, and there are several.
    """
    from compression.errors import NotTrainable

    given = {one.name for one in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in given]
    made = {name for node in model.graph.node for name in node.output}
    if said not in inputs and (said != WHOLE or said in made):
        return ""
    if len(inputs) != 1:
        raise NotTrainable(
            f"the model has {len(inputs)} inputs ({', '.join(inputs[:5])}), a whole model learns from one; name a "
            "tensor that a head stands on, or `auto`"
        )
    return str(inputs[0])


def declared(artifact: Artifact, apart: Separated) -> Artifact:
    """The artifact of a separated model, its manifest saying what can learn."""
    shipped, *others = artifact.manifest.variants
    shipped = msgspec.structs.replace(
        shipped, feature_tensor=apart.feature_tensor, trainable_files=_beside(shipped.files, apart.head_file)
    )
    manifest = msgspec.structs.replace(artifact.manifest, variants=(shipped, *others))
    return replace(artifact, manifest=manifest, manifest_bytes=canonical_bytes(manifest))


def trainable_artifact(  # noqa: PLR0913  (what is named is the artifact's or the head's; all but three have a default)
    model: Path,
    out: Path,
    *,
    name: str,
    head: str = "auto",
    rank: int | None = None,
    version: str = "1",
    sequence: int = 1,
    inputs: "Mapping[str, np.ndarray] | None" = None,
    tolerance: float = TOLERANCE,
) -> Artifact:
    """An artifact of an ONNX file with its head in a file of its own, and golden files; nothing is searched.

    Args:
        model: an ONNX file.
        out: the artifact's folder; must not exist, or be empty.
        name, version, sequence: of the artifact.
        head, rank: as `separated` takes them.
        inputs: of one request, for the golden files; None draws them, the same each time.
        tolerance: how far a box's golden outputs may be off, of the largest value.

    Raises:
        NotTrainable, ModelInvalid, DiskFull, StorageError: as `separated`; nothing is left behind.
        DeviceError: the engine refuses the model.
        Conflict: something is at the artifact's place.
    """
    with made_at(out) as staging:
        apart = separated(model, head, staging, rank=rank)
        bare = declared(from_onnx(apart.path, name, version, sequence=sequence), apart)
        feeds, outputs = _answered(apart.path, inputs)
        golden, entries = write_golden(staging, feeds, outputs, {"onnxruntime": tolerance})
        manifest = msgspec.structs.replace(bare.manifest, golden=golden, files={**bare.manifest.files, **entries})
        write_atomically(staging / MANIFEST_NAME, canonical_bytes(manifest), is_shown=True)
    return open_folder(out)


def _beside(files: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(file for file in files[1:] if file.rpartition("/")[2] == name)


def _loaded(path: Path) -> "onnx.ModelProto":
    """A model with its external data taken in; one file of it is written again, so it has to fit into one."""
    import onnx
    from google.protobuf.message import DecodeError

    from hybrid.artifact.digest import files_of_model

    n_bytes = sum(file.size for file in files_of_model(path))
    if n_bytes > _MOST_BYTES:
        raise ModelInvalid(
            f"{path}: {n_bytes / 1e9:.1f} GB; a head is separated from models of up to 2 GB", path=str(path)
        )
    try:
        return onnx.load(path)
    except DecodeError as exc:
        raise ModelInvalid(f"{path}: not an ONNX model ({exc})", path=str(path)) from exc


def _answered(
    path: Path, inputs: "Mapping[str, np.ndarray] | None"
) -> "tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]":
    """One request and the model's answer to it."""
    import onnxruntime

    from devices.onnx_engine import open_session

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = open_session(path, options, ["CPUExecutionProvider"])
    feeds = inputs if inputs is not None else drawn_inputs(session)
    names = [port.name for port in session.get_outputs()]
    return feeds, dict(zip(names, session.run(names, dict(feeds)), strict=True))


def drawn_inputs(session: "onnxruntime.InferenceSession", seed: int = 0) -> "dict[str, np.ndarray]":
    """The same random inputs for the same model and seed; open sizes are one."""
    import numpy as np

    from devices.onnx_engine import ports

    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for port in ports(session)[0]:
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in port.shape]
        if port.type not in _DRAWN:
            raise ModelInvalid(f"input {port.name!r} is {port.type}, which nobody can draw; give the inputs")
        dtype = np.dtype(_DRAWN[port.type])
        drawn = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        found[port.name] = np.asarray(drawn).astype(dtype)
    return found
