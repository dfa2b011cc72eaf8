"""With a training script: pruned, distilled, rounded models and students; the same again gives the same."""

from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("operators_once")]

from compression.errors import InvalidTrainingSet, NotTrainable  # noqa: E402
from compression.training.fit_recipe import FitRecipe  # noqa: E402
from compression.training.head_graphs import stand_of  # noqa: E402
from compression.training.heads import unpacked  # noqa: E402
from compression.training.script import load_script  # noqa: E402
from hybrid.artifact.folder import open_folder, verify  # noqa: E402
from hybrid.compress import Job, compress  # noqa: E402
from hybrid.compress.journal import Journal  # noqa: E402
from hybrid.compress.making.counterpart import counterpart  # noqa: E402
from hybrid.compress.making.maker import Maker  # noqa: E402
from hybrid.compress.making.recipe import Recipe  # noqa: E402
from hybrid.compress.making.trained import Trainer, digest, matched  # noqa: E402
from hybrid.compress.material import gathered  # noqa: E402
from hybrid.compress.uncompressed import base_of  # noqa: E402
from hybrid.errors import DataUnfit  # noqa: E402
from tests.compress.conftest import MAX_DROP, N  # noqa: E402

SCRIPT = """
import torch
from compression.training.training_set import TrainingSet
from tests.compress import nets

def net(width):
    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(1, width, 3, padding=1), layers.BatchNorm2d(width), layers.ReLU(),
        layers.Conv2d(width, 2 * width, 3, padding=1), layers.BatchNorm2d(2 * width), layers.ReLU(),
        layers.MaxPool2d(4), layers.Flatten(), layers.Linear(18 * width, nets.N_CLASSES),
    )

def training(seed=SEED):
    x, labels = nets.samples(480, seed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = net(16)
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for start in [*range(0, 480, 48)] * 2:
            scores = module(torch.from_numpy(x[start : start + 48]))
            loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[start : start + 48]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print("what a script prints is nobody's result")
    return TrainingSet(module=module.eval(), inputs={"x": x}, labels=labels, student=lambda: net(4))
"""


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT.replace("SEED", "11"))
    return f"{path}:training"


@pytest.fixture(scope="module")
def begun(script, data, tmp_path_factory):
    """The script's training set, its module as the uncompressed model, and the samples: what every test begins with."""
    folder = tmp_path_factory.mktemp("begun")
    training = load_script(script)
    job = Job(
        model=None, data=data / "x.npz", labels=data / "y.npy", out=folder / "out", max_drop=MAX_DROP,
        train_script=script,
    )  # fmt: skip
    base = base_of(job, folder, training)
    material = gathered(job, base.path)
    outputs = [spec.name for spec in material.outputs]
    return matched(training, base.path, ["x"], outputs, is_its_own=True), base.path, material


@pytest.fixture
def maker(begun, tmp_path):
    """Makes models of the script's module."""
    training, path, material = begun
    with Journal(tmp_path / "work", [digest(training)]) as journal:
        trainer = Trainer(training_set=training, journal=journal, seed=0, left_s=lambda: 60.0)
        yield Maker(path=path, material=material, journal=journal, trainer=trainer)


def test_a_pruned_model_that_was_trained_is_smaller_and_learns_its_task(maker):
    from hybrid.compress.grading import graded

    head = stand_of(onnx.load(maker.path)).tensor
    maker = replace(maker, head=head, module_head=head)
    untrained = Recipe(pruned="module", ratio=0.5, multiple=8)
    trained = msgspec.structs.replace(untrained, epochs=2)
    part = maker.material.parts.judge
    grades = [graded(maker.model(recipe)[0], maker.material, part) for recipe in (untrained, trained)]
    assert grades[1].drop < grades[0].drop
    assert maker.model(trained)[0].stat().st_size < 0.6 * maker.path.stat().st_size
    assert "trained" in " ".join(maker.model(trained)[1].notes)
    assert maker.model(trained)[1].feature_tensor == maker.head, "a head of its own, of fewer channels"
    assert maker.model(trained)[0].with_name("head.bin").is_file()
    assert maker.model(untrained)[0].stat().st_size == pytest.approx(maker.model(trained)[0].stat().st_size, rel=0.02)


