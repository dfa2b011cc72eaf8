"""Preparation in a process of its own: found again, safe in parallel, and every fault a typed error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from hybrid.errors import (
    DiskFull,
    EngineFailed,
    ModelInvalid,
    ModelUnsupported,
    PlanError,
    StorageError,
    TensorMismatch,
    UnknownCut,
)
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import open_prepared, prepare
from tests import zoo
from tests.halves import distance, run_model, run_split
from tests.odd_models import text

DIGEST = "ab" * 32
FEEDS = {"x": np.arange(8, dtype=np.float32).reshape(1, 8) / 8}
KEY = ShapeKey.of(FEEDS)


@pytest.fixture
def model(tmp_path) -> Path:
    weight = np.random.default_rng(0).standard_normal((8, 512), dtype=np.float32)
    body = "g (float[B,8] x) => (float[B,2] y) { a = Exp(x) b = MatMul(a, w) c = Tanh(b) y = MatMul(c, v) }"
    onnx.save(text(body, w=weight, v=weight.T[:, :2].copy()), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def is_worker(process: psutil.Process) -> bool:
    try:
        return any("hybrid.partition.worker" in word for word in process.cmdline())
    except psutil.ZombieProcess:
        return False


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*"))


def test_it_is_made_once_and_found_again(model, cache):
    assert open_prepared(DIGEST, KEY, cache) is None
    made = prepare(model, DIGEST, KEY, cache)
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    again = prepare(Path("/no/such/model.onnx"), DIGEST, KEY, cache)  # not even looked at
    assert again == made == open_prepared(DIGEST, KEY, cache)
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert made.folder.parent == cache / DIGEST[:16]
    assert made.folder.name.startswith(f"{KEY.id}-")


def test_heads_and_tails_refer_to_the_one_weights_file(model, cache):
    made = prepare(model, DIGEST, KEY, cache)
    weights_bytes = (made.folder / "weights.bin").stat().st_size
    assert weights_bytes >= 8 * 512 * 4
    for cut in made.table.interior:
        for path in (made.head_path(cut.id), made.tail_path(cut.id)):
            assert path.parent == made.folder
            assert path.stat().st_size < 4096
        assert distance(run_split(made, cut, FEEDS), run_model(model, FEEDS)) <= 1e-4


def test_a_piece_is_written_in_milliseconds(cache):
    feeds = zoo.feeds("ppocr_det")
    made = prepare(zoo.path("ppocr_det"), DIGEST, ShapeKey.of(feeds), cache)
    fresh = [cut for cut in made.table.interior if cut.id not in made.table.pareto][:9]
    made.head_path(fresh[0].id)  # the first one imports onnx
    spent_s = []
    for cut in fresh[1:]:
        start_s = time.process_time()
        made.head_path(cut.id)
        spent_s.append(time.process_time() - start_s)
    assert min(spent_s) <= 0.02


def test_the_ends_of_the_table_have_one_side_only(model, cache):
    made = prepare(model, DIGEST, KEY, cache)
    first, last = made.table.cuts[0], made.table.cuts[-1]
    assert made.tail_path(first.id) == made.head_path(last.id) == made.graph_path
    with pytest.raises(PlanError, match="input cut has no head"):
        made.head_path(first.id)
    with pytest.raises(PlanError, match="output cut has no tail"):
        made.tail_path(last.id)
    with pytest.raises(UnknownCut, match="0123456789abcdef"):
        made.head_path("0123456789abcdef")


def test_the_asking_process_loads_no_graph_library(model, cache):
    code = f"""
