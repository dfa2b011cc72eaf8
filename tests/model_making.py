"""Small models for tests of registries, and how they come into one without HTTP."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cloud_gateway.registry import Registry
from hybrid.artifact.folder import Artifact, from_onnx


def make_model(folder: Path, seed: int = 0, *, external: bool = False, name: str = "net.onnx") -> Path:
    """A small sound model; its weights differ by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = numpy_helper.from_array(np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / name
    onnx.save(model, path, save_as_external_data=external, location=f"{name}.data", size_threshold=0)
    return path


def upload(registry: Registry, artifact: Artifact) -> None:
    """Put each file that is missing into the blob store."""
    for name, entry in artifact.manifest.files.items():
        if registry.find_blob(entry.sha256) is None:
            content = artifact.path_of(name).read_bytes()
            with registry._blobs.begin(entry.sha256, offset=0, total_bytes=len(content)) as part:
                part.append(content)
                part.finish()


def put(registry: Registry, path: Path, name: str = "net", version: str = "1", sequence: int = 1) -> Artifact:
    """Upload and commit a bare model."""
    artifact = from_onnx(path, name, version, sequence=sequence)
    upload(registry, artifact)
    registry.commit_version(artifact.manifest_bytes)
    return artifact


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, by its relative path, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
