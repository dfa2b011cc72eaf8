"""The registry: immutable versions, one copy of each byte, and a start after any break or damage."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import Registry, VersionRecord
from hybrid.artifact.digest import files_of_model, model_digest
from hybrid.artifact.folder import Artifact, from_onnx
from hybrid.artifact.signature import new_private_key, sign
from hybrid.errors import BadMessage, Conflict, CorruptContent, DiskFull, NotFound


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def registry(data: Path) -> Iterator[Registry]:
    opened = Registry(data, BlobStore(data))
    yield opened
    opened.close()


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
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_version_is_found_by_name_and_by_digest_and_runs(registry, tmp_path):
    path = make_model(tmp_path / "m", external=True)
    artifact = put(registry, path)
    record = registry.resolve("net")
    assert record == registry.resolve("net", "1") == registry.by_digest(model_digest(path))
    assert record.artifact_digest == artifact.digest
    assert registry.manifest_bytes(record.artifact_digest) == artifact.manifest_bytes
    assert model_digest(record.path) == record.model_digest == model_digest(path)
    feeds = {"x": np.ones((1, 64), np.float32)}
    mine, theirs = (ort.InferenceSession(p).run(None, feeds)[0] for p in (path, record.path))
    np.testing.assert_array_equal(mine, theirs)


def test_each_byte_is_once_on_the_disk_with_one_name(registry, data, tmp_path):
    artifact = put(registry, make_model(tmp_path / "m", external=True))
    assert files_below(data / "blobs") == []
    assert files_below(data / "parts") == []
    for name, entry in artifact.manifest.files.items():
        path = registry.find_blob(entry.sha256)
        assert path.name == name
        assert path.stat().st_nlink == 1
    assert files_of_model(registry.resolve("net").path)


def test_the_newest_is_the_last_committed(registry, tmp_path):
    put(registry, make_model(tmp_path / "a", 1), version="10")
    put(registry, make_model(tmp_path / "b", 2), version="9")
    assert registry.resolve("net").version == "9"
    assert [record.version for record in registry.list_versions("net")] == ["10", "9"]
    assert [model.version for model in registry.models()] == ["10", "9"]
    assert registry.find("net", "").version == "9"


def test_versions_never_change(registry, tmp_path):
    first = put(registry, make_model(tmp_path / "a", 1))
    assert registry.commit_version(first.manifest_bytes) == registry.resolve("net", "1")
    other = from_onnx(make_model(tmp_path / "b", 2), "net", "1")
    upload(registry, other)
    with pytest.raises(Conflict):
        registry.commit_version(other.manifest_bytes)
    with pytest.raises(Conflict):  # the same model, other manifest bytes
        registry.commit_version(first.manifest_bytes + b" ")
    assert registry.resolve("net", "1").artifact_digest == first.digest
    assert len(registry.list_versions()) == 1


def test_two_names_share_the_files(registry, data, tmp_path):
    path = make_model(tmp_path / "a")
    put(registry, path, "one")
    put(registry, path, "two")
    assert registry.resolve("one").path == registry.resolve("two").path
    assert len(files_below(data / "models")) == 1


def test_a_blob_of_two_models_is_copied(registry, data, tmp_path):
    path = make_model(tmp_path / "a", external=True)
    put(registry, path, "one")
    model = onnx.load(path, load_external_data=False)
    model.doc_string = "another graph over the same weights"
    path.write_bytes(model.SerializeToString())
    put(registry, path, "two")
    one, two = registry.resolve("one").path, registry.resolve("two").path
    assert one.parent != two.parent
    assert (one.parent / "net.onnx.data").read_bytes() == (two.parent / "net.onnx.data").read_bytes()
    assert {file.path.stat().st_nlink for at in (one, two) for file in files_of_model(at)} == {1}


def test_two_equal_files_of_one_model_keep_one_link_each(registry, tmp_path):
    path = make_model(tmp_path / "a", external=True)
    model = onnx.load(path, load_external_data=False)
    twin = model.graph.initializer.add()
    twin.CopyFrom(model.graph.initializer[0])
    twin.name = "v"
    next(entry for entry in twin.external_data if entry.key == "location").value = "twin.data"
    shutil.copy(path.parent / "net.onnx.data", path.parent / "twin.data")
    path.write_bytes(model.SerializeToString())
    put(registry, path)
    assert [file.name for file in files_of_model(registry.resolve("net").path)] == [
        "net.onnx",
        "net.onnx.data",
        "twin.data",
    ]


def test_missing_files_are_named_and_nothing_is_committed(registry, data, tmp_path):
    artifact = from_onnx(make_model(tmp_path / "a", external=True), "net", "1")
    with pytest.raises(NotFound) as caught:
        registry.commit_version(artifact.manifest_bytes)
    assert set(caught.value.fields["missing"]) == {entry.sha256 for entry in artifact.manifest.files.values()}
    assert registry.list_versions() == ()
    assert files_below(data / "models") == []


def test_a_lie_about_a_size_is_refused(registry, tmp_path):
    artifact = from_onnx(make_model(tmp_path / "a"), "net", "1")
    upload(registry, artifact)
    fields = json.loads(artifact.manifest_bytes)
    [entry] = fields["files"].values()
    entry["size"] += 1
    body = json.dumps([["net.onnx", entry["size"], entry["sha256"]]], separators=(",", ":"))
    fields["model_digest"] = hashlib.sha256(body.encode()).hexdigest()
    with pytest.raises(BadMessage, match=r"net\.onnx"):
        registry.commit_version(json.dumps(fields).encode())
    assert registry.list_versions() == ()


def test_unknown_names_and_digests_are_not_found(registry):
    for ask in (
        lambda: registry.resolve("none"),
        lambda: registry.resolve("none", "1"),
        lambda: registry.by_digest("0"),
    ):
        with pytest.raises(NotFound):
            ask()


def test_what_is_wanted_survives_a_restart(data, registry):
    assert registry.wanted("net")
    registry.want("net", loaded=False)
    registry.want("net", loaded=False)
    registry.close()
    reopened = Registry(data, BlobStore(data))
    assert not reopened.wanted("net")
    reopened.want("net", loaded=True)
    assert reopened.wanted("net")
    reopened.close()


def test_the_signature_is_kept_and_may_come_later(data, registry, tmp_path):
    artifact = put(registry, make_model(tmp_path / "a"))
    assert registry.signature(artifact.digest) is None
    signature = sign(artifact.manifest_bytes, new_private_key())
    registry.commit_version(artifact.manifest_bytes, signature)
    assert registry.signature(artifact.digest) == signature
    registry.commit_version(artifact.manifest_bytes, sign(artifact.manifest_bytes, new_private_key()))
    assert registry.signature(artifact.digest) == signature


def test_many_threads_at_once(registry, tmp_path):
    artifacts = [from_onnx(make_model(tmp_path / f"m{index % 3}", index % 3), "net", str(index)) for index in range(12)]
    for artifact in artifacts:
        upload(registry, artifact)
    barrier = threading.Barrier(12)

    def work(artifact: Artifact) -> str:
        barrier.wait()
        registry.commit_version(artifact.manifest_bytes)
        return registry.resolve("net", artifact.manifest.version).artifact_digest

    with ThreadPoolExecutor(12) as pool:
        digests = list(pool.map(work, artifacts))
    assert digests == [artifact.digest for artifact in artifacts]
    assert len(registry.list_versions("net")) == 12


def test_rivals_for_one_version_have_one_winner(registry, tmp_path):
    artifacts = [from_onnx(make_model(tmp_path / f"m{index}", index), "net", "1") for index in range(6)]
    for artifact in artifacts:
        upload(registry, artifact)
    barrier = threading.Barrier(6)

    def work(artifact: Artifact) -> str:
        barrier.wait()
        try:
            return registry.commit_version(artifact.manifest_bytes).artifact_digest
        except Conflict:
            return ""

    with ThreadPoolExecutor(6) as pool:
        winners = [digest for digest in pool.map(work, artifacts) if digest]
    assert winners == [registry.resolve("net", "1").artifact_digest]


# After something broke.


def _labels(records: tuple[VersionRecord, ...]) -> list[tuple[str, str, str]]:
    return [(record.name, record.version, record.artifact_digest) for record in records]


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _cut(path: Path) -> None:
    os.truncate(path, 1500)


def _text(path: Path) -> None:
    path.write_text("this is no database " * 500)


def _page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    path.write_bytes(content)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_zeros, _cut, _text, _page, _empty, _gone])
def test_a_damaged_database_is_set_aside_and_rebuilt(data, tmp_path, damage):
    registry = Registry(data, BlobStore(data))
    put(registry, make_model(tmp_path / "a", 1, external=True), version="1")
    put(registry, make_model(tmp_path / "b", 2), version="2")
    put(registry, make_model(tmp_path / "b", 2), "other")
    before = registry.list_versions()
    registry.close()  # the log is written back and removed
    damage(data / "registry.db")

    reopened = Registry(data, BlobStore(data))
    after = reopened.list_versions()
    assert [(r.name, r.version, r.artifact_digest) for r in after] == [
        (r.name, r.version, r.artifact_digest) for r in before
    ]
    for record in after:
        assert model_digest(record.path) == record.model_digest
    if damage not in (_empty, _gone):
        assert list(data.glob("registry.db.corrupt-*"))
    put(reopened, make_model(tmp_path / "c", 3), version="3")
    reopened.close()


def test_what_no_longer_checks_out_stays_out_of_the_rebuilt_database(data, tmp_path):
    registry = Registry(data, BlobStore(data))
    bad = put(registry, make_model(tmp_path / "a", 1), version="1")
    put(registry, make_model(tmp_path / "b", 2), version="2")
    path = registry.resolve("net", "1").path
    registry.close()
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    (data / "registry.db").unlink()
    (data / "manifests" / f"{'0' * 64}.json").write_bytes(bad.manifest_bytes)

    reopened = Registry(data, BlobStore(data))
    assert [record.version for record in reopened.list_versions()] == ["2"]
    put(reopened, make_model(tmp_path / "a", 1), version="1")
    assert reopened.resolve("net").version == "1"
    reopened.close()


def test_a_model_that_changed_on_the_disk_is_set_aside_and_can_be_pushed_again(registry, data, tmp_path):
    artifact = put(registry, make_model(tmp_path / "a"))
    registry.verify(artifact.manifest.model_digest)
    path = registry.resolve("net").path
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    with pytest.raises(CorruptContent):
        registry.verify(artifact.manifest.model_digest)
    assert not path.exists()
    assert registry.find_blob(artifact.manifest.files["net.onnx"].sha256) is None
    upload(registry, artifact)
    assert registry.commit_version(artifact.manifest_bytes) == registry.resolve("net")
    registry.verify(artifact.manifest.model_digest)
    assert len(list((data / "models").glob("*.corrupt-*"))) == 1


def test_a_newer_schema_is_not_touched(data, registry):
    registry.close()
    connection = sqlite3.connect(data / "registry.db")
    connection.execute("INSERT INTO schema_version VALUES (99)")
    connection.commit()
    connection.close()
    with pytest.raises(Exception, match="upgrade hybrid"):
        Registry(data, BlobStore(data))
    assert not list(data.glob("*.corrupt-*"))


COMMITTING = """
import os, sys
from pathlib import Path
import cloud_gateway.model_folders, cloud_gateway.registry, hybrid.artifact.folder
from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import Registry

