"""Training that rounds as the engine will: same levels, same answers, and more of them right where int8 is hard."""

import dataclasses
import time

import numpy as np
import onnx
import pytest

from compression.errors import NotQuantizable

torch = pytest.importorskip("torch")
from compression.quantization.static import quantize  # noqa: E402
from compression.training import rounding  # noqa: E402
from compression.training.answering import answers  # noqa: E402
from compression.training.fake_quantization import FakeActivation, FakeWeight, fake_quantized  # noqa: E402
from compression.training.fit_recipe import FitRecipe  # noqa: E402
from compression.training.grids import Grid, grids  # noqa: E402
from compression.training.quantization_aware import quantization_aware  # noqa: E402
from compression.training.rounding import adaround  # noqa: E402
from compression.training.tracing import Traced, traced  # noqa: E402
from tests.training.making import (  # noqa: E402
    Net,
    a_set,
    accuracy,
    int8,
    of_model,
    of_module,
    patterns,
    same,
    trained,
    weights,
)

pytestmark = pytest.mark.torch
QUICK = FitRecipe(epochs=4, batch=32, learning_rate=1e-2, rise_ratio=0.1)


def hard_to_quantize() -> Net:
    """The trained net with one channel 200 times as large as the others between two layers; it answers the same."""
    net = Net()
    net.load_state_dict(trained().state_dict())
    with torch.no_grad():
        net.wide.weight[5] *= 200
        net.wide.bias[5] *= 200
        net.head.weight[:, 5] /= 200
    return net.eval()


class Unbounded(Net):
    """Without the bound of 6, which would hide the large channel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = self.stem(image)
        values = torch.relu(self.wide(torch.relu(self.norm(self.deep(values))) + values))
        return self.head(self.drop(values.mean((2, 3))))


@pytest.fixture(scope="module")
def traces() -> dict[int, Traced]:
    return {}


@pytest.fixture(autouse=True)
def one_trace_a_net(traces: dict[int, Traced], monkeypatch: pytest.MonkeyPatch) -> None:
    """A net is traced once for all tests: its graph and model are the same each time (test_exporting.py says so)."""

    def kept(module: torch.nn.Module, example: dict, names: tuple[str, ...] = ()) -> Traced:
        if id(module) not in traces:
            traces[id(module)] = traced(module, example, names)
        return traces[id(module)]

    for name in ("quantization_aware", "rounding"):
        monkeypatch.setattr(f"compression.training.{name}.traced", kept)


@pytest.fixture(scope="module")
def hard() -> Net:
    made = Unbounded()
    made.load_state_dict(hard_to_quantize().state_dict())
    return made.eval()


def test_it_rounds_to_the_levels_of_the_engine() -> None:
    """Before any training the answers are those of the int8 model, but for levels that fall on the other side."""
    images, _ = patterns(200, seed=8)
    trace = rounding.traced(trained(), {"image": images[:4]}, ("scores",))
    quantized = int8(trace.model, {})
    found = fake_quantized(trace, grids(quantized, trace.model))
    assert found.unplaced == ()
    assert len(found.weights) == 4
    assert {"image", "mean"} <= set(found.activations)
    mine, engine = answers(found.module, {"image": images})[0].numpy(), of_model(quantized)(images)
    plain = of_module(trained())(images)
    assert np.abs(mine - engine).max() < 0.03 * np.abs(plain).max()
    assert np.abs(mine - engine).mean() < 0.25 * np.abs(plain - engine).mean()


class Words(torch.nn.Module):
    """Attention over five words, a normalisation in float, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.three = torch.nn.Linear(6, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 48)
        self.mixed, self.wider = torch.nn.Linear(16, 16), torch.nn.ConvTranspose1d(16, 8, 2, 2)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        values = self.first(words)
        parts = [part[:, None] for part in self.three(self.norm(values)).chunk(3, -1)]
        values = values + self.mixed(torch.nn.functional.scaled_dot_product_attention(*parts)[:, 0])
        return self.head(self.wider(torch.nn.functional.gelu(values).transpose(1, 2)).mean(2))


