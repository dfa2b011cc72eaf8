"""Models whose tensors, names and order a test may turn about, and how much of a download it took."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid.artifact.manifest import FileEntry
from hybrid.transport.chunk_download import Base, ChunkedFiles
from tests.chunks.local_calls import LocalCalls, entries


def layered(n_layers: int, seed: int = 0, *, width: int = 32, name: str = "encoder.layer.{}.weight") -> onnx.ModelProto:
    """A chain of additions, one tensor each."""
    rng = np.random.default_rng(seed)
    shape = [width, width]
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name.format(index))
        for index in range(n_layers)
    ]
    nodes = [
        helper.make_node("Add", [f"x{i}", name.format(i)], [f"x{i + 1}"], name=f"/encoder/layer.{i}/Add")
        for i in range(n_layers)
    ]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i in (0, n_layers)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def saved(model: onnx.ModelProto, folder: Path, *, external: bool = False) -> Path:
    """The folder, with the model in it."""
    folder.mkdir(parents=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, folder / "model.onnx", save_as_external_data=external, location="model.data", size_threshold=0)
    return folder


def reordered(model: onnx.ModelProto, seed: int = 1) -> onnx.ModelProto:
    """The same initialisers in another order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = list(copy.graph.initializer)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensors[index] for index in np.random.default_rng(seed).permutation(len(tensors)))
    return copy


def retrained(model: onnx.ModelProto, *indexes: int, seed: int = 5) -> tuple[onnx.ModelProto, int]:
    """Other numbers in some initialisers, and how many bytes these have."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rng = np.random.default_rng(seed)
    n_bytes = 0
    for index in indexes:
        tensor = copy.graph.initializer[index]
        tensor.raw_data = rng.bytes(len(tensor.raw_data))
        n_bytes += len(tensor.raw_data)
    return copy, n_bytes


class Update:
    """One download of every file of `new` by a machine that has `old`; the gateway holds both, or only the new one."""

    def __init__(self, room: Path, old: Path, new: Path, *, gateway_has_old: bool = True) -> None:
        self.new = new
        self.calls = LocalCalls(room / "notes", new, *([old] if gateway_has_old else []))
        self.wanted: dict[str, FileEntry] = entries(new)
        self.files = ChunkedFiles(self.calls, self.wanted, [Base(folder=old, files=entries(old))])

    async def run(self) -> int:
        """Fetch and compare; the bytes that went over the link."""
        for name, entry in self.wanted.items():
            data = b"".join([block async for block in self.files.blob(entry.sha256, 0)])
            assert data == (self.new / name).read_bytes(), name
        return self.calls.sent_bytes


def blocks_of(data: bytes, n_bytes: int) -> Iterator[bytes]:
    """Data in blocks."""
    return (data[at : at + n_bytes] for at in range(0, len(data), n_bytes))