def test_a_head_is_found_again_in_the_modules_export_where_its_model_names_tensors_otherwise(maker, tmp_path):
    """Its model was written by another exporter; by the numbers that it holds the tensor is the same."""
    model = onnx.load(maker.path)
    theirs = stand_of(model).tensor
    made = {name for node in model.graph.node for name in node.output} - {one.name for one in model.graph.output}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"other/{name}" if name in made else name for name in names]
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "other.onnx")
    whole, feeds = maker.trainer.whole(), maker.material.feeds[0]
    assert counterpart(tmp_path / "other.onnx", f"other/{theirs}", whole, feeds) == theirs
    strange = {"x": feeds["x"] + 1}
    assert counterpart(tmp_path / "other.onnx", f"other/{theirs}", whole, strange) == theirs
    maker = replace(maker, path=tmp_path / "other.onnx", head=f"other/{theirs}", module_head=theirs)
    found = maker.model(Recipe(pruned="module", ratio=0.5, multiple=8, epochs=1, precision="int8"))
    assert found[1].feature_tensor == theirs
    assert found[0].with_name("head.bin").is_file()
    for one in whole.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT:
            one.raw_data = bytes(len(one.raw_data))
    assert counterpart(tmp_path / "other.onnx", f"other/{theirs}", whole, feeds) == ""


def test_the_same_recipe_and_seed_give_the_same_bytes(maker, tmp_path):
    recipe = Recipe(pruned="module", ratio=0.5, multiple=8, epochs=1, precision="int8")
    with Journal(tmp_path / "other", []) as journal:
        other = replace(maker, journal=journal, trainer=replace(maker.trainer, journal=journal))
        assert other.model(recipe)[0].read_bytes() == maker.model(recipe)[0].read_bytes()


@pytest.mark.parametrize("way", ["qat", "adaround"])
def test_rounding_is_trained_and_ends_in_int8(maker, way, monkeypatch):
    """Also by a budget that leaves it a second, and with a head that stays float in a file of its own."""
    from hybrid.compress.grading import graded

    monkeypatch.setattr("hybrid.compress.making.trained.LEAST_S", 1.0)
    head = stand_of(onnx.load(maker.path)).tensor
    maker = replace(maker, trainer=replace(maker.trainer, left_s=lambda: 1.0), head=head, module_head=head)
    path, made = maker.model(Recipe(precision="int8", trained_int8=way, epochs=2))
    assert made.n_int8 >= 2
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    assert made.feature_tensor == head
    assert len(unpacked(onnx.load(path, load_external_data=False), path.with_name("head.bin").read_bytes())) == 2
    assert graded(path, maker.material, maker.material.parts.judge).drop < 0.1


def test_a_student_is_the_scripts_own(maker):
    path, _ = maker.model(Recipe(source="student", epochs=2))
    assert path.stat().st_size < 0.4 * maker.path.stat().st_size


@pytest.mark.slow
def test_a_job_without_a_model_takes_the_scripts_and_ships_a_trained_one(job, script, by_size, monkeypatch):
    monkeypatch.setattr("hybrid.compress.search.space.prunings", lambda _bench: (Recipe(pruned="module"),))
    monkeypatch.setattr("hybrid.compress.run.staircase_of", _stairs)
    monkeypatch.setattr("hybrid.compress.search.ratios.N_RATIOS", 2)
    monkeypatch.setattr("hybrid.compress.search.next_step._student", lambda _space, _done: None)
    monkeypatch.setattr("hybrid.compress.search.space.engines", lambda _bench: ())
    result = compress(replace(job, model=None, train_script=script, epochs=2), timer=by_size)
    assert result.artifact is not None
    verify(open_folder(job.out))
    assert result.artifact.manifest.name == "training"
    first = result.report.candidates[0]
    assert (first.recipe.pruned, first.recipe.precision) == ("module", "int8")
    assert first.recipe.epochs > 0
    assert first.bytes_ratio is not None
    assert first.bytes_ratio < 0.3
    assert result.report.staircase == {"64": 1.0}


def _stairs(_bench, _int8=None):
    from hybrid.compress.search.staircase import Stairs

    return Stairs(multiple=8, clear=True, seconds={64: 1.0})


