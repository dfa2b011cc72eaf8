"""External data is found where the onnx package finds it, without loading a weight, and refused where it is unsafe."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hybrid.artifact.digest import files_of_model
from hybrid.artifact.external_data import HOLDERS, external_data
from hybrid.errors import ModelInvalid
from tests import zoo


def test_the_table_is_that_of_the_onnx_package():
    seen: dict[str, dict[int, str]] = {}
    pending = [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.name in seen or message.name == "TensorProto":
            continue
        seen[message.name] = {}
        for field in message.fields:
            if field.message_type is not None and _reaches_tensor(field.message_type):
                seen[message.name][field.number] = field.message_type.name
                pending.append(field.message_type)
    assert {name: fields for name, fields in seen.items() if fields} == HOLDERS


def _reaches_tensor(message, on_the_way=()):
    if message.name == "TensorProto":
        return True
    if message.name in on_the_way:
        return False
    return any(
        field.message_type is not None and _reaches_tensor(field.message_type, (*on_the_way, message.name))
        for field in message.fields
    )


def test_a_tensor_is_found_wherever_onnx_allows_one(tmp_path):
    def outside(name):
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0])
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.bin")
        return tensor

    inner = helper.make_graph([], "inner", [], [], [outside("subgraph")])
    sparse = onnx.SparseTensorProto(values=outside("sparse_values"), indices=outside("sparse_indices"), dims=[4])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner)
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=outside("attribute"))
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS, tensors=[outside("many_0"), outside("many_1")])
    node.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS, graphs=[inner])
    node.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    graph = helper.make_graph([node], "g", [], [], [outside("initializer")], sparse_initializer=[sparse])
    function = helper.make_function("own", "f", [], ["y"], [node], [helper.make_opsetid("", 17)])
    model = helper.make_model(graph, functions=[function])
    model.training_info.add(algorithm=helper.make_graph([], "t", [], [], [outside("training")]))
    stale = model.graph.initializer.add()
    stale.CopyFrom(outside("stale"))
    stale.data_location = TensorProto.DEFAULT
    path = tmp_path / "all.onnx"
    path.write_bytes(model.SerializeToString())

    assert {place.location.removesuffix(".bin") for place in external_data(path)} == {
        "initializer", "attribute", "many_0", "many_1", "subgraph", "sparse_values", "sparse_indices", "training",
    }  # fmt: skip


@pytest.mark.parametrize("name", zoo.TRAINED)
def test_trained_models_are_one_file(name):
    files = files_of_model(zoo.path(name))
    assert [file.name for file in files] == [zoo.path(name).name]
    assert files[0].size == zoo.path(name).stat().st_size


def test_what_is_found_is_what_the_engine_needs(make_external):
    path = make_external("b.bin", "a.bin", "deep/c.bin")
    assert [file.name for file in files_of_model(path)] == ["net.onnx", "a.bin", "b.bin", "deep/c.bin"]
    session = ort.InferenceSession(path)
    assert session.run(None, {"x": np.zeros(2048, np.float32)})[0].any()
    for file in files_of_model(path)[1:]:
        kept = file.path.read_bytes()
        file.path.unlink()
        with pytest.raises(ModelInvalid, match=file.name):
            files_of_model(path)
        with pytest.raises(Exception, match=r"(?i)file|external"):
            ort.InferenceSession(path)
        file.path.write_bytes(kept)


UNSAFE = [
    "../w.bin",
    "/etc/hostname",
    "",
    ".",
    "a/../../w.bin",
    "a\\b.bin",
    "w.bin\0x",
    "*/_ORT_MEM_ADDR_/*",
    "C:w.bin",
]


@pytest.mark.parametrize("location", UNSAFE)
def test_a_location_outside_the_folder_is_refused(make_external, location):
    path = make_external("w.bin")
    (path.parent.parent / "w.bin").write_bytes(bytes(8192))
    data = path.read_bytes()
    model = onnx.load_from_string(data)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalid) as caught:
        files_of_model(path)
    assert str(path) in str(caught.value)


def test_links_and_special_files_are_refused(make_external, tmp_path):
    path = make_external("w.bin")
    weights = path.parent / "w.bin"
    weights.rename(tmp_path / "real.bin")

    weights.symlink_to(tmp_path / "real.bin")
    with pytest.raises(ModelInvalid, match="symbolic link"):
        files_of_model(path)
    weights.unlink()

    os.link(tmp_path / "real.bin", weights)
    with pytest.raises(ModelInvalid, match="hard links"):
        files_of_model(path)
    weights.unlink()

    os.mkfifo(weights)
    with pytest.raises(ModelInvalid, match="no regular file"):
        files_of_model(path)
    weights.unlink()

    weights.mkdir()
    with pytest.raises(ModelInvalid, match="no regular file"):
        files_of_model(path)


def test_a_folder_that_is_a_link_is_refused(make_external, tmp_path):
    path = make_external("deep/w.bin")
    (path.parent / "deep").rename(tmp_path / "elsewhere")
    (path.parent / "deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelInvalid, match="symbolic link"):
        files_of_model(path)


def test_external_data_that_is_cut_off_is_refused(make_external):
    path = make_external("w.bin")
    os.truncate(path.parent / "w.bin", 8191)
    with pytest.raises(ModelInvalid, match="8191 bytes where 8192 are needed"):
        files_of_model(path)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"hello, this is no model", b"PK\3\4" + bytes(64), b"\x08\x09", os.urandom(512)]
)
def test_what_is_not_onnx_is_named(tmp_path, content):
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid) as caught:
        files_of_model(path)
    assert str(path) in str(caught.value)
    assert caught.value.fields["path"] == str(path)


def test_missing_and_folder_are_named(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelInvalid) as caught:
            files_of_model(path)
        assert str(path) in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_a_typed_error_or_harmless(make_external, data):
    path = make_external("w.bin")
    sound = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del sound[data.draw(st.integers(0, len(sound) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if sound:
            sound[data.draw(st.integers(0, len(sound) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(sound)
    try:
        names = [file.name for file in files_of_model(path)]
    except ModelInvalid:
        return
    assert names[0] == "net.onnx"


def test_nesting_without_end_is_refused(tmp_path):
    body = b""
    for _ in range(300):  # graph in attribute in node in graph …
        body = _field(1, _field(5, _field(6, body)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x09" + _field(7, body))
    with pytest.raises(ModelInvalid, match="nested too deep"):
        files_of_model(path)


def _field(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def test_a_file_above_2_gb_is_walked_without_its_weights(tmp_path):
    big = 3 << 30
    raw_head = b"\x4a" + _varint(big)  # TensorProto.raw_data, 3 GB
    entry = _field(13, _field(1, b"location") + _field(2, b"w.bin"))
    second = _field(5, entry + b"\x70\x01")  # a tensor behind it, external
    tensor_bytes = len(raw_head) + big
    graph_bytes = 1 + len(_varint(tensor_bytes)) + tensor_bytes + len(second)
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.write(b"\x08\x09" + b"\x3a" + _varint(graph_bytes) + b"\x2a" + _varint(tensor_bytes) + raw_head)
        file.seek(big, os.SEEK_CUR)  # a hole: takes no room
        file.write(second)
    (tmp_path / "w.bin").write_bytes(b"weights")
    script = (
        "import sys; from pathlib import Path; from hybrid.artifact.digest import files_of_model;"
        "print([f.name for f in files_of_model(Path(sys.argv[1]))]);"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    names, peak_kb = done.stdout.splitlines()
    assert names == "['big.onnx', 'w.bin']"
    assert int(peak_kb) < 200 << 10


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_nothing_heavy_is_imported():
    script = (
        "import sys, hybrid.artifact.opening, hybrid.artifact.signature, hybrid.artifact.attachments;"
        "print(sorted({'onnx', 'onnxruntime', 'numpy', 'cryptography', 'aiohttp', 'zipfile'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_limit_of_open_files_is_no_matter(make_external):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = make_external(*[f"w{index}.bin" for index in range(80)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 64 + len(list(Path("/proc/self/fd").iterdir()))), hard))
    try:
        assert len(files_of_model(Path(path))) == 81
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
