"""A lighter variant of the artifact answers where a trusted calibration permits it, else the model itself."""

import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import hybrid
from hybrid.artifact.attachments import attach
from hybrid.artifact.folder import Artifact, from_onnx, write_folder
from hybrid.artifact.manifest import Variant, canonical_bytes
from hybrid.artifact.stored_zip import pack
from hybrid.calibration.calibrate import as_attachment
from hybrid.calibration.record import Calibration, Cell

FEEDS = {"x": np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)}
NOBODY = "http://127.0.0.1:9"


def deep(path: Path, n_layers: int) -> Path:
    """x FP32 [1, 512] -> y: so many products."""
    random = np.random.default_rng(n_layers)
    nodes, weights, current = [], [], "x"
    for layer in range(n_layers):
        matrix = (random.standard_normal((512, 512)) / 512**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        name = "y" if layer == n_layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [current, f"w{layer}"], [name]))
        current = name
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 512]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("deep")
    (folder / "light").mkdir()
    return deep(folder / "model.onnx", 60), deep(folder / "light" / "model.onnx", 6)


@pytest.fixture
def artifact(made: tuple[Path, Path], tmp_path: Path) -> Artifact:
    whole, light = from_onnx(made[0], "deep", "1"), from_onnx(made[1], "deep", "1")
    variants = (
        *whole.manifest.variants,
        Variant(id="light", engine="onnxruntime", precision="int8", files=("light/model.onnx",)),
        Variant(id="other", engine="tflite", precision="int8", files=("light/model.onnx",)),
        Variant(
            id="gpu", engine="onnxruntime", precision="fp16", files=("light/model.onnx",), requires={"provider": "CUDA"}
        ),
    )
    files = whole.manifest.files | {"light/model.onnx": light.manifest.files["model.onnx"]}
    manifest = msgspec.structs.replace(whole.manifest, files=files, variants=variants)
    return write_folder(
        replace(whole, manifest=manifest, manifest_bytes=canonical_bytes(manifest)), tmp_path / "artifact"
    )


def permit(artifact: Artifact, key: bytes | None, drop_high: float = 0.004) -> None:
    word = Calibration(
        model_digest=artifact.manifest.model_digest,
        variant="light",
        shape_key='{"x":[1,512]}',
        metric="agreement",
        n_samples=500,
        data_digest="d" * 64,
        cells=(Cell(cut="output", codec="none", n=500, drop=0.0, drop_low=0.0, drop_high=drop_high),),
    )
    attach(artifact.folder, as_attachment(word, key))


def answered(artifact: Artifact, wanted: str = "", **options: object) -> tuple[np.ndarray, hybrid.RunReport, list]:
    """The last answer of some runs: until the wanted variant answers, or for half a second where none is wanted."""
    chosen = hybrid.Options(**options)  # type: ignore[arg-type]
    with hybrid.InferenceSession(artifact.model_path, gateway=NOBODY, token=None, options=chosen) as session:
        until_s = time.monotonic() + (20.0 if wanted else 0.5)
        while True:
            (output,) = session.run(None, FEEDS)
            report = session.report
            assert report is not None
            if time.monotonic() > until_s or (wanted and report.variant == wanted):
                return output, report, session.explain()
            time.sleep(0.01)


def exactly(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, FEEDS)[0]


def test_a_permitted_variant_answers_and_the_report_says_so(artifact, made, own_key):
    permit(artifact, own_key)
    output, report, candidates = answered(artifact, "light")
    assert (report.placement, report.variant) == ("local", "light")
    assert np.array_equal(output, exactly(made[1]))
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    assert (chosen.variant, chosen.accuracy_drop) == ("light", 0.004)


@pytest.mark.parametrize("harm", ["nothing said", "unsigned", "too large a drop"])
def test_without_permission_the_model_itself_answers_bit_for_bit(artifact, made, own_key, harm):
    if harm != "nothing said":
        permit(artifact, None if harm == "unsigned" else own_key, drop_high=0.02)
    output, report, _ = answered(artifact)
    assert (report.placement, report.variant) == ("local", "")
    assert np.array_equal(output, exactly(made[0]))


def test_a_forced_placement_never_falls_back_to_a_variant(artifact, made, own_key):
    permit(artifact, own_key)
    output, report, _ = answered(artifact, placement="offload")
    assert (report.placement, report.variant) == ("local", "")
    assert np.array_equal(output, exactly(made[0]))


def test_a_model_that_was_pulled_by_name_asks_for_its_variants_calibrations(artifact, own_key, gateway):
    """The artifact comes without attachments; the gateway has them."""
    permit(artifact, own_key)
    gateway.push(artifact.folder, "deep")
    until_s, variant = time.monotonic() + 20, ""
    with hybrid.InferenceSession("deep", gateway=gateway.url, token=gateway.token) as session:
        while variant != "light" and time.monotonic() < until_s:
            session.run(None, FEEDS)
            assert session.report is not None
            variant = session.report.variant
            time.sleep(0.02)
    assert variant == "light"


def test_an_artifact_opens_by_its_folder_and_as_a_zip(artifact, made, tmp_path):
    bundle = tmp_path / "deep.zip"
    pack(artifact, bundle)
    wanted = onnxruntime.InferenceSession(str(made[0])).run(None, FEEDS)[0]
    for path in (artifact.folder, str(artifact.folder), bundle):
        with hybrid.InferenceSession(path, gateway=None) as session:
            np.testing.assert_array_equal(session.run(None, FEEDS)[0], wanted)
