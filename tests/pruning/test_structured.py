"""Channels leave torch modules with everything that depends on them; what is not understood stays, with a reason."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import onnxruntime  # noqa: E402
from torch import nn  # noqa: E402

from compression.errors import NotPrunable  # noqa: E402
from compression.pruning import structured  # noqa: E402
from compression.pruning.dependencies import Traced  # noqa: E402
from compression.pruning.structured import Pruned, prune  # noqa: E402
from compression.training.exporting import export  # noqa: E402
from tests.pruning import nets  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def image(n: int = 2) -> tuple:
    return (torch.randn(n, 1, 12, 12, generator=torch.Generator().manual_seed(1)),)


def settled(module: nn.Module, example: tuple) -> nn.Module:
    """Batch norms that have seen something, as in a trained net."""
    for _ in range(3):
        module.train()(*example)
    return module.eval()


def widths(done: Pruned) -> dict[str, tuple[int, int]]:
    return {group.name: (group.n_before, group.n_after) for group in done.groups}


NETS = [nets.Residual, nets.Inverted, nets.Dense, nets.Grouped, nets.Gated, nets.Normed]


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("local", [False, True], ids=["ranked_together", "each_alone"])
def test_every_kind_of_dependency(make, local) -> None:
    net = settled(make(), image())
    before = copy.deepcopy(net.state_dict())
    done = prune(net, image(), 0.5, 8, local=local)

    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert done.module(*image()).shape == net(*image()).shape
    assert done.module.fc.out_features == 5
    assert 0.3 < done.ratio < 0.7
    assert done.macs_ratio < 0.65
    assert done.parameters_ratio < 0.75
    assert all(0 < group.n_after <= group.n_before for group in done.groups)
    assert all(group.n_after % 8 == 0 or group.n_after == group.n_before for group in done.groups)
    n_parameters = [sum(weight.numel() for weight in module.parameters()) for module in (done.module, net)]
    assert done.parameters_ratio == pytest.approx(n_parameters[0] / n_parameters[1])


def test_grouped_convolutions_keep_their_groups() -> None:
    done = prune(settled(nets.Grouped(), image()), image(), 0.4, 8)
    assert done.module.wide[0].groups == 4
    assert done.module.wide[0].out_channels % 8 == 0
    assert done.module.wide[0].out_channels < 64


def test_a_transformer_loses_width_and_keeps_its_heads() -> None:
    net, example = nets.Transformer().eval(), (torch.randn(2, 9, 12),)
    done = prune(net, example, 0.5, 8)
    assert widths(done) == {"embed": (32, 16), "block.wide": (128, 64)}
    assert done.module.block.qkv.out_features == 96
    assert "block.qkv" in dict(done.left)
    assert done.module(*example).shape == (2, 5)


def test_a_misread_shuffle_is_found_out_and_left() -> None:
    done = prune(settled(nets.Shuffled(), image()), image(), 0.5, 4)
    assert "off by" in dict(done.left)["first.0"]
    assert done.module.first[0].out_channels == 32
    assert done.module.stem[0].out_channels < 32


def test_outputs_of_any_nesting_stay() -> None:
    example = (torch.randn(2, 1, 8, 8), torch.randn(2, 2, 8, 8))
    done = prune(nets.Features().eval(), example, 0.5, 4)
    assert done.module(*example)["features"][0].shape == (2, 16, 8, 8)
    assert dict(done.left)["shown"].startswith("outputs of shapes")
    assert dict(done.left)["fc"] == "these channels are outputs of the module"
    assert widths(done) == {"left": (16, 8)}


def test_named_layers_stay() -> None:
    net = settled(nets.Residual(), image())
    done = prune(net, image(), 0.5, 8, kept=["stem", "fc"])
    assert done.module.stem[0].out_channels == 16
    assert dict(done.left)["stem.0"] == "stem.0 is to be kept"
    assert widths(done) == {"second": (32, 16)}


def test_ratios_by_name() -> None:
    done = prune(settled(nets.Dense(), image()), image(), {"layers.1": 0.5, "end.0": 0.75}, 4)
    assert widths(done) == {
        "stem.0": (24, 24), "layers.0.0": (16, 16), "layers.1.0": (16, 8), "layers.2.0": (16, 16), "end.0": (32, 8),
    }  # fmt: skip


def test_nothing_asked_nothing_changed() -> None:
    net = settled(nets.Inverted(), image())
    done = prune(net, image(), 0.0, 8)
    assert torch.equal(done.module(*image()), net(*image()))
    assert (done.ratio, done.macs_ratio, done.parameters_ratio) == (0.0, 1.0, 1.0)
    assert done.module is not net


def test_steps_train_in_between_and_end_at_the_ratio() -> None:
    seen = []

    def between(module: nn.Module) -> None:
        seen.append(module.second.out_channels)
        with torch.no_grad():
            module.second.weight += 1.0

    done = prune(settled(nets.Residual(), image()), image(), 0.5, 4, local=True, steps=3, between=between)
    assert seen == [28, 20]
    assert widths(done)["second"] == (32, 16)
    assert float(done.module.second.weight.detach().mean()) > 1.0


def test_importance_decides() -> None:
    net = nets.Residual()
    with torch.no_grad():
        net.first[0].weight[::2] *= 0.01
        net.first[1].weight[::2] *= 0.01
    done = prune(net, image(), {"first.0": 0.0, "second": 0.0, "stem.0": 0.5}, 4, importance="bn-scale")
    assert done.module.stem[1].num_features == 8
    assert float(done.module.first[1].weight.detach().min()) == 1.0


def test_gradients_decide() -> None:
    net = nets.Residual().eval()

    def gradients(module: nn.Module) -> None:
        module(*image()).sum().backward()
        module.second.weight.grad[:16] = 0
        module.short.weight.grad[:16] = 0
        module.fc.weight.grad[:, :16] = 0

    done = prune(net, image(), {"second": 0.5}, 4, importance="taylor", gradients=gradients)
    assert torch.equal(done.module.second.weight, net.second.weight[16:])
    assert all(weight.grad is None for weight in net.parameters())
    assert all(weight.grad is None for weight in done.module.parameters())


def test_gradients_of_a_training_set() -> None:
    from compression.pruning.gradients import loss_gradients
    from compression.training.training_set import TrainingSet

    net = settled(nets.Residual(), image(16))
    inputs = {"x": np.random.default_rng(0).standard_normal((40, 1, 12, 12), dtype=np.float32)}
    for labels in (np.arange(40) % 5, None):
        known = TrainingSet(module=net, inputs=inputs, labels=labels)
        done = prune(net, image(), 0.5, 8, importance="taylor", gradients=loss_gradients(known))
        again = prune(net, image(), 0.5, 8, importance="taylor", gradients=loss_gradients(known))
        assert done.ratio > 0.3
        assert torch.equal(done.module(*image()), again.module(*image()))


def test_the_same_again() -> None:
    net = settled(nets.Dense(), image())
    first, second = (prune(net, image(), 0.5, 8).module for _ in range(2))
    assert torch.equal(first(*image()), second(*image()))


def test_frozen_weights_stay_frozen() -> None:
    net = settled(nets.Residual(), image())
    for weight in net.parameters():
        weight.requires_grad_(False)
    done = prune(net, image(), 0.5, 8)
    assert done.ratio > 0.3
    assert not any(weight.requires_grad for weight in done.module.stem.parameters())
    assert not any(weight.requires_grad for weight in net.parameters())


def test_an_example_of_zeros_proves_as_well() -> None:
    done = prune(settled(nets.Shuffled(), image()), (torch.zeros(2, 1, 12, 12),), 0.5, 4)
    assert "first.0" in dict(done.left)


def test_the_exported_net_is_smaller() -> None:
    net = settled(nets.Inverted(), image())
    done = prune(net, image(), 0.5, 8)
    feeds = {"x": image()[0].numpy()}
    models = [export(module, feeds) for module in (net, done.module)]
    assert models[1].ByteSize() < 0.6 * models[0].ByteSize()
    session = onnxruntime.InferenceSession(models[1].SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        assert np.allclose(session.run(None, feeds)[0], done.module(*image()), atol=1e-5)


class Broken(nets.Residual):
    def forward(self, x):
        return self.fc(self.stem(x))


class Uncopyable(nets.Residual):
    def __deepcopy__(self, memo):
        raise RuntimeError("holds a file")


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Broken(), "does not run on the example.*last entered: layer 'fc'"),
        (Uncopyable(), "cannot be copied.*holds a file"),
        (nets.Decided(), "no output of the module depends on its weights"),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), r"no group .*\(1: these channels are outputs"),
        (nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), "no output of the module depends"),
    ],
    ids=["broken", "uncopyable", "decided", "only_outputs", "no_weights"],
)
def test_what_cannot_be_pruned_says_why(net, said) -> None:
    with pytest.raises(NotPrunable, match=said):
        prune(net, image(), 0.5, 8)


def test_a_net_where_the_proof_fails_everywhere() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 16, 3)
            self.fc = nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.stem(x).mean((2, 3)).flip(1))

    with pytest.raises(NotPrunable, match="stem: output 0 is off by"):
        prune(Mixed(), image(), 0.5, 8)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ratio": 1.0}, "lies in"),
        ({"ratio": -0.1}, "lies in"),
        ({"ratio": {"stem": 2.0}}, "lies in"),
        ({"ratio": 0.5, "multiple": 0}, "at least 1"),
        ({"ratio": 0.5, "steps": 0}, "at least 1"),
        ({"ratio": 0.5, "kept": ["nowhere"]}, "no layer is called nowhere; there are .*fc"),
        ({"ratio": {"nowhere": 0.5}}, "no layer is called nowhere"),
        ({"ratio": 0.5, "importance": "taylor"}, "needs `gradients`"),
        ({"ratio": 0.5, "importance": "guess"}, "none of group-magnitude"),
    ],
)
def test_wrong_words(asked, said) -> None:
    with pytest.raises(ValueError, match=said):
        prune(nets.Residual(), image(), **asked)


def test_a_library_that_fails_half_way_names_the_group(monkeypatch) -> None:
    def fail(self, group, indices):
        raise RuntimeError("no such channel")

    monkeypatch.setattr(Traced, "with_indices", fail)
    monkeypatch.setattr(structured, "_wrong", lambda *_: {})
    with pytest.raises(NotPrunable, match="could not take its channels out: RuntimeError: no such channel"):
        prune(settled(nets.Residual(), image()), image(), 0.5, 8)