def test_it_finds_the_weights_of_a_transformer() -> None:
    """Their products are two nodes in ONNX, with turned weights; all five are rounded, and the answers are int8's."""
    torch.manual_seed(0)
    words = np.random.default_rng(0).normal(size=(32, 5, 6)).astype(np.float32)
    trace = traced(Words().eval(), {"words": words[:4]})
    quantized = quantize(trace.model, [{"words": one[None]} for one in words]).model
    found = fake_quantized(trace, grids(quantized, trace.model))
    assert found.unplaced == ()
    assert [one.parameter.partition(".")[0] for one in found.weights] == ["first", "three", "mixed", "wider", "head"]
    mine, engine = answers(found.module, {"words": words})[0].numpy(), of_model(quantized)(words)
    plain = of_model(trace.model)(words)
    assert np.abs(mine - engine).mean() < 0.1 * np.abs(plain - engine).mean()


def test_training_makes_up_for_a_range_that_is_hard_to_quantize(hard: Net) -> None:
    before = weights(hard)
    given = a_set(1024, module=hard)
    ranges_seen: list[dict[str, tuple[float, float]]] = []

    def seen_int8(model: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> onnx.ModelProto:
        ranges_seen.append(dict(ranges))
        return int8(model, ranges)

    found = quantization_aware(hard, given, seen_int8, recipe=QUICK, seed=1)
    assert ranges_seen == [{}, found.ranges]
    assert same(weights(hard), before)
    whole, plain = accuracy(of_module(hard)), accuracy(of_model(int8(traced_model(hard), {})))
    trained_so = accuracy(of_model(found.quantized))
    assert whole - plain > 0.03
    assert trained_so > plain + 0.5 * (whole - plain)
    assert found.fitted.after.better_than(found.fitted.before)
    _require_on_grid(found.model, found.quantized)
    torch_so = accuracy(lambda images: answers(found.fitted.module, {"image": images})[0].numpy())
    assert torch_so == pytest.approx(trained_so, abs=0.01)


def traced_model(module: torch.nn.Module) -> onnx.ModelProto:
    return rounding.traced(module, {"image": patterns(4)[0]}, ("scores",)).model


def _require_on_grid(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """The int8 weights, dequantized, are the float model's, bit by bit but for the last of the scale."""
    floats = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in quantized.graph.initializer}
    n_seen = 0
    for name, levels in constants.items():
        wanted = floats.get(name.removesuffix("_quantized"))
        if levels.dtype == np.int8 and wanted is not None and levels.shape == wanted.shape:
            scale = constants[name.replace("_quantized", "_scale")].reshape(-1, *[1] * (levels.ndim - 1))
            assert np.allclose(levels * scale, wanted, rtol=1e-5, atol=0)
            n_seen += 1
    assert n_seen >= 3


def test_the_same_seed_gives_the_same_bytes(hard: Net) -> None:
    short = dataclasses.replace(QUICK, epochs=1)
    given = a_set(128, module=hard, labels=None, augment=lambda batch, chance: (batch[0] * 1.0,))
    one, two = (quantization_aware(hard, given, int8, recipe=short, seed=3).quantized for _ in range(2))
    assert one.SerializeToString() == two.SerializeToString()


class Named(torch.nn.Module):
    """A net that returns a dictionary, with a loss that takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.net(image)
        return {"scores": scores, "doubled": scores * 2}


def test_a_loss_gets_what_the_module_returned() -> None:
    seen: set[str] = set()

    def loss(answer: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        seen.update(answer)
        return torch.nn.functional.cross_entropy(answer["scores"], labels)

    given = a_set(64, module=Named(), loss=loss, output_names=())
    found = quantization_aware(given.module, given, int8, recipe=dataclasses.replace(QUICK, epochs=1))
    assert seen == {"scores", "doubled"}
    assert [one.name for one in found.model.graph.output] == ["output_0", "output_1"]


def test_adaround_answers_nearer_than_rounding_to_nearest() -> None:
    """With 3 bits, where rounding counts; the learned weights are on the same grid, so int8 keeps them."""
    given = a_set(256)
    done: list[int] = []
    found = adaround(trained(), given, _coarse, n_samples=96, n_steps=50, stepped=lambda step, total: done.append(step))
    again = adaround(trained(), given, _coarse, n_samples=96, n_steps=50)
    assert found.model.SerializeToString() == again.model.SerializeToString()
    assert done == list(range(1, 4 * 50 + 1))
    assert all(layer.learned <= layer.nearest for layer in found.layers)
    assert found.layers[-1].learned < 0.8 * found.layers[-1].nearest
    images, _ = patterns(500, seed=9)
    plain = of_module(trained())(images)
    nearest = fake_quantized(trace := rounding.traced(trained(), {"image": images[:4]}, ("scores",)), _grids_of(trace))
    rounded = of_model(trace.written(nearest.on_grid(nearest.module)))(images)
    assert np.square(of_model(found.model)(images) - plain).mean() < np.square(rounded - plain).mean()


def test_adaround_keeps_to_its_budget() -> None:
    start_s = time.perf_counter()
    done: list[int] = []
    found = adaround(
        trained(), a_set(64), int8, n_samples=32, n_steps=10**6, budget_s=0.2, stepped=lambda step, _: done.append(step)
    )
    assert time.perf_counter() - start_s < 15
    assert len(done) < 10**5
    assert len(found.layers) == 4
    assert all(layer.learned <= layer.nearest for layer in found.layers)


def _grids_of(trace) -> object:
    return grids(_coarse(trace.model, {}), trace.model)


def _coarse(model: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> onnx.ModelProto:
    """Int8 whose weights have scales for 3 bits: 3 levels on each side."""
    made = int8(model, ranges)
    weights = {one.name for one in made.graph.initializer if one.data_type == onnx.TensorProto.INT8}
    read = [node for node in made.graph.node if node.op_type == "DequantizeLinear"]
    scales = {node.input[1] for node in read if node.input[0] in weights}
    for tensor in made.graph.initializer:
        if tensor.name in scales:
            wide = onnx.numpy_helper.to_array(tensor) * np.float32(127 / 3)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    return made


def test_grids_that_no_weight_has_are_refused() -> None:
    weight = torch.randn((4, 3), generator=torch.Generator().manual_seed(0))
    largest = weight.abs().amax(1).numpy()
    good = Grid(largest / 127, np.zeros(4, np.int8), -128, 127, 0, "w")
    assert FakeWeight(good, weight, 0).n_levels == 127
    for grid, said in [
        (dataclasses.replace(good, zero=np.ones(4, np.int8)), "zero point is not in the middle"),
        (
            dataclasses.replace(good, scale=good.scale * np.float32([1, 1, 2, 1])),
            "do not follow from the module's weights",
        ),
        (dataclasses.replace(good, scale=good.scale[:3]), "3 scales for 4 channels"),
        (dataclasses.replace(good, scale=good.scale / 9), "1143 levels on one side"),
    ]:
        with pytest.raises(NotQuantizable, match=said):
            FakeWeight(grid, weight, 0)


def test_a_graph_without_rounding_is_refused() -> None:
    with pytest.raises(NotQuantizable, match="nothing can be learned"):
        quantization_aware(trained(), a_set(16), lambda model, ranges: model)


def test_a_learned_range_gives_the_quantizer_its_own_zero_point() -> None:
    grid = Grid(np.float32([0.047]), np.uint8([141]), 0, 255, None, "scores_scale")
    fake = FakeActivation(grid)
    with torch.no_grad():
        fake.pace.fill_(0.01)
    low, high = fake.range
    scale = (high - low) / 255
    assert round(-low / scale) == 141
    values = torch.linspace(low - 1, high + 1, 501)
    levels = (fake(values).detach() / scale).round() + 141
    assert torch.equal(levels, (torch.round(values / scale) + 141).clamp(0, 255))
    fake(values).sum().backward()
    assert fake.pace.grad is not None
    assert float(fake.pace.grad) != 0
