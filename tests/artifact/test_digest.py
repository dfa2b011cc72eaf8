"""Digests: as docs/artifact.md defines them, the same everywhere, and remembered only while the file is the same."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from hybrid.artifact.cache import file_sha256, fresh_sha256
from hybrid.artifact.digest import digest_of_bytes, hashed_files, model_digest
from hybrid.errors import ModelInvalid
from tests import zoo


def _by_the_book(*files: Path, folder: Path) -> str:
    entries = sorted(
        [str(file.relative_to(folder)), file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()]
        for file in files
    )
    return hashlib.sha256(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


@pytest.mark.parametrize("name", zoo.TRAINED)
def test_a_trained_model_by_the_book(name):
    path = zoo.path(name)
    assert model_digest(path) == _by_the_book(path, folder=path.parent)


def test_external_data_belongs_to_the_digest(make_external):
    path = make_external("b.bin", "a/ü.bin")
    folder = path.parent
    before = model_digest(path)
    assert before == _by_the_book(path, folder / "b.bin", folder / "a/ü.bin", folder=folder)
    data = bytearray((folder / "b.bin").read_bytes())
    data[100] ^= 1
    (folder / "b.bin").write_bytes(data)
    assert model_digest(path) != before


def test_bytes_are_a_file_named_model(small_model, tmp_path):
    named = tmp_path / "model.onnx"
    named.write_bytes(small_model.read_bytes())
    assert digest_of_bytes(small_model.read_bytes()) == model_digest(named) != model_digest(small_model)


def test_the_example_of_the_docs(root):
    text = (root / "docs/artifact.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    scope: dict[str, str] = {}
    exec(code, scope)
    assert scope["model_digest"] == digest_of_bytes(b"abc")


def _age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_the_cache_answers_for_the_same_file(tmp_path, cache):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    _age(path, 60)
    assert file_sha256(path) == hashlib.sha256(b"first").hexdigest()
    [entry] = (cache / "hashes").iterdir()
    entry.write_text("ab" * 32)  # the next answer can only come from here
    assert file_sha256(path) == "ab" * 32
    assert fresh_sha256(path) == hashlib.sha256(b"first").hexdigest()
    path.write_bytes(b"other")  # same size, then the same modification time as before
    _age(path, 60)
    assert file_sha256(path) == hashlib.sha256(b"other").hexdigest()


def test_a_young_file_is_not_remembered(tmp_path, cache):
    path = tmp_path / "file"
    path.write_bytes(b"just now")
    assert file_sha256(path) == hashlib.sha256(b"just now").hexdigest()
    assert not (cache / "hashes").exists()


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 64, b"g" * 64])
def test_a_damaged_entry_is_not_believed(tmp_path, cache, damage):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    _age(path, 60)
    right = file_sha256(path)
    [entry] = (cache / "hashes").iterdir()
    entry.write_bytes(damage)
    assert file_sha256(path) == right


def test_without_a_cache_folder_it_hashes(tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("a file where the folder should be")
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "blocked"))
    path = tmp_path / "file"
    path.write_bytes(b"content")
    _age(path, 60)
    assert file_sha256(path) == hashlib.sha256(b"content").hexdigest()


def test_hashing_leaves_the_interpreter_to_others(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * 96)
    longest_s, is_done = 0.0, threading.Event()

    def tick():
        nonlocal longest_s
        last_s = time.perf_counter()
        while not is_done.wait(0.0005):
            now_s = time.perf_counter()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s

    ticker = threading.Thread(target=tick)
    ticker.start()
    started_s = time.perf_counter()
    fresh_sha256(path)
    taken_s = time.perf_counter() - started_s
    is_done.set()
    ticker.join()
    # Held for the whole file, the other thread would have waited that long; a busy machine gets some of it.
    assert longest_s < max(0.05, taken_s / 2)


def test_a_file_that_vanishes_is_named(make_external):
    path = make_external("w.bin")
    path.unlink()
    with pytest.raises(ModelInvalid, match=r"net\.onnx"):
        hashed_files(path)
