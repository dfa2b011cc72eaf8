"""Codecs tried on real models: what loses nothing is said to, what loses much is said to, and budgets are kept."""

import itertools
import json

import msgspec
import numpy as np
import pytest
from PIL import Image

from compression.codecs import catalog
from hybrid.artifact.attachments import attachments_in
from hybrid.artifact.digest import model_digest
from hybrid.artifact.folder import from_onnx, open_folder, write_folder
from hybrid.artifact.manifest import Manifest, Variant, canonical_bytes
from hybrid.artifact.publishers import own_key_path
from hybrid.calibration.calibrate import Wish, calibrate, calibrate_variant, signature_of
from hybrid.calibration.intervals import wilson
from hybrid.calibration.judge import judge_for, top_1
from hybrid.calibration.permits import CalibrationFinder
from hybrid.calibration.record import parse_calibration
from hybrid.calibration.samples import open_samples
from hybrid.calibration.trial import Watch
from hybrid.errors import BadMessage, EngineFailed, ExitCode, TensorMismatch, UnknownCut
from tests import small_models, zoo

CODECS = ("none", "lossless", "fp16", "q8", "q8z", "q4", "q4z")


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Sixty lines and patches of photos as the angle classifier wants them, half of them upside down."""
    rng = np.random.default_rng(0)
    photos = [np.asarray(Image.open(zoo.photo(name)).convert("RGB")) for name in ("page.png", "text.png", "coffee.png")]
    found = []
    for number in range(60):
        photo = photos[number % 3]
        height = int(rng.integers(30, 80))
        top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - 4 * height)
        patch = Image.fromarray(photo[top : top + height, left : left + 4 * height]).resize((192, 48))
        patch = patch.rotate(180) if number % 2 else patch
        found.append((np.asarray(patch, np.float32) / 127.5 - 1).transpose(2, 0, 1))
    path = tmp_path_factory.mktemp("crops") / "crops.npz"
    np.savez(path, x=np.stack(found))
    return path


def measured(name, data, tmp_path, labels=None, watch=None, **wish):
    path = zoo.path(name)
    wish = Wish(**({"codecs": CODECS, "budget_s": 60.0} | wish))
    samples = open_samples(data, signature_of(path)[0])
    return calibrate(
        path, model_digest(path), samples, wish, cache=tmp_path.parent / "graphs-of-all", labels=labels, watch=watch
    )


@pytest.fixture(scope="module")
def classifier(crops, tmp_path_factory):
    return measured("ppocr_cls", crops, tmp_path_factory.mktemp("cls"), n_samples=30)


def test_every_codec_at_every_cut_has_a_cell(classifier):
    table = {(cell.cut, cell.codec): cell for cell in classifier.cells}
    cuts = {cell.cut for cell in classifier.cells}
    assert "" in cuts
    assert len(cuts) >= 4
    assert (classifier.metric, classifier.n_samples) == ("agreement", 30)
    for cut in cuts:
        assert {codec for at, codec in table if at == cut} >= {"none", "lossless", "fp16"}
    assert parse_calibration(classifier.content) == classifier


def test_lossless_codecs_lose_nothing_and_need_no_interval(classifier):
    exact = [cell for cell in classifier.cells if not catalog.get(cell.codec).lossy]
    assert {cell.codec for cell in exact} == {"none", "lossless"}
    assert all((cell.is_lossy, cell.drop, cell.drop_high, cell.sqnr_db) == (False, 0.0, 0.0, None) for cell in exact)


def test_lossy_codecs_end_their_interval_where_wilson_says(classifier):
    lossy = [cell for cell in classifier.cells if cell.is_lossy]
    assert lossy
    for cell in lossy:
        assert (cell.drop_low, cell.drop_high) == pytest.approx(wilson(round(cell.drop * cell.n), cell.n))
        assert cell.drop_high > 0


def test_coarser_codecs_are_noisier_and_lighter(classifier):
    table = {(cell.cut, cell.codec): cell for cell in classifier.cells}
    for cut in {cell.cut for cell in classifier.cells if cell.raw_bytes > 4096}:
        half, eighth, fourth = (table[cut, codec] for codec in ("fp16", "q8", "q4"))
        assert half.sqnr_db > eighth.sqnr_db > fourth.sqnr_db
        assert half.n_bytes > eighth.n_bytes > fourth.n_bytes
        assert table[cut, "none"].n_bytes == half.raw_bytes
        assert half.drop_high <= fourth.drop_high


def test_with_and_without_entropy_stage_the_values_are_the_same(classifier):
    table = {(cell.cut, cell.codec): cell for cell in classifier.cells}
    for cut, codec in [place for place in table if place[1] in ("q8", "q4")]:
        assert (table[cut, codec].drop, table[cut, codec].sqnr_db) == (
            table[cut, f"{codec}z"].drop,
            table[cut, f"{codec}z"].sqnr_db,
        )


def test_labels_make_it_a_drop_in_accuracy(crops, classifier, tmp_path):
    """Labels that are the model's own answers, some of them turned: the baseline is what was left alone."""
    path = zoo.path("ppocr_cls")
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    stack = np.load(crops)["x"]
    labels = [top_1(session.run(None, {"x": image[None]})[0]) for image in stack]
    labels[:6] = [1 - label for label in labels[:6]]
    found = measured("ppocr_cls", crops, tmp_path, labels=labels, codecs=("fp16", "q4"), cuts=("input",))
    assert (found.metric, found.baseline) == ("accuracy", pytest.approx(54 / 60))
    assert [cell.codec for cell in found.cells] == ["fp16", "q4"]
    assert all(-1 <= cell.drop_low <= cell.drop <= cell.drop_high for cell in found.cells)
    assert found.data_digest != classifier.data_digest


