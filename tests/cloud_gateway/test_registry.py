"""The registry: immutable versions, one copy of each byte, and a start after any break or damage."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import Registry
from hybrid.artifact.digest import files_of_model, model_digest
from hybrid.artifact.folder import Artifact, from_onnx
from hybrid.artifact.signature import new_private_key, sign
from hybrid.errors import BadMessage, Conflict, NotFound
from tests.model_making import files_below, make_model, put, upload


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