step, data, manifest = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
count = 0
def trace(event, args):
    # each change of the file system is a step; the process dies before the chosen one
    global count
    if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "open", "sqlite3.connect"):
        if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        count += 1
        if count == step:
            os.kill(os.getpid(), 9)
registry = Registry(data, BlobStore(data))
sys.addaudithook(trace)
registry.commit_version(manifest.read_bytes())
print("committed", flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_commit_loses_nothing(data, tmp_path):
    registry = Registry(data, BlobStore(data))
    put(registry, make_model(tmp_path / "old", 7), version="0")
    artifact = from_onnx(make_model(tmp_path / "new", 8, external=True), "net", "1")
    upload(registry, artifact)
    registry.close()
    manifest = tmp_path / "manifest"
    manifest.write_bytes(artifact.manifest_bytes)
    for step in range(1, 60):
        copy = tmp_path / f"data-{step}"
        shutil.copytree(data, copy)
        done = subprocess.run(
            [sys.executable, "-c", COMMITTING, str(step), str(copy), str(manifest)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        reopened = Registry(copy, BlobStore(copy))
        versions = [record.version for record in reopened.list_versions()]
        assert versions in (["0"], ["0", "1"])
        assert (done.stdout == "committed\n") <= (versions == ["0", "1"])
        for record in reopened.list_versions():
            reopened.verify(record.model_digest)
        for entry in artifact.manifest.files.values():  # the acknowledged uploads are still there
            assert reopened.find_blob(entry.sha256) is not None
        record = reopened.commit_version(artifact.manifest_bytes)
        assert {file.path.stat().st_nlink for file in files_of_model(record.path)} == {1}
        assert files_below(copy / "blobs") == []
        assert not list((copy / "models").glob(".tmp-*"))
        reopened.close()
        if done.returncode == 0:
            break
    else:
        pytest.fail("the commit has more steps than were tried")
    assert step > 5


def test_a_full_disk_commits_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    try:
        registry = Registry(disk, BlobStore(disk))
        put(registry, make_model(tmp_path / "a", 1), version="1")
        artifact = from_onnx(make_model(tmp_path / "b", 2), "net", "2")
        upload(registry, artifact)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(DiskFull):
            registry.commit_version(artifact.manifest_bytes)
        assert [record.version for record in registry.list_versions()] == ["1"]
        filler.unlink()
        registry.commit_version(artifact.manifest_bytes)
        assert [record.version for record in registry.list_versions()] == ["1", "2"]
        registry.verify(artifact.manifest.model_digest)
        registry.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