def test_outputs_that_are_no_classes_are_compared_by_distance(tmp_path):
    rng = np.random.default_rng(0)
    photo = Image.open(zoo.photo("page.png")).convert("RGB")
    pieces = [photo.crop((x, 0, x + 96, 96)).resize((96, 64)) for x in rng.integers(0, 200, 12)]
    stack = np.stack([(np.asarray(piece, np.float32) / 127.5 - 1).transpose(2, 0, 1) for piece in pieces])
    np.savez(tmp_path / "x.npz", x=stack)
    found = measured("ppocr_det", tmp_path / "x.npz", tmp_path, codecs=("fp16", "q4"), cuts=("input",), tolerance=0.05)
    assert (found.metric, found.tolerance) == ("fidelity", 0.05)
    half, fourth = found.cells
    assert half.drop == 0.0
    assert fourth.drop > 0.5


def test_a_state_that_goes_round_counts_too(tmp_path):
    """Silero's second output is the state of the next request: it is not forgotten for the first one's sake."""
    feeds = [zoo.feeds("silero", seed=seed) for seed in range(8)]
    np.savez(
        tmp_path / "v.npz",
        input=np.stack([f["input"] for f in feeds]),
        state=np.stack([f["state"] for f in feeds]),
        sr=feeds[0]["sr"],
    )
    found = measured("silero", tmp_path / "v.npz", tmp_path, codecs=("fp16",), cuts=("input",))
    assert (found.metric, found.output) == ("fidelity", "")
    assert found.cells[0].drop == 0.0


def test_a_budget_that_ends_early_leaves_fewer_samples_for_all_codecs_alike(crops, tmp_path):
    """On a clock that goes on by 20 ms at each look, so that it is the same on every machine."""
    ticks = itertools.count()
    watch = Watch(now_s=lambda: 0.02 * next(ticks))
    found = measured("ppocr_cls", crops, tmp_path, watch=watch, codecs=("fp16", "q4"), budget_s=3.0)
    assert 0.02 * next(ticks) == pytest.approx(3.0, rel=0.2)
    counts = {cut: {cell.n for cell in found.cells if cell.cut == cut} for cut in {cell.cut for cell in found.cells}}
    assert all(len(alike) == 1 for alike in counts.values())
    assert all(1 <= min(alike) < found.n_samples for alike in counts.values())
    assert found.n_samples < 60  # a third of the budget went into the answers to compare with


def test_fewer_samples_are_a_seeded_choice(crops, tmp_path):
    wish = {"codecs": ("fp16",), "cuts": ("input",), "n_samples": 10}
    first, again = (measured("ppocr_cls", crops, tmp_path, **wish, seed=1) for _ in range(2))
    other = measured("ppocr_cls", crops, tmp_path, **wish, seed=2)
    assert first.n_samples == 10
    assert first.data_digest == again.data_digest != other.data_digest


def test_what_cannot_be_calibrated_is_said(crops, tmp_path):
    with pytest.raises(UnknownCut, match="hybrid plan"):
        measured("ppocr_cls", crops, tmp_path, cuts=("0123456789abcdef",))
    with pytest.raises(TensorMismatch, match="no output 'z'"):
        measured("ppocr_cls", crops, tmp_path, output="z")
    for number, width in enumerate((192, 200)):
        np.savez(tmp_path / f"{number}.npz", x=np.zeros((1, 3, 48, width), np.float32))
    with pytest.raises(TensorMismatch, match="calibrate each shape for itself"):
        measured("ppocr_cls", tmp_path, tmp_path)


def test_class_scores_are_wanted_where_classes_are_compared():
    from compression.tensor import TensorSpec

    outputs = [TensorSpec(name="map", dtype="FP32", shape=(1, 4, 4)), TensorSpec(name="s", dtype="FP32", shape=(1, 5))]
    first = {"map": np.zeros((1, 4, 4), np.float32), "s": np.zeros((1, 5), np.float32)}
    assert judge_for(outputs, first).metric == "fidelity"
    assert judge_for(outputs, first, output="s").metric == "agreement"
    assert judge_for(outputs, first, metric="agreement").outputs == ("s",)
    with pytest.raises(TensorMismatch, match="'map'"):
        judge_for(outputs, first, metric="agreement", output="map")
    with pytest.raises(TensorMismatch, match="needs labels"):
        judge_for(outputs, first, metric="accuracy")


def test_scores_that_are_no_numbers_agree_with_nothing():
    assert top_1(np.array([0.1, np.nan], np.float32)) == -1


