"""A bottleneck learned at a cut: what it keeps, what it costs, and that nothing else is touched."""

import copy

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from compression.bottleneck.bottleneck_recipe import BottleneckRecipe, BottleneckShape  # noqa: E402
from compression.bottleneck.examined import Examiner  # noqa: E402
from compression.bottleneck.graph import Crossing  # noqa: E402
from compression.bottleneck.network import Decoder, Encoder, Probabilities, pads_of  # noqa: E402
from compression.bottleneck.submodules import find_submodule, replaced, submodules_after  # noqa: E402
from compression.bottleneck.training import looked_at, train_bottlenecks  # noqa: E402
from compression.errors import NotTrainable  # noqa: E402
from compression.training.training_set import TrainingSet  # noqa: E402


def train_bottleneck(*given, **wanted):
    """The only one of a recipe with one step."""
    return train_bottlenecks(*given, **wanted)[0]


class Net(torch.nn.Module):
    """A few thousand parameters: 12 channels of 8 by 7 at the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Sequential(torch.nn.Conv2d(1, 12, 3, 2, 1), torch.nn.BatchNorm2d(12), torch.nn.ReLU())
        self.cut = torch.nn.Identity()
        self.tail = torch.nn.Sequential(torch.nn.Conv2d(12, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten())
        self.scores = torch.nn.Linear(16 * 4 * 4, 4)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.tail(self.cut(self.head(image))))
        return scores


def pictures(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bars at four angles, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    rows, columns = np.mgrid[:16, :14]
    angles = labels * np.pi / 4
    waves = np.sin(
        0.9 * (np.cos(angles)[:, None, None] * rows + np.sin(angles)[:, None, None] * columns)
        + rng.uniform(0, 6, n)[:, None, None]
    )
    noisy = waves + rng.normal(0, 0.5, waves.shape)
    return noisy[:, None].astype(np.float32), labels


@pytest.fixture(scope="module")
def training_set() -> TrainingSet:
    images, labels = pictures(600, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net()
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for _ in range(6):
            for start in range(0, 600, 50):
                scores = module(torch.from_numpy(images[start : start + 50]))
                loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[start : start + 50]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return TrainingSet(module=module.eval(), inputs={"image": images}, labels=labels)


QUICK = BottleneckRecipe(bits_per_element=0.3, epochs=4, decoder_epochs=2, batch=32, steps=(1.0, 2.0))
SMALL = BottleneckShape(channels=6, stride=2, width=16, blocks=1)


def test_a_bottleneck_keeps_the_answers_in_fewer_bytes(training_set: TrainingSet) -> None:
    crossing = Crossing(name="the_cut", shape=(1, 12, 8, 7))
    before = copy.deepcopy(training_set.module.state_dict())
    told: list[tuple[int, int]] = []
    fine, coarse = train_bottlenecks(
        training_set, "cut", crossing=crossing, shape=SMALL, recipe=QUICK, stepped=lambda *one: told.append(one)
    )
    assert fine.trained.accuracy_before is not None
    assert fine.trained.accuracy is not None
    assert fine.trained.accuracy_before > 0.9
    assert fine.trained.accuracy > fine.trained.accuracy_before - 0.1
    assert fine.trained.agreement > 0.85
    assert fine.trained.bits_per_element < 0.6
    assert coarse.trained.payload_bytes < fine.trained.payload_bytes
    assert told[-1] == (6 * 17, 6 * 17)
    assert [done for done, _ in told[:3]] == [1, 2, 3]
    for name, value in training_set.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(one.requires_grad for one in training_set.module.parameters())
    require_runs(fine.encoder, fine.decoder, fine.prior, crossing, training_set)


def require_runs(encoder, decoder, prior, crossing: Crossing, training_set: TrainingSet) -> None:
    """The files alone do what the training said, on pictures that it never saw."""
    images, labels = pictures(200, 1)
    sessions = [onnxruntime.InferenceSession(graph.SerializeToString()) for graph in (encoder, decoder)]
    module, n_right, n_bytes = training_set.module, 0, 0
    with torch.no_grad(), replaced(module, "cut") as place:
        for image, label in zip(images, labels, strict=True):
            place.through = None
            module(torch.from_numpy(image[None]))
            (latent,) = sessions[0].run(None, {crossing.name: place.own.numpy()})
            payload = prior.encode(latent)
            n_bytes += len(payload)
            (back,) = sessions[1].run(None, {"latent": prior.decode(payload, latent.shape)})
            place.through = lambda _own, back=back: torch.from_numpy(back)
            n_right += int(module(torch.from_numpy(image[None])).argmax()) == label
    assert n_right > 160
    assert 8 * n_bytes / len(images) / np.prod(crossing.shape) < 0.6


def test_the_same_seed_gives_the_same_bottleneck(training_set: TrainingSet) -> None:
    recipe = BottleneckRecipe(epochs=1, decoder_epochs=1)
    first, second, other = (
        train_bottleneck(training_set, "cut", shape=SMALL, recipe=recipe, seed=seed) for seed in (3, 3, 4)
    )
    assert first.encoder.SerializeToString() == second.encoder.SerializeToString()
    assert first.decoder.SerializeToString() == second.decoder.SerializeToString()
    assert first.prior.to_json() == second.prior.to_json()
    assert first.encoder.SerializeToString() != other.encoder.SerializeToString()


def test_the_second_stage_leaves_the_encoder(training_set: TrainingSet) -> None:
    one, two = (
        train_bottleneck(training_set, "cut", shape=SMALL, recipe=BottleneckRecipe(epochs=1, decoder_epochs=n))
        for n in (0, 1)
    )
    assert one.encoder.SerializeToString() == two.encoder.SerializeToString()
    assert one.prior.to_json() == two.prior.to_json()
    assert one.decoder.SerializeToString() != two.decoder.SerializeToString()


def test_fewer_bits_where_fewer_are_wanted(training_set: TrainingSet) -> None:
    many, few = (
        train_bottleneck(
            training_set, "cut", shape=SMALL, recipe=BottleneckRecipe(bits_per_element=bits, decoder_epochs=0)
        ).trained.bits_per_element
        for bits in (0.8, 0.1)
    )
    assert few < 0.5 * many


def test_a_budget_ends_both_stages(training_set: TrainingSet) -> None:
    recipe = BottleneckRecipe(epochs=5000, decoder_epochs=5000)
    trained = train_bottleneck(training_set, "cut", shape=SMALL, recipe=recipe, budget_s=0.5).trained
    assert 2 <= trained.n_steps < 5000


@pytest.mark.parametrize("inner", [(9,), (5, 9), (9, 6, 5)])
@pytest.mark.parametrize("hidden", [0, 7])
def test_vectors_sequences_and_planes(inner: tuple[int, ...], hidden: int) -> None:
    """A module without classes, with values of both signs, and a request of three samples."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((60, *inner)).astype(np.float32)
    module = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    module(torch.from_numpy(inputs))
    shape = BottleneckShape(channels=4, width=8, hidden=hidden, kernel=3 if len(inner) == 3 else 0)
    made = train_bottleneck(
        TrainingSet(module=module, inputs={"x": inputs}),
        "0",
        crossing=Crossing(name="x", shape=(3, *inner)),
        shape=shape,
        recipe=BottleneckRecipe(epochs=1, decoder_epochs=1, steps=(0.5,)),
    )
    assert made.trained.accuracy is None
    session = onnxruntime.InferenceSession(made.encoder.SerializeToString())
    (latent,) = session.run(None, {"x": inputs[:3]})
    assert latent.shape[:2] == (3, 4)
    (back,) = onnxruntime.InferenceSession(made.decoder.SerializeToString()).run(None, {"latent": latent})
    assert back.shape == (3, *inner)


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(8, 1, 1), (7, 2, 2), (9, 4, 4), (8, 3, 1), (7, 5, 2), (1, 3, 3)]
)
def test_a_latent_is_the_size_over_the_stride_rounded_up(size: int, window: int, stride: int) -> None:
    shape = BottleneckShape(channels=2, stride=stride, kernel=window, width=4)
    before, behind = pads_of(size, window, stride)
    assert min(before, behind) >= 0
    planes = (1, 3, size, size + 1)
    latent = Encoder(planes, shape, scale=1.0)(torch.zeros(planes))
    assert tuple(latent.shape) == (1, 2, -(-size // stride), -(-(size + 1) // stride))
    back = Decoder(planes, shape, scale=1.0, sequence=False, rectified=False)(latent)
    assert tuple(back.shape) == planes


def test_probabilities_sum_to_one() -> None:
    probabilities = Probabilities(torch.tensor([0.3, 2.0]))
    values = torch.arange(-60.0, 61.0).reshape(1, 1, -1, 1).expand(1, 2, -1, 1)
    with torch.no_grad():
        shares = 2 ** -probabilities.bits(values)
    torch.testing.assert_close(shares.sum(dim=(0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


def test_a_tensor_finds_its_submodule(training_set: TrainingSet) -> None:
    example = training_set.example(2)
    module = training_set.module
    with torch.no_grad():
        value = module.head(*example).numpy()
        before = module.head[1](module.head[0](*example)).numpy()
    assert find_submodule(module, example, value * (1 + 1e-5)) == "cut"
    assert find_submodule(module, example, before) == "head.1"
    with pytest.raises(NotTrainable, match="nearest is"):
        find_submodule(module, example, value + 1)
    with pytest.raises(NotTrainable, match="no submodule's output"):
        find_submodule(module, example, value[..., :3])


def test_a_module_that_runs_twice_is_no_cut() -> None:
    shared = torch.nn.ReLU()
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), shared, torch.nn.Linear(3, 3), shared)
    inputs = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    example = (torch.from_numpy(inputs),)
    with torch.no_grad():
        value = shared(module[0](*example)).numpy()
    with pytest.raises(NotTrainable, match="more than once"):
        find_submodule(module, example, value)
    with torch.no_grad():
        last = module(*example).numpy()
    with pytest.raises(NotTrainable, match="more than once"):
        find_submodule(module, example, last)
    with pytest.raises(NotTrainable, match="runs 2 times"):
        train_bottleneck(TrainingSet(module=module, inputs={"x": inputs}), "1", shape=BottleneckShape(channels=2))


def test_features_lie_behind_the_cut(training_set: TrainingSet) -> None:
    example = training_set.example(2)
    assert list(submodules_after(training_set.module, "cut", example, 2)) == ["tail", "scores"]
    assert "tail.1" in submodules_after(training_set.module, "head.0", example, 20)
    assert list(submodules_after(training_set.module, "cut", example, 0)) == []


def test_large_tensors_are_begun_with_few_samples() -> None:
    """The stem of a net for high pictures makes 3 MB a sample, which are held several times in float64."""
    grown = torch.nn.Sequential(torch.nn.Upsample(scale_factor=64), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    grown(torch.zeros(1, 8, 8, 8))
    training_set = TrainingSet(module=grown, inputs={"x": np.zeros((300, 8, 8, 8), np.float32)})
    few = looked_at(Examiner(training_set, "0"), np.arange(300))
    assert few.shape == (8, 8, 512, 512)
    small = TrainingSet(
        module=torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)),
        inputs={"x": np.zeros((300, 4), np.float32)},
    )
    assert len(looked_at(Examiner(small, "0"), np.arange(300))) == 256


def test_what_works_in_place_behind_the_cut() -> None:
    """An activation that overwrites what crosses: the encoder learns what the head makes, not what is left of it."""
    images, labels = pictures(96, 1)
    made = []
    for inplace in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Conv2d(1, 12, 3, 2, 1),
                torch.nn.ReLU(inplace=inplace),
                torch.nn.Flatten(),
                torch.nn.Linear(12 * 8 * 7, 4),
            )
        recipe = BottleneckRecipe(epochs=1, decoder_epochs=1, batch=32)
        made.append(
            train_bottleneck(
                TrainingSet(module=net, inputs={"image": images}, labels=labels), "0", shape=SMALL, recipe=recipe
            )
        )
    plain, in_place = made
    assert in_place.encoder.SerializeToString() == plain.encoder.SerializeToString()
    assert in_place.decoder.SerializeToString() == plain.decoder.SerializeToString()
    assert in_place.trained.agreement == plain.trained.agreement


@pytest.mark.parametrize(
    ("at", "shape", "message"),
    [
        ("nowhere", SMALL, "there is no submodule 'nowhere'"),
        ("", SMALL, "there is no submodule ''"),
        ("unused", SMALL, "does not run"),
        ("cut", BottleneckShape(channels=13), "13 channels were wanted for patches of 12"),
        ("scores", SMALL, "stride and kernel are 1"),
    ],
)
def test_what_cannot_be_cut(training_set: TrainingSet, at: str, shape: BottleneckShape, message: str) -> None:
    with pytest.raises(NotTrainable, match=message):
        train_bottleneck(training_set, at, shape=shape)


def test_a_crossing_tensor_of_another_shape(training_set: TrainingSet) -> None:
    with pytest.raises(NotTrainable, match="gives"):
        train_bottleneck(training_set, "cut", crossing=Crossing(name="x", shape=(1, 12, 8, 8)), shape=SMALL)


def test_an_output_that_is_no_float_tensor() -> None:
    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    class Sum(torch.nn.Module):
        def forward(self, both: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return both[0] + both[1]

    module = torch.nn.Sequential(Pair(), Sum())
    inputs = np.zeros((10, 4), np.float32)
    with pytest.raises(NotTrainable, match="gives tuple"):
        train_bottleneck(TrainingSet(module=module, inputs={"x": inputs}), "0")


def test_a_module_without_gradients() -> None:
    class Deployed(torch.nn.Module):
        """As exporters and runners wrap a net."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))

        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.inner(x)
            return scores

    inputs = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    given = TrainingSet(module=Deployed(), inputs={"x": inputs})
    with pytest.raises(NotTrainable, match=r"no gradient comes from the outputs back to inner\.0"):
        train_bottleneck(given, "inner.0", shape=BottleneckShape(channels=2))
    torch.nn.init.constant_(given.module.inner[0].bias, float("inf"))
    with pytest.raises(NotTrainable, match="infinities or no numbers"):
        train_bottleneck(given, "inner.0", shape=BottleneckShape(channels=2))


def test_a_loss_that_is_no_number(training_set: TrainingSet) -> None:
    module = copy.deepcopy(training_set.module)
    with torch.no_grad():
        module.scores.weight.fill_(float("inf"))
    with pytest.raises(NotTrainable, match="loss is"):
        train_bottleneck(TrainingSet(module=module, inputs=training_set.inputs), "cut", shape=SMALL)
    assert not module.cut._forward_hooks


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits_per_element": 0},
        {"bits_per_element": 9},
        {"epochs": 0},
        {"decoder_epochs": -1},
        {"batch": 1},
        {"n_features": -1},
        {"learning_rate": 0},
        {"temperature": float("inf")},
        {"clip_norm": -1},
        {"cut_weight": -1},
        {"kd_share": 2},
        {"held_out_ratio": 1},
        {"steps": ()},
        {"steps": (0.0,)},
    ],
)
def test_a_recipe_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(NotTrainable, match=f"{next(iter(wrong))} of a bottleneck"):
        BottleneckRecipe(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"channels": 0}, {"stride": 0}, {"hidden": -1}, {"width": 0}, {"blocks": -1}, {"stride": 3, "kernel": 2}]
)
def test_a_shape_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(NotTrainable, match="of a bottleneck must be"):
        BottleneckShape(**wrong)
