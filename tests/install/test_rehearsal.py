"""Models are opened in a process of their own first: crashes, hunger and endless runs stay there."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_agent.install.golden import compare
from edge_agent.install.rehearsal import Rehearsal, chosen_variant, runs_here
from hybrid.artifact.folder import from_onnx
from hybrid.artifact.manifest import Golden, Manifest, Variant, canonical_bytes, parse
from hybrid.errors import EngineCrashed, GoldenDiffers, HybridError, ModelInvalid
from tests.install.box_lab import npy


def save(path: Path, nodes: list, shape: list[int], initialisers: list | None = None, out: int = 0) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", out or TensorProto.FLOAT, None)],
        initialisers or [],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def manifest_of(path: Path, golden: Golden | None = None) -> Manifest:
    manifest = from_onnx(path, "net", "1").manifest
    if golden is None:
        return manifest
    import hashlib

    from hybrid.artifact.manifest import FileEntry

    files = dict(manifest.files)
    for name in (*golden.inputs.values(), *golden.outputs.values()):
        data = (path.parent / name).read_bytes()
        files[name] = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    import msgspec

    return parse(canonical_bytes(msgspec.structs.replace(manifest, files=files, golden=golden)))


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    (tmp_path / "x.npy").write_bytes(npy(np.array([[-1.0, 2.0, 3.0]], np.float32)))
    (tmp_path / "y.npy").write_bytes(npy(np.array([[0.0, 2.0, 3.0]], np.float32)))
    (tmp_path / "z.npy").write_bytes(npy(np.array([[0.0, 2.0, 3.1]], np.float32)))
    return save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [1, 3])


def golden(output: str = "y.npy", tolerance: float = 1e-4) -> Golden:
    return Golden(inputs={"x": "x.npy"}, outputs={"y": output}, tolerance={"onnxruntime": tolerance})


async def play(path: Path, manifest: Manifest, **limits: float) -> None:
    await Rehearsal(**limits).play(path.parent, manifest, manifest.variants[0])  # type: ignore[arg-type]


async def test_a_sound_model_with_its_golden_outputs_passes(relu: Path) -> None:
    await play(relu, manifest_of(relu, golden()))
    await play(relu, manifest_of(relu, golden("z.npy", tolerance=0.1)))


async def test_other_golden_outputs_do_not(relu: Path) -> None:
    with pytest.raises(GoldenDiffers, match=r"differs by 0\.03"):
        await play(relu, manifest_of(relu, golden("z.npy")))


async def test_what_is_no_model_is_refused(tmp_path: Path, relu: Path) -> None:
    manifest = manifest_of(relu)
    relu.write_bytes(b"\x08\x09" + bytes(500))  # noqa: ASYNC240 (a test may wait)
    with pytest.raises(ModelInvalid):
        await play(relu, manifest)


async def test_a_model_that_eats_memory_ends_alone(tmp_path: Path) -> None:
    """120 bytes that ask for 64 GiB."""
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [1 << 34])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    path = save(tmp_path / "big.onnx", nodes, [1, 3], [shape])
    (tmp_path / "x.npy").write_bytes(npy(np.zeros((1, 3), np.float32)))
    (tmp_path / "y.npy").write_bytes(npy(np.zeros((1, 3), np.float32)))
    with pytest.raises(HybridError) as caught:
        await play(path, manifest_of(path, golden()), memory_bytes=1 << 30)
    assert caught.value.code in ("engine_failed", "engine_crashed", "model_invalid")


async def test_a_model_that_never_ends_is_ended(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Relu", ["v"], ["vo"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 3]),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vo", TensorProto.FLOAT, [1, 3]),
        ],
    )
    forever = helper.make_tensor("forever", TensorProto.INT64, [], [1 << 62])
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    node = helper.make_node("Loop", ["forever", "true", "x"], ["y"], body=body)
    path = save(tmp_path / "loop.onnx", [node], [1, 3], [forever, true])
    (tmp_path / "x.npy").write_bytes(npy(np.zeros((1, 3), np.float32)))
    (tmp_path / "y.npy").write_bytes(npy(np.zeros((1, 3), np.float32)))
    started_s = time.monotonic()
    with pytest.raises(EngineCrashed, match="not open and run"):
        await play(path, manifest_of(path, golden()), most_s=1.5)
    assert time.monotonic() - started_s < 20.0


async def test_an_engine_that_crashes_is_a_failed_version_and_no_dead_agent(
    relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGSEGV inside the engine's library: the process that opened the model ends, and it is said how."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "onnxruntime").mkdir()
    (site / "onnxruntime" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).parents[2]}")
    with pytest.raises(EngineCrashed, match="SIGSEGV"):
        await play(relu, manifest_of(relu))


def test_a_variant_that_this_machine_cannot_run_is_passed_over() -> None:
    cuda = Variant(
        id="cuda", engine="onnxruntime", precision="fp16", files=("m",), requires={"provider": "NoSuchProvider"}
    )
    plain = Variant(id="plain", engine="onnxruntime", precision="native", files=("m",))
    other = Variant(id="other", engine="abacus", precision="native", files=("m",))

    @dataclasses.dataclass
    class Some:
        variants: tuple[Variant, ...]
        name: str = "net"
        version: str = "1"
        cascade: object = None

    assert chosen_variant(Some((cuda, other, plain)), runs_here) is plain  # type: ignore[arg-type]
    with pytest.raises(ModelInvalid, match="abacus"):
        chosen_variant(Some((other,)), runs_here)  # type: ignore[arg-type]


def test_of_a_cascade_the_box_runs_the_small_one_and_golden_outputs_are_the_large_ones() -> None:
    from types import SimpleNamespace

    from edge_agent.install.golden import golden_of
    from hybrid.artifact.manifest import CascadeRule

    rule = CascadeRule(small="small", output="y", kind="logits", temperature=1.0, threshold=0.9, max_accuracy_drop=0.01)
    large, small = (
        Variant(id=name, engine="onnxruntime", precision="native", files=("m",)) for name in ("original", "small")
    )
    manifest = SimpleNamespace(variants=(large, small), cascade=rule, golden=golden(), name="net", version="1")
    assert chosen_variant(manifest, runs_here) is small
    assert golden_of(manifest, "small") is None
    assert golden_of(manifest, "original") == golden()
    manifest.cascade = None
    assert chosen_variant(manifest, runs_here) is large


@pytest.mark.parametrize(
    ("found", "wanted", "is_equal"),
    [
        (np.float32([1, 2]), np.float32([1, 2]), True),
        (np.float32([1, 2.0001]), np.float32([1, 2]), True),
        (np.float32([1, 2.1]), np.float32([1, 2]), False),
        (np.float32([np.nan, 1]), np.float32([np.nan, 1]), True),
        (np.float32([np.nan, 1]), np.float32([0, 1]), False),
        (np.float32([np.inf, 1]), np.float32([np.inf, 1]), True),
        (np.float32([0, 0]), np.float32([0, 0]), True),
        (np.float32([1e-9, 0]), np.float32([0, 0]), False),
        (np.int64([3]), np.int64([3]), True),
        (np.int64([3]), np.int64([4]), False),
        (np.float32([[1, 2]]), np.float32([1, 2]), False),
        (np.array(["a", "b"], dtype=object), np.array(["a", "b"]), True),
        (np.array(["a", "c"], dtype=object), np.array(["a", "b"]), False),
        (np.int64([1]), np.float32([1]), False),
    ],
)
def test_outputs_are_compared_by_their_largest_value(found: np.ndarray, wanted: np.ndarray, is_equal: bool) -> None:
    if is_equal:
        compare({"y": found}, {"y": wanted}, 1e-4, "net:1")
    else:
        with pytest.raises(GoldenDiffers):
            compare({"y": found}, {"y": wanted}, 1e-4, "net:1")
    with pytest.raises(GoldenDiffers, match="no output"):
        compare({}, {"y": wanted}, 1e-4, "net:1")
