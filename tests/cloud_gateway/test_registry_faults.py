"""The registry after something broke: damaged databases and models, a kill at any step of a commit, a full disk."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import Registry, VersionRecord
from hybrid.artifact.digest import files_of_model, model_digest
from hybrid.artifact.folder import from_onnx
from hybrid.errors import CorruptContent, DiskFull
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
