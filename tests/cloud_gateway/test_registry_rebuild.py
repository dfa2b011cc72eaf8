"""The registry built again from its manifests: killed at any step, it goes on at the next start and removes nothing."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import MIGRATIONS, Registry
from tests.model_making import make_model, put


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with three versions of two models."""
    folder = tmp_path / "data"
    registry = Registry(folder, BlobStore(folder))
    put(registry, make_model(tmp_path / "a", 1, external=True), version="1")
    put(registry, make_model(tmp_path / "b", 2), version="2")
    put(registry, make_model(tmp_path / "b", 2), "other")
    registry.close()
    return folder


def _labels(registry: Registry) -> list[tuple[str, str]]:
    return sorted((record.name, record.version) for record in registry.list_versions())


ALL = [("net", "1"), ("net", "2"), ("other", "1")]

OPENING = """
import os, sys
from pathlib import Path
from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import Registry

step, data = int(sys.argv[1]), Path(sys.argv[2])
count = 0
def trace(event, args):
    # each file of the registry that is opened is a step; the process dies before the chosen one
    global count
    if event == "open" and isinstance(args[0], (str, os.PathLike)) and str(args[0]).startswith(str(data)):
        count += 1
        if count == step:
            os.kill(os.getpid(), 9)
sys.addaudithook(trace)
Registry(data, BlobStore(data))
"""


@pytest.mark.slow
def test_a_rebuild_killed_at_any_step_goes_on_at_the_next_start(data, tmp_path):
    (data / "registry.db").unlink()
    for step in range(1, 40):
        copy = tmp_path / f"data-{step}"
        shutil.copytree(data, copy)
        command = [sys.executable, "-c", OPENING, str(step), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        reopened = Registry(copy, BlobStore(copy))
        assert _labels(reopened) == ALL, step
        for record in reopened.list_versions():
            reopened.verify(record.model_digest)
        reopened.close()
        if done.returncode == 0:
            break
    else:
        pytest.fail("the rebuild has more steps than were tried")
    assert step > 3


def test_a_database_in_which_nothing_was_restored_yet_is_not_believed(data):
    (data / "registry.db").unlink()
    connection = sqlite3.connect(data / "registry.db")  # what a rebuild killed early left
    connection.executescript(f"CREATE TABLE schema_version (version INTEGER NOT NULL); {MIGRATIONS[0]};")
    connection.execute("INSERT INTO schema_version VALUES (1)")
    connection.commit()
    connection.close()
    registry = Registry(data, BlobStore(data))
    assert _labels(registry) == ALL
    registry.close()


def test_a_database_of_the_schema_before_is_not_read_anew(data):
    connection = sqlite3.connect(data / "registry.db")
    connection.execute("DROP TABLE sound")
    connection.execute("DELETE FROM schema_version")
    connection.execute("INSERT INTO schema_version VALUES (1)")
    connection.commit()
    connection.close()
    for manifest in (data / "manifests").glob("*.json"):
        manifest.unlink()  # nothing to rebuild from: what is listed comes from the database
    registry = Registry(data, BlobStore(data))
    assert _labels(registry) == ALL
    registry.close()


def test_a_folder_that_nobody_knows_is_never_removed(data):
    folders = sorted(path for path in (data / "models").iterdir() if len(path.name) == 64)
    connection = sqlite3.connect(data / "registry.db")
    connection.execute("DELETE FROM placed")
    connection.commit()
    connection.close()
    strange = data / "models" / ("0" * 64)
    strange.mkdir()
    (strange / "net.onnx").write_bytes(b"somebody's")
    staging = data / "models" / ".tmp-left"
    staging.mkdir()

    registry = Registry(data, BlobStore(data))
    assert all(path.is_dir() for path in folders)
    for record in registry.list_versions():
        registry.verify(record.model_digest)
    assert not strange.exists()
    [aside] = (data / "models").glob("*.corrupt-*")
    assert (aside / "net.onnx").read_bytes() == b"somebody's"
    assert not staging.exists()
    registry.close()