def test_samples_that_it_was_trained_on_cannot_judge(job, tmp_path, by_size):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.replace("SEED", "1").replace("480", str(N)))
    with pytest.raises(DataUnfit, match="are among the training script's inputs"):
        compress(replace(job, model=None, train_script=f"{path}:training"), timer=by_size)


def test_a_script_of_another_model_is_refused_by_name(job, script, net, by_size):
    with pytest.raises(InvalidTrainingSet, match=r"answers otherwise than net\.onnx"):
        compress(replace(job, train_script=script), timer=by_size)


def test_a_script_of_inputs_of_other_shapes_is_refused_by_shape(begun):
    found, path, _ = begun
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    other = replace(found, module=module.eval(), inputs={"x": np.zeros((480, 1, 20, 20), np.float32)}, student=None)
    with pytest.raises(InvalidTrainingSet, match=r"the script's 'x' is 1x1x20x20, the model wants \S*1x12x12"):
        matched(other, path, ["x"], found.output_names)


def test_what_a_script_prints_is_no_part_of_the_commands_result(hybrid_here, script, data, tmp_path, monkeypatch):
    words = ["compress", "--train-script", script, "--data", str(data / "x.npz"), "--labels", str(data / "y.npy")]
    done = hybrid_here(*words, "--out", "small", "--max-drop", "0.0001", "--json")
    assert done.stdout.startswith('{"ok":false')
    assert "nobody's result" in done.stderr


def test_rounding_is_trained_as_it_was_measured(maker, monkeypatch):
    """The settings of docs/training.md's figures, for half of the epochs of a fine-tuning."""
    from compression.training import quantization_aware as room

    seen: list[FitRecipe] = []

    def caught(*_: object, recipe: FitRecipe, **_more: object) -> None:
        seen.append(recipe)
        raise NotTrainable("seen")

    monkeypatch.setattr(room, "quantization_aware", caught)
    with pytest.raises(NotTrainable):
        maker.model(Recipe(precision="int8", trained_int8="qat", epochs=12))
    [recipe] = seen
    assert (recipe.learning_rate, recipe.rise_ratio, recipe.weight_decay, recipe.epochs) == (2e-3, 0.1, 0.0, 6)


@pytest.mark.litert
@pytest.mark.filterwarnings("ignore")
def test_a_tensorflow_lite_variant_has_the_originals_head(maker, tmp_path):
    """Its body alone becomes such a file, here in 8 bits; head and file names are as a variant has them."""
    pytest.importorskip("litert_torch", exc_type=ImportError)
    from hybrid.artifact.trainable import separated
    from hybrid.calibration.trial import opened
    from hybrid.compress.across import faults, refusals
    from hybrid.federated.learning.body import Body
    from hybrid.federated.learning.head import read_head

    apart = separated(maker.path, "auto", tmp_path / "apart")
    maker = replace(maker, path=apart.path, head=apart.feature_tensor, module_head=apart.feature_tensor)
    path, made = maker.model(Recipe(engine="tflite", precision="int8"))
    assert made.feature_tensor == apart.feature_tensor
    assert made.notes == ()
    assert {file.name for file in path.parent.iterdir()} >= {"body.tflite", "head.bin", "model.onnx"}
    assert path.with_name("head.bin").read_bytes() == apart.path.with_name("head.bin").read_bytes()
    feeds = maker.material.feeds[:8]
    lite, whole = opened(path), opened(apart.path)
    found, wanted = ([one.run(None, each)[0] for each in feeds] for one in (lite, whole))
    assert [port.name for port in lite.get_outputs()] == [port.name for port in whole.get_outputs()]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), atol=0.05 * np.abs(wanted).max())
    assert not faults(path, feeds, tolerance=0.01)
    assert not refusals(path)
    head = read_head(path, made.feature_tensor, {"head.bin": apart.n_bytes})
    features = Body(head).features(feeds[0])
    np.testing.assert_allclose(head.program.answer(head.arrays, features), found[0], atol=1e-5)
    strange = replace(maker, head="x", path=apart.path)
    told = strange._lite_float(Recipe(), apart.path, "x")[0]
    assert told.feature_tensor == ""
    assert "cannot learn in TensorFlow Lite" in told.notes[0]
