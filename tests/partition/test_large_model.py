"""A model of more than 2 GB, beyond what one protobuf message can hold: weights stay in files all the way."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
from tests.halves import distance, run_model, run_split
from tests.odd_models import text

N_ROWS, WIDTH = 540_000, 1024
FEEDS = {"ids": np.array([[5, 17, 4242, N_ROWS - 1]], np.int64)}
DIGEST = "ef" * 32

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def large_model(tmp_path):
    """An embedding of 2.2 GB before a small net; the file has holes, so that it is written at once."""
    rng = np.random.default_rng(0)
    body = """g (int64[B,L] ids) => (float[B,L,8] y) {
        e = Gather(table, ids) a = Tanh(e) b = MatMul(a, w) c = Exp(b) y = MatMul(c, v) }"""
    model = text(
        body,
        w=rng.standard_normal((WIDTH, 32), dtype=np.float32) / 32,
        v=rng.standard_normal((32, 8), dtype=np.float32),
    )
    table = model.graph.initializer.add(name="table", data_type=TensorProto.FLOAT, dims=[N_ROWS, WIDTH])
    table.data_location = TensorProto.EXTERNAL
    n_bytes = N_ROWS * WIDTH * 4
    for key, value in (("location", "table.bin"), ("offset", "0"), ("length", str(n_bytes))):
        table.external_data.add(key=key, value=value)
    with (tmp_path / "table.bin").open("wb") as file:
        file.truncate(n_bytes)
        for row in FEEDS["ids"][0]:
            file.seek(int(row) * WIDTH * 4)
            file.write(rng.standard_normal(WIDTH, dtype=np.float32).tobytes())
    assert n_bytes > 2**31
    onnx.save(model, tmp_path / "model.onnx")
    yield tmp_path / "model.onnx"
    shutil.rmtree(tmp_path)


def test_a_model_of_two_gigabytes_is_cut_and_the_asking_process_does_not_hold_it(large_model, tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux to read a process's highest memory use")
    if shutil.disk_usage(tmp_path).free < 6 << 30:
        pytest.skip("needs 6 GB of disk")
    cache, shape_key = tmp_path / "cache", ShapeKey.of(FEEDS)
    code = f"""
from pathlib import Path
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import prepare
shape_key = ShapeKey.parse({shape_key.text!r})
prepared = prepare(Path({str(large_model)!r}), {DIGEST!r}, shape_key, Path({str(cache)!r}), timeout_s=240)
for cut in prepared.table.interior:
    prepared.head_path(cut.id), prepared.tail_path(cut.id)
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(*peak)
"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(asked.stdout) < 500_000  # KiB

    prepared = prepare(large_model, DIGEST, shape_key, cache)
    assert (prepared.folder / "weights.bin").stat().st_size > 2**31
    assert len(prepared.table.interior) == 4  # all that five nodes have
    whole = run_model(large_model, FEEDS)
    assert float(np.abs(whole["y"]).max()) > 0.01
    for cut in prepared.table.interior:
        for path in (prepared.head_path(cut.id), prepared.tail_path(cut.id)):
            assert path.stat().st_size < 10_000
        assert distance(run_split(prepared, cut, FEEDS), whole) <= 1e-4