@pytest.fixture
def with_variant(tmp_path):
    """An artifact whose second variant is another model: one that was trained otherwise, so to speak."""
    small_models.mlp(tmp_path / "mlp.onnx")
    (tmp_path / "small").mkdir()
    small_models.mlp(tmp_path / "small" / "mlp.onnx", seed=1)
    bare, other = from_onnx(tmp_path / "mlp.onnx", "mlp", "1"), from_onnx(tmp_path / "small" / "mlp.onnx", "mlp", "1")
    manifest: Manifest = msgspec.structs.replace(
        bare.manifest,
        files=bare.manifest.files | {"small/mlp.onnx": other.manifest.files["mlp.onnx"]},
        variants=(
            *bare.manifest.variants,
            Variant(id="small", engine="onnxruntime", precision="int8", files=("small/mlp.onnx",)),
        ),
    )
    from dataclasses import replace

    whole = replace(bare, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    return write_folder(whole, tmp_path / "artifact")


def test_a_local_variant_is_measured_as_a_whole(with_variant, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32))
    samples = open_samples(tmp_path / "x.npz", signature_of(with_variant.model_path)[0])
    found = calibrate_variant(
        with_variant.model_path,
        with_variant.path_of("small/mlp.onnx"),
        with_variant.manifest.model_digest,
        samples,
        Wish(codecs=("none",)),
        variant="small",
    )
    assert (found.variant, found.cells[0].cut, found.cells[0].n) == ("small", "output", 40)
    assert found.cells[0].drop > 0.5


def test_the_command_measures_signs_and_keeps(with_variant, tmp_path, hybrid_here):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32))
    settings = {"HYBRID_CONFIG": str(tmp_path / "config"), "HYBRID_CACHE": str(tmp_path / "cache")}
    words = ["calibrate", str(with_variant.folder), "--data", str(tmp_path / "x.npz"), "--codecs", "fp16,q8"]
    done = hybrid_here(*words, "--sign", "own", "--json", **settings)
    assert done.returncode == ExitCode.OK, done.stderr
    told = json.loads(done.stdout)["data"]
    assert [known["variant"] for known in told["calibrations"]] == ["original", "small"]
    digest = with_variant.manifest.model_digest
    kept = attachments_in(with_variant.folder, digest, "calibration")
    assert {attachment.variant for attachment in kept} == {"original", "small"}
    assert {attachment.signature.key_id for attachment in kept} == {told["signed_by"]}
    assert open_folder(with_variant.folder).digest == with_variant.digest
    finder = CalibrationFinder(with_variant.model_path, digest)
    assert finder.look()
    shape_key = told["calibrations"][0]["shape_key"]
    assert set(finder.codecs(shape_key, "")) >= {"fp16", "q8"}
    assert own_key_path().exists()
    plain = hybrid_here(*words, **settings)
    assert plain.returncode == ExitCode.OK
    assert plain.stdout.splitlines()[0].split()[:3] == ["cut", "codec", "bytes"]
    assert "not signed: sessions will not use it" in plain.stderr
    assert "40 samples cannot show a drop below 8.8%" in plain.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--codecs", "telepathy"], "unknown_codec", "telepathy"),
        (["--sign", "/nowhere.key"], "not_found", "hybrid keys create"),
        (["--labels", "/nowhere.csv"], "not_found", "nowhere.csv"),
    ],
)
def test_the_command_says_what_is_wrong(words, code, said, tmp_path, hybrid_here):
    model = small_models.mlp(tmp_path / "mlp.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 64), np.float32))
    done = hybrid_here("calibrate", str(model), "--data", str(tmp_path / "x.npz"), "--json", *words)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert said in error["what"]


def test_keys_by_command(tmp_path, hybrid_here):
    settings = {"HYBRID_CONFIG": str(tmp_path / "config")}
    made = hybrid_here("keys", "new", **settings)
    assert made.returncode == ExitCode.OK, made.stderr
    public_key = made.stdout.split()[0]
    assert hybrid_here("keys", "show", **settings).stdout.strip() == public_key
    again = hybrid_here("keys", "new", "--json", **settings)
    assert json.loads(again.stdout)["error"]["code"] == "conflict"
    other = hybrid_here("keys", "new", str(tmp_path / "team.key"), **settings).stdout.split()[0]
    assert hybrid_here("keys", "trust", other, "--name", "team", **settings).returncode == ExitCode.OK
    listed = json.loads(hybrid_here("keys", "ls", "--json", **settings).stdout)["data"]["publishers"]
    assert {row["public_key"] for row in listed} == {public_key, other}
    assert hybrid_here("keys", "trust", "zz", **settings).returncode != ExitCode.OK


def test_no_sample_is_said(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 3, 48, 192), np.float32))
    with pytest.raises(BadMessage, match="holds no sample"):
        measured("ppocr_cls", tmp_path / "x.npz", tmp_path)


def test_a_sample_that_the_model_does_not_take_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 4, 48, 192), np.float32))
    with pytest.raises(EngineFailed, match="sample 0"):
        measured("ppocr_cls", tmp_path / "x.npz", tmp_path)
