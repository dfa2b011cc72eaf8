"""Bottlenecks of principal components: exact where all of them are kept, short where the tensor allows it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compression.bottleneck.graph import Crossing, with_batch
from compression.bottleneck.linear import LinearBottleneck, components, linear_bottleneck
from compression.bottleneck.prior import Prior
from compression.errors import NotQuantizable, NotTrainable
from tests.bottleneck.making import make_split

SHAPES = [(1, 12), (3, 7, 12), (1, 6, 9, 10)]


def low_rank(shape: tuple[int, ...], n: int, seed: int = 0) -> list[np.ndarray]:
    """Tensors whose channels are mixtures of three."""
    rng = np.random.default_rng(seed)
    axis = 2 if len(shape) == 3 else 1
    few = tuple(3 if at == axis else size for at, size in enumerate(shape))
    mixing = rng.standard_normal((3, shape[axis]))
    made = [np.moveaxis(np.moveaxis(rng.standard_normal(few), axis, -1) @ mixing, -1, axis) + 5 for _ in range(n)]
    return [one.astype(np.float32) for one in made]


def there_and_back(made: LinearBottleneck, crossing: Crossing, value: np.ndarray) -> tuple[np.ndarray, bytes]:
    encoder = onnxruntime.InferenceSession(made.encoder.SerializeToString())
    decoder = onnxruntime.InferenceSession(made.decoder.SerializeToString())
    (latent,) = encoder.run(None, {crossing.name: value})
    payload = made.prior.encode(latent)
    (back,) = decoder.run(None, {"latent": made.prior.decode(payload, latent.shape)})
    return back, payload


@pytest.mark.parametrize("shape", SHAPES)
def test_what_has_few_directions_survives(shape: tuple[int, ...]) -> None:
    crossing = Crossing(name="cut", shape=shape)
    samples = low_rank(shape, 40)
    made = linear_bottleneck(crossing, samples, channels=3, levels=100)
    back, payload = there_and_back(made, crossing, samples[0])
    assert back.shape == shape
    assert ((back - samples[0]) ** 2).mean() < 0.01 * samples[0].var()
    assert len(payload) < samples[0].nbytes / 4


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_patches_of_any_size(stride: int) -> None:
    """Height and width that no stride divides come back as they were."""
    crossing = Crossing(name="cut", shape=(1, 6, 9, 10))
    rng = np.random.default_rng(0)
    flat = [np.broadcast_to(rng.standard_normal((1, 6, 1, 1)), crossing.shape).astype(np.float32) for _ in range(30)]
    made = linear_bottleneck(crossing, flat, channels=6, stride=stride, levels=200)
    back, payload = there_and_back(made, crossing, flat[0])
    inside = np.s_[:, :, : 9 // stride * stride, : 10 // stride * stride]
    assert back.shape == crossing.shape
    assert np.abs(back - flat[0])[inside].max() < 0.2
    assert len(payload) < 120


def test_the_encoder_rounds_as_its_tables_were_made() -> None:
    crossing = Crossing(name="cut", shape=(1, 6, 9, 10))
    samples = low_rank(crossing.shape, 20)
    made = linear_bottleneck(crossing, samples, channels=3, levels=50)
    session = onnxruntime.InferenceSession(made.encoder.SerializeToString())
    latent = np.concatenate([session.run(None, {"cut": one})[0] for one in samples])
    assert made.prior.bits(latent) < 1.01 * Prior.fitted(latent).bits(latent)


def test_equal_samples_give_equal_bottlenecks() -> None:
    crossing = Crossing(name="cut", shape=(1, 6, 9, 10))
    first, second = (linear_bottleneck(crossing, low_rank(crossing.shape, 10), channels=3) for _ in range(2))
    assert first.encoder.SerializeToString() == second.encoder.SerializeToString()
    assert first.decoder.SerializeToString() == second.decoder.SerializeToString()
    assert first.prior.to_json() == second.prior.to_json()


def test_a_batch_of_any_size() -> None:
    crossing = Crossing(name="cut", shape=(1, 6, 9, 10))
    samples = low_rank(crossing.shape, 10)
    made = linear_bottleneck(crossing, samples, channels=3)
    free = onnxruntime.InferenceSession(with_batch(made.encoder, "n").SerializeToString())
    (latent,) = free.run(None, {"cut": np.concatenate(samples)})
    fixed = onnxruntime.InferenceSession(with_batch(made.encoder, 10).SerializeToString())
    np.testing.assert_array_equal(latent, fixed.run(None, {"cut": np.concatenate(samples)})[0])
    free = onnxruntime.InferenceSession(with_batch(made.decoder, "n").SerializeToString())
    assert free.run(None, {"latent": latent})[0].shape == (10, 6, 9, 10)


def test_a_constant_tensor_is_no_trouble() -> None:
    crossing = Crossing(name="cut", shape=(1, 6, 4, 4))
    value = np.full(crossing.shape, 2.5, np.float32)
    back, payload = there_and_back(linear_bottleneck(crossing, [value], channels=2), crossing, value)
    np.testing.assert_allclose(back, value, atol=1e-5)
    assert len(payload) < 10


@pytest.mark.parametrize(
    ("samples", "channels", "message"),
    [
        (np.zeros((0, 6, 9, 10)), 3, "at least one"),
        (np.full((1, 6, 9, 10), np.nan), 3, "finite"),
        (np.zeros((1, 6, 9, 10)), 7, "patches with 6 elements"),
        (np.zeros((1, 6, 9, 10)), 0, "patches with 6 elements"),
    ],
)
def test_what_has_no_components(samples: np.ndarray, channels: int, message: str) -> None:
    with pytest.raises(NotQuantizable, match=message):
        components(samples, channels=channels, stride=1)


def test_vectors_have_no_stride() -> None:
    with pytest.raises(NotQuantizable, match="stride of 2"):
        linear_bottleneck(Crossing(name="cut", shape=(1, 12)), [np.zeros((1, 12))], channels=3, stride=2)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4, 5), (0, 4), ()])
def test_a_crossing_tensor_has_two_to_four_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotTrainable, match="was expected"):
        Crossing(name="cut", shape=shape)


@pytest.mark.parametrize("name", ["", "latent"])
def test_a_crossing_tensor_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(NotTrainable, match="give it a name"):
        Crossing(name=name, shape=(1, 4))


def test_names_inside_the_graphs_are_their_own() -> None:
    """Exporters call tensors Conv0 as well."""
    for name in ("Conv0", "constant0", "Identity4"):
        crossing = Crossing(name=name, shape=(1, 6, 9, 10))
        samples = low_rank(crossing.shape, 5)
        back, _ = there_and_back(linear_bottleneck(crossing, samples, channels=3), crossing, samples[0])
        assert back.shape == crossing.shape


def test_files_for_a_model_of_others(tmp_path: Path) -> None:
    """What the tests of splits make: any graph, any tensor in it."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inside"]), helper.make_node("Neg", ["inside"], ["y"])],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(8)]
    files = make_split(tmp_path / "split", model, "inside", samples, channels=4, levels=120)
    encoder, decoder = (onnxruntime.InferenceSession(path) for path in (files.encoder, files.decoder))
    prior = Prior.from_json(files.prior.read_bytes())
    value = np.maximum(samples[0]["x"], 0)
    (latent,) = encoder.run(None, {"inside": value})
    back = prior.decode(prior.encode(latent), latent.shape)
    np.testing.assert_allclose(decoder.run(None, {"latent": back})[0], value, atol=0.1)
    assert onnx.load(files.encoder).graph.output[0].name == "latent"
