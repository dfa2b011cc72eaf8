"""Artifacts with splits, made on the spot: a small net, an int8 head, a bottleneck of principal components."""

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid.artifact.attachments import attach
from hybrid.artifact.digest import digest_of_files, hashed_files
from hybrid.artifact.folder import Artifact, open_folder, write_papers
from hybrid.artifact.manifest import SCHEMA, FileEntry, Manifest, Split, Variant, canonical_bytes
from hybrid.artifact.splits import splits_of
from hybrid.calibration.calibrate import as_attachment
from hybrid.calibration.record import Calibration, Cell
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import Prepared
from tests.bottleneck.making import make_split
from tests.halves import prepare_here

SHAPE = (1, 3, 64, 64)
CROSSING = "r0"
"""FP32 (1, 8, 32, 32), after a light convolution: 32 kB where the input has 49."""

SHAPE_KEY = ShapeKey.of({"x": np.zeros(SHAPE, np.float32)}).text


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    """Smooth pictures, which principal components can tell: every value depends on a few numbers."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((1, 3, 4, 4)).astype(np.float32)
    return {"x": np.repeat(np.repeat(coarse, 16, axis=2), 16, axis=3)}


def noise(seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs that no lossless codec makes much smaller."""
    return {"x": np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)}


def net(path: Path) -> Path:
    """x -> y FP32 (1, 10): one light convolution, then two heavy ones."""
    random = np.random.default_rng(7)
    nodes, weights, current, n_in = [], [], "x", 3
    for i, (n_out, stride) in enumerate(((8, 2), (128, 1), (128, 1))):
        kernel = (random.standard_normal((n_out, n_in, 3, 3)) * (2 / (9 * n_in)) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"k{i}"))
        nodes.append(
            helper.make_node("Conv", [current, f"k{i}"], [f"c{i}"], strides=[stride, stride], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        current, n_in = f"r{i}", n_out
    weights.append(numpy_helper.from_array(random.standard_normal((128, 10)).astype(np.float32), "w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [current], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    return _saved(path, nodes, [("x", SHAPE)], [("y", (1, 10))], weights)


def int8_head(path: Path, model: Path, scale: float = 0.05) -> Path:
    """The net's first layer with levels of int8 behind it: what a quantized head gives."""
    whole = onnx.load(str(model))
    kernel = next(one for one in whole.graph.initializer if one.name == "k0")
    weights = [
        kernel,
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
        numpy_helper.from_array(np.array(-128, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["float"]),
        helper.make_node("QuantizeLinear", ["float", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], [CROSSING]),
    ]
    return _saved(path, nodes, [("x", SHAPE)], [(CROSSING, (1, 8, 32, 32))], weights)


def _saved(path: Path, nodes: list, inputs: list, outputs: list, weights: list) -> Path:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, path.stem, *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@dataclass(frozen=True)
class Made:
    """An artifact in a folder, and its model's graph cut at `CROSSING`."""

    artifact: Artifact
    prepared: Prepared

    @property
    def model(self) -> Path:
        """The shipped model."""
        return self.artifact.model_path

    @property
    def cut(self) -> str:
        """Id of the cut at `CROSSING`."""
        return next(cut.id for cut in self.prepared.table.interior if [spec.name for spec in cut.tensors] == [CROSSING])

    def digest(self, split_id: str) -> str:
        """Of one of its splits."""
        return next(split.digest for split in splits_of(self.artifact) if split.id == split_id)

    def copied(self, folder: Path) -> "Made":
        """The same in another folder."""
        shutil.copytree(self.artifact.folder, folder)
        return replace(self, artifact=open_folder(folder))


def make(folder: Path, cache: Path, *, version: str = "1", levels: float = 64.0) -> Made:
    """The net with the splits `int8` (a head; what it leaves travels as q8z) and `learned` (a bottleneck)."""
    folder.mkdir(parents=True)
    model = net(folder / "model.onnx")
    prepared = prepare_here(model, feeds(), cache)
    made = Made(Artifact(folder=folder, manifest=None, manifest_bytes=b""), prepared)  # type: ignore[arg-type]
    int8_head(folder / "int8.onnx", model)
    make_split(folder, onnx.load(str(model)), CROSSING, [feeds(seed) for seed in range(24)], channels=6, levels=levels)
    learned = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "prior": "prior.json"}
    place = {"cut": made.cut, "shape_key": SHAPE_KEY}
    names = ["model.onnx", "int8.onnx", *learned.values()]
    manifest = Manifest(
        schema=SCHEMA,
        name="net",
        version=version,
        sequence=int(version),
        model_digest=digest_of_files(hashed_files(model)),
        files={name: _entry(folder / name) for name in names},
        variants=(Variant(id="original", engine="onnxruntime", precision="native", files=("model.onnx",)),),
        splits=(
            Split(id="int8", head="int8.onnx", files=("int8.onnx",), carrier="q8z", **place),
            Split(id="learned", files=tuple(learned.values()), **learned, **place),
        ),
    )
    artifact = Artifact(folder=folder, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    write_papers(artifact, folder)
    return replace(made, artifact=artifact)


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def permit(made: Made, key: bytes, *ids: str, drop_high: float = 0.004, digests: dict[str, str] | None = None) -> None:
    """A signed calibration beside the model: these splits cost next to nothing."""
    found = {split.id: split for split in splits_of(made.artifact)}
    cells = tuple(
        Cell(
            cut=made.cut,
            codec=found[name].codec,
            n=600,
            drop=0.0,
            drop_low=0.0,
            drop_high=drop_high,
            raw_bytes=32768.0,
            n_bytes=4096.0,
            split=(digests or {}).get(name, found[name].digest),
        )
        for name in ids
    )
    calibration = Calibration(
        model_digest=made.artifact.manifest.model_digest,
        shape_key=SHAPE_KEY,
        metric="agreement",
        n_samples=600,
        data_digest="d" * 64,
        made_s=1.0,
        cells=cells,
    )
    attach(made.artifact.folder, as_attachment(calibration, key))


def with_splits(made: Made, splits: tuple[Split, ...], folder: Path) -> Made:
    """The same artifact with other splits, in another folder."""
    shutil.copytree(made.artifact.folder, folder)
    manifest = msgspec.structs.replace(made.artifact.manifest, splits=splits)
    artifact = Artifact(folder=folder, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    write_papers(artifact, folder)
    return replace(made, artifact=artifact)


def damage(path: Path) -> None:
    """Changes a byte of a file, not its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
