"""Where tensors lie: read from the encodings of ONNX and TFLite without a library of either, and from hostile ones."""

import random
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hybrid.artifact.chunk_extents import _PAYLOADS, apart, extents_of, external_extents
from hybrid.artifact.chunk_view import FileView
from hybrid.errors import StorageError
from tests import zoo
from tests.chunks.making import layered, saved

MARK = 0x1122334455667700


def view_of(path: Path) -> FileView:
    return FileView(path, path.stat().st_size)


def test_the_payload_fields_are_those_of_onnx():
    numbers = {"float_data", "int32_data", "int64_data", "raw_data", "double_data", "uint64_data"}
    assert {onnx.TensorProto.DESCRIPTOR.fields_by_name[name].number for name in numbers} == set(_PAYLOADS)


@pytest.mark.parametrize("name", ["magika", "ppocr_cls", "silero", "minilm"])
def test_every_tensor_of_a_real_model_is_found(name: str):
    path = zoo.path(name)
    data = path.read_bytes()
    found = {data[offset : offset + length] for offset, length in extents_of(view_of(path))}
    graph = onnx.load(path).graph
    constants = [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute]
    values = [numpy_helper.to_array(tensor) for tensor in (*graph.initializer, *constants)]
    large = [value.tobytes() for value in values if value.dtype == np.float32 and value.nbytes >= 64]
    assert large
    assert set(large) <= found


def test_typed_data_tensors_in_attributes_and_in_subgraphs_are_found(tmp_path: Path):
    inner = numpy_helper.from_array(np.arange(100, dtype=np.float32), "inner")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [50], [float(i) for i in range(50)])
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(40, np.float64)))
    branch = helper.make_graph([helper.make_node("Identity", ["inner"], ["out"])], "b", [], [], [inner])
    nodes = [constant, helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [typed]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert sorted(length for _, length in extents_of(view_of(path))) == [200, 320, 400, 400]


def test_external_tensors_are_found_by_the_model_that_names_them(tmp_path: Path):
    model = layered(5)
    folder = saved(model, tmp_path / "m", external=True)
    size = (folder / "model.data").stat().st_size
    extents = external_extents(view_of(folder / "model.onnx"), "model.data", size)
    data = (folder / "model.data").read_bytes()
    assert [data[offset : offset + length] for offset, length in extents] == [
        t.raw_data for t in model.graph.initializer
    ]
    assert external_extents(view_of(folder / "model.onnx"), "other.data", size) == []


def flat_model(buffers: list[bytes], *, by_offset: bool = False) -> bytes:
    """A TFLite file of which only the buffers are there, written with the flatbuffers library."""
    builder = flatbuffers.Builder(1024)
    tables = []
    for index, content in enumerate(buffers):
        data = builder.CreateByteVector(content) if content and not by_offset else None
        builder.StartObject(3)
        if data is not None:
            builder.PrependUOffsetTRelativeSlot(0, data, 0)
        elif content:
            builder.PrependUint64Slot(1, MARK + index, 0)  # replaced below, when the end is known
            builder.PrependUint64Slot(2, len(content), 0)
        tables.append(builder.EndObject())
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    vector = builder.EndVector()
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(4, vector, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    data = bytes(builder.Output())
    if by_offset:
        for index, content in enumerate(buffers):
            if content:
                place = data.index((MARK + index).to_bytes(8, "little"))
                data = data[:place] + len(data).to_bytes(8, "little") + data[place + 8 :] + content
    return data


@pytest.mark.parametrize("by_offset", [False, True])
def test_buffers_of_tflite_files_are_found_inside_and_by_offset(tmp_path: Path, by_offset: bool):
    rng = np.random.default_rng(3)
    contents = [b"", rng.bytes(1000), rng.bytes(70_000), b"short", rng.bytes(64)]
    path = tmp_path / "model.tflite"
    path.write_bytes(flat_model(contents, by_offset=by_offset))
    data = path.read_bytes()
    found = {data[offset : offset + length] for offset, length in extents_of(view_of(path))}
    assert found == {content for content in contents if len(content) >= 64}


def test_extents_never_overlap_nor_leave_the_file():
    found = [(0, 100), (50, 100), (-5, 70), (100, 1 << 60), (900, 200), (300, 64), (300, 64), (400, 10), (500, -70)]
    assert apart(iter(found), 1000) == [(0, 100), (300, 64)]


def test_broken_files_give_places_inside_them_or_none(tmp_path: Path):
    """Bit flips, cuts and noise: never an error, never an endless walk, never a place outside."""
    rng = random.Random(7)
    onnx_bytes = onnx_small()
    flat = flat_model([bytes(200), bytes(range(256))], by_offset=False)
    path = tmp_path / "file"
    for index in range(300):
        data = bytearray(onnx_bytes if index % 2 else flat)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), 400) if index % 3 else len(data))] = rng.randrange(256)
        if index % 5 == 0:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        end = 0
        for offset, length in extents_of(view_of(path)):
            assert offset >= end
            end = offset + length
        assert end <= len(data)


def onnx_small() -> bytes:
    return layered(4, width=8).SerializeToString()


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    view = view_of(path)
    assert view[299_999] == 0
    with path.open("rb+") as file:
        file.truncate(100)
    with pytest.raises(StorageError, match="changed while it was read"):
        view.read(200_000, 10)
