"""Modules written as ONNX answer as they did, keep their names, and give the same bytes twice."""

import logging

import numpy as np
import onnx
import pytest

from compression.errors import NotExportable

torch = pytest.importorskip("torch")
from compression.training.exporting import export  # noqa: E402
from compression.training.tracing import traced  # noqa: E402
from tests.training.making import of_model, of_module, patterns, trained  # noqa: E402

pytestmark = pytest.mark.torch
IMAGES, _ = patterns(8)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return export(trained(), {"image": IMAGES[:3]}, ("scores",))


def test_a_trained_net_keeps_its_answers_and_names(model: onnx.ModelProto) -> None:
    net = trained()
    assert [one.name for one in model.graph.input] == ["image"]
    assert [one.name for one in model.graph.output] == ["scores"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert np.allclose(of_model(model)(IMAGES), of_module(net)(IMAGES), atol=1e-5)
    assert of_model(model)(IMAGES[:1]).shape == (1, 4)
    assert {"stem.0.weight", "head.weight"} <= {one.name for one in model.graph.initializer}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model, full_check=True)


def test_the_same_module_gives_the_same_bytes_without_a_trace_of_the_machine(model: onnx.ModelProto) -> None:
    net = trained()
    modes = [part.training for part in net.modules()]
    levels = logging.getLogger("torch.onnx").level
    again = export(net, {"image": IMAGES[:3]}, ("scores",)).SerializeToString()
    assert again == model.SerializeToString()
    assert b".py" not in again
    assert [part.training for part in net.modules()] == modes
    assert logging.getLogger("torch.onnx").level == levels


class Fixed(torch.nn.Module):
    def forward(self, image):
        return image.reshape(3, 144), image.mean()[None].expand(3)


class Two(torch.nn.Module):
    """Two inputs, one of them whole numbers, and a normalisation behind a product."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(5, 3)
        self.mixed = torch.nn.Linear(6, 4)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, values, words):
        return self.norm(self.mixed(torch.cat([values, self.words(words).mean(1)], 1)))


def test_two_inputs_share_one_free_batch_and_can_be_traced() -> None:
    chance = np.random.default_rng(0)
    example = {"values": chance.normal(size=(3, 3)).astype(np.float32), "words": chance.integers(0, 5, (3, 2))}
    found = traced(Two().eval(), example)
    assert [one.type.tensor_type.shape.dim[0].dim_param for one in found.model.graph.input] == ["batch", "batch"]
    assert [node.op_type for node in found.model.graph.node].count("BatchNormalization") == 0
    assert "mixed.weight" in found.module.state_dict()


class Chance(torch.nn.Module):
    def forward(self, image):
        return image * torch.rand(1)


class Branching(torch.nn.Module):
    def forward(self, image):
        return image * 2 if image.sum() > 0 else image


class Wordy(torch.nn.Module):
    def forward(self, image):
        return "answer"


def test_a_batch_that_cannot_be_free_is_the_examples() -> None:
    model = export(Fixed(), {"image": IMAGES[:3]})
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert [one.name for one in model.graph.output] == ["output_0", "output_1"]


@pytest.mark.parametrize(
    ("module", "names", "said"),
    [
        (Chance(), (), "does forward.. draw random numbers"),
        (Branching(), (), "torch cannot write this module as ONNX: "),
        (Wordy(), (), "returned str"),
        (Fixed(), ("only",), "1 output names for 2 outputs"),
        (torch.nn.Linear(3, 3), (), "does not take the example: RuntimeError"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(module, names, said: str) -> None:
    with pytest.raises(NotExportable, match=said):
        export(module, {"image": IMAGES[:3]}, names)