import sys
from pathlib import Path
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import prepare
table = prepare(Path({str(model)!r}), {DIGEST!r}, ShapeKey.parse({KEY.text!r}), Path({str(cache)!r})).table
print(len(table.cuts), sorted(name for name in ("onnx", "google.protobuf", "asyncio") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[1].strip() == "[]"


def test_preparing_69_megabytes_costs_the_asking_process_next_to_nothing(cache):
    """What it does not compute cannot stall its other threads; 102 MB through protobuf would be 49 ms."""
    key = ShapeKey.of(zoo.feeds("minilm"))
    start_s = time.process_time()
    prepare(zoo.path("minilm"), DIGEST, key, cache)
    assert time.process_time() - start_s <= 0.1


def test_ids_depend_neither_on_the_path_nor_on_the_bytes_of_the_normalised_file(model, tmp_path):
    first = prepare(model, DIGEST, KEY, tmp_path / "one")
    elsewhere = tmp_path / "deep er" / "ünïcode"
    elsewhere.mkdir(parents=True)
    proto = onnx.load(model)
    proto.producer_name, proto.doc_string = "another", "another text"
    nodes = list(proto.graph.node)
    for node in nodes:
        node.doc_string = "noted"
    onnx.save(proto, elsewhere / "renamed.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    second = prepare(elsewhere / "renamed.onnx", "cd" * 32, KEY, tmp_path / "two")
    assert (first.folder / "graph.onnx").read_bytes() != (second.folder / "graph.onnx").read_bytes()
    assert second.table == first.table


def test_two_processes_prepare_the_same_thing_at_once(model, cache):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: prepare(model, DIGEST, KEY, cache), range(4)))
    assert all(one == made[0] for one in made)
    assert folders(cache) == [made[0].folder.name]  # no draft is left
    cut = made[0].table.interior[0]
    assert distance(run_split(made[0], cut, FEEDS), run_model(model, FEEDS)) <= 1e-4


def _truncate(folder: Path):
    os.truncate(folder / "weights.bin", 100)


def _flip(folder: Path):
    content = bytearray((folder / "weights.bin").read_bytes())
    content[5000] ^= 0xFF
    (folder / "weights.bin").write_bytes(content)


def _scribble(folder: Path):
    (folder / "table.json").write_bytes(b'{"format": 1, "cuts": [')


def _other_format(folder: Path):
    table = json.loads((folder / "table.json").read_bytes())
    (folder / "table.json").write_text(json.dumps(table | {"format": 999}))


def _lose(folder: Path):
    (folder / "graph.onnx").unlink()


def _empty(folder: Path):
    for path in folder.iterdir():
        path.unlink()


def _become_a_file(folder: Path):
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")


@pytest.mark.parametrize("damage", [_truncate, _flip, _scribble, _other_format, _lose, _empty, _become_a_file])
def test_a_damaged_folder_is_made_again(damage, model, cache):
    made = prepare(model, DIGEST, KEY, cache)
    damage(made.folder)
    assert open_prepared(DIGEST, KEY, cache) is None
    again = prepare(model, DIGEST, KEY, cache)
    assert again == made
    assert folders(cache) == [made.folder.name]
    for cut in again.table.interior:
        assert distance(run_split(again, cut, FEEDS), run_model(model, FEEDS)) <= 1e-4


def test_a_copied_cache_is_trusted_after_reading_it(model, cache, tmp_path):
    made = prepare(model, DIGEST, KEY, cache)
    shutil.copytree(cache, tmp_path / "copy")  # other inodes
    copied = open_prepared(DIGEST, KEY, tmp_path / "copy")
    assert copied is not None
    assert copied.table == made.table


def test_it_ends_when_its_time_is_up_and_leaves_nothing(cache):
    name = "bvlc_alexnet"  # seconds of work
    with pytest.raises(PlanError, match=r"not prepared within 0\.2 s") as caught:
        prepare(zoo.path(name), DIGEST, ShapeKey.of(zoo.feeds(name)), cache, timeout_s=0.2)
    assert caught.value.fields["path"] == str(zoo.path(name))
    assert folders(cache) == []
    assert not [child for child in psutil.Process().children() if is_worker(child)]


def test_the_worker_ends_with_the_process_that_asked(cache):
    name = "vgg19"  # many seconds of work
    code = f"""
from pathlib import Path
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
shape_key = ShapeKey.parse({ShapeKey.of(zoo.feeds(name)).text!r})
prepare(Path({str(zoo.path(name))!r}), {DIGEST!r}, shape_key, Path({str(cache)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as asking:
        deadline_s = time.monotonic() + 60
        while not (workers := psutil.Process(asking.pid).children()) or not folders(cache):
            assert time.monotonic() < deadline_s
        while not is_worker(workers[0]):
            assert time.monotonic() < deadline_s
        asking.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_an_abandoned_draft_is_swept_away(model, cache):
    draft = cache / DIGEST[:16] / ".draft-killed"
    draft.mkdir(parents=True)
    (draft / "weights.bin").write_bytes(b"x")
    made = prepare(model, DIGEST, KEY, cache)
    assert draft.exists()  # it may be someone's work
    long_ago_s = time.time() - 7200
    os.utime(draft, (long_ago_s, long_ago_s))
    (made.folder / "table.json").unlink()
    prepare(model, DIGEST, KEY, cache)
    assert not draft.exists()


def test_a_crash_of_the_worker_is_a_typed_error(model, cache, monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (cache.parent / "sitecustomize.py").write_text(crash)
    monkeypatch.setenv("PYTHONPATH", str(cache.parent))
    with pytest.raises(EngineFailed, match=f"signal {int(signal.SIGKILL)}"):
        prepare(model, DIGEST, KEY, cache)
    assert folders(cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_a_full_disk_is_said_and_leaves_nothing(model, cache):
    """A file cannot grow beyond 4 KiB, as on a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DiskFull, match="make room"):
            prepare(model, DIGEST, KEY, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folders(cache) == []
    assert prepare(model, DIGEST, KEY, cache).table.interior


def test_room_is_looked_for_before_anything_is_written(model, cache, tmp_path):
    """A real file system of 64 KiB, where an ordinary user may make one."""
    code = f"""
import sys
from pathlib import Path
from hybrid.errors import DiskFull
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
try:
    prepare(Path({str(zoo.path("ppocr_cls"))!r}), {DIGEST!r}, ShapeKey.of({{}}), Path("SMALL"))
except DiskFull as exc:
    print(exc.fields["wanted_bytes"], [path.name for path in Path("SMALL").glob("*/*")])
"""
    small = tmp_path / "small"
    small.mkdir()
    unshare = ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no rights to make a file system here")
    script = tmp_path / "ask.py"
    script.write_text(code.replace("SMALL", str(small)))
    done = subprocess.run(
        [*unshare, "sh", "-c", f"mount -t tmpfs -o size=64k none {small} && exec {sys.executable} {script}"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.stdout.strip() == f"{zoo.path('ppocr_cls').stat().st_size} []"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_said(model, cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(StorageError, match="check the folder's owner and rights"):
        prepare(model, DIGEST, KEY, cache)


def test_a_cache_that_is_a_file_is_said(model, cache):
    cache.write_bytes(b"")
    with pytest.raises(StorageError):
        prepare(model, DIGEST, KEY, cache)


def test_errors_of_the_worker_keep_their_type_and_facts(cache, tmp_path):
    missing = tmp_path / "missing.onnx"
    with pytest.raises(ModelInvalid, match="no such file") as caught:
        prepare(missing, DIGEST, KEY, cache)
    assert caught.value.fields["path"] == str(missing)
    unknown = tmp_path / "unknown.onnx"
    onnx.save(text("g (float[B,8] x) => (float[B,8] y) { a = Exp(x) y = ai.onnx.ml.Frobnicate(a) }"), unknown)
    with pytest.raises(ModelUnsupported, match="Frobnicate") as refused:
        prepare(unknown, DIGEST, KEY, cache)
    assert refused.value.fields == {"path": str(unknown), "operator": "Frobnicate"}
    with pytest.raises(TensorMismatch, match="'x'"):
        prepare(zoo.path("ppocr_det"), DIGEST, ShapeKey((("x", (1, 4, 64, 64)),)), cache)
    assert folders(cache) == []


def test_the_worker_is_found_from_any_folder_and_takes_no_module_from_it(model, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnx.py").write_text("raise SystemExit('a module of a stranger')")
    made = prepare(Path("model.onnx"), DIGEST, KEY, Path("cache"))
    assert made.head_path(made.table.interior[0].id).exists()
