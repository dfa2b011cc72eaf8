import contextlib
import io

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("litert_torch", exc_type=ImportError)
import flatbuffers
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from compression.errors import NotExportable, NotQuantizable
from compression.tflite.export import export, renamed
from compression.tflite.int8 import quantized
from compression.tflite.runtimes import answers, refusal_on_old_runtime, verdicts
from devices.tflite_engine import TfliteSession

pytestmark = [pytest.mark.torch, pytest.mark.litert, pytest.mark.filterwarnings("ignore")]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolved = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.classify = nn.Linear(8, 4)

    def forward(self, image):
        return self.classify(self.convolved(image).mean((2, 3)))


@pytest.fixture(scope="module")
def module():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = Small()
        net(torch.randn(32, 1, 12, 12))  # running statistics other than none
    return net.eval()


@pytest.fixture(scope="module")
def samples():
    images = np.random.default_rng(7).normal(size=(40, 1, 1, 12, 12)).astype(np.float32)
    return [{"image": image} for image in images]


@pytest.fixture(scope="module")
def exported(module, samples):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        found = export(module, samples[0], ["scores"])
    assert said.getvalue() == ""
    return found


def expected(module, samples):
    with torch.no_grad():
        return [[module(torch.tensor(feeds["image"])).numpy()] for feeds in samples]


def apart(found, wanted):
    return max(float(np.linalg.norm(a[0] - b[0]) / np.linalg.norm(b[0])) for a, b in zip(found, wanted, strict=True))


def test_it_answers_as_the_module_and_is_asked_by_the_models_own_names(module, samples, exported):
    session = TfliteSession(exported)
    assert [port.name for port in session.get_inputs()] == ["image"]
    assert [port.name for port in session.get_outputs()] == ["scores"]
    assert session.get_inputs()[0].shape == (1, 1, 12, 12)
    assert apart(answers(exported, samples, ["scores"]), expected(module, samples)) < 1e-4


@pytest.mark.parametrize("kind", ["int8", "dynamic"])
def test_its_8_bit_forms_are_smaller_take_floats_and_are_near(module, samples, exported, kind):
    small = quantized(exported, samples, kind)
    session = TfliteSession(small)
    assert [port.type for port in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    assert [port.name for port in (*session.get_inputs(), *session.get_outputs())] == ["image", "scores"]
    far = apart(answers(small, samples, ["scores"]), expected(module, samples))
    assert 0 < far < 0.25
    assert quantized(exported, samples, kind) == small


def test_what_the_old_runtime_computes_wrongly_is_refused_for_it_alone(module, samples, exported):
    references = expected(module, samples)
    for model, is_refused in (
        (exported, False),
        (quantized(exported, samples, "int8"), False),
        (quantized(exported, samples, "dynamic"), True),
    ):
        here, old = verdicts(model, samples, references, ["scores"])
        assert here.runtime.startswith("LiteRT")
        assert here.is_asked
        assert here.refusal == ""
        assert here.distance < 0.25
        assert not old.is_asked
        assert bool(old.refusal) is is_refused
    assert "8-bit weights" in refusal_on_old_runtime(quantized(exported, samples, "dynamic"))


def test_too_few_samples_and_samples_of_other_inputs_are_refused(samples, exported):
    with pytest.raises(NotQuantizable, match=r"1 samples .* at least 8"):
        quantized(exported, samples[:1], "int8")
    with pytest.raises(NotQuantizable, match="lack input 'image'; they have picture"):
        quantized(exported, [{"picture": feeds["image"]} for feeds in samples], "int8")


def test_a_module_that_litert_cannot_convert_is_refused_with_its_reason(samples):
    class Odd(nn.Module):
        def forward(self, image):
            return image * 2 if float(image.sum()) > 0 else image - 1

    with pytest.raises(NotExportable, match=r"cannot convert the module: .+"):
        export(Odd().eval(), samples[0], ["scores"])


def test_names_must_be_as_many_as_inputs_and_outputs(module, samples, exported):
    with pytest.raises(NotExportable, match="1 outputs, 2 names"):
        export(module, samples[0], ["scores", "more"])
    with pytest.raises(NotExportable, match="1 inputs, 2 names"):
        renamed(exported, ["image", "more"], ["scores"])


def test_a_file_whose_weights_lie_behind_the_flatbuffer_is_not_written_anew(exported):
    found = schema.ModelT.InitFromPackedBuf(bytearray(exported), 0)
    found.buffers[-1].offset, found.buffers[-1].size = 16, 16
    builder = flatbuffers.Builder(len(exported))
    builder.Finish(found.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(NotExportable, match="behind the flatbuffer"):
        renamed(bytes(builder.Output()), ["image"], ["scores"])
