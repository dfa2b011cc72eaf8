"""A small trained net, the patterns that it tells apart, and what it is quantized with; all within a second or two."""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

from compression.training.fit_recipe import FitRecipe
from compression.training.fitting import fit
from compression.training.training_set import TrainingSet

N_CLASSES, SIDE = 4, 12
QUICK = FitRecipe(epochs=2, batch=32)


class Net(nn.Module):
    """Two convolutions, one of them depthwise, with normalisations; about 700 weights at width 8."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, 2 * width, 1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width, N_CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = self.stem(image)
        values = functional.relu6(self.wide(functional.relu(self.norm(self.deep(values))) + values))
        return self.head(self.drop(values.mean((2, 3))))


def patterns(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Stripes of four directions at random places, in noise: `(n, 1, 12, 12)` and their direction."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, N_CLASSES, n)
    down, along = np.mgrid[0:SIDE, 0:SIDE]
    waves = np.stack([down, along, down + along, down - along])[labels].astype(np.float32)
    phases = chance.uniform(0, 2 * np.pi, (n, 1, 1))
    images = np.sin(waves * 1.2 + phases) * 0.5 + chance.normal(0, 0.6, (n, SIDE, SIDE))
    return images[:, None].astype(np.float32), labels.astype(np.int64)


def untrained(seed: int = 0, width: int = 8) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(width).eval()


def a_set(n: int = 512, **fields: object) -> TrainingSet:
    """A training set of patterns around the trained net."""
    images, labels = patterns(n)
    given = {"module": trained(), "inputs": {"image": images}, "labels": labels, "output_names": ("scores",)}
    return TrainingSet(**{**given, **fields})  # type: ignore[arg-type]


@cache
def trained() -> Net:
    """The net after a training of about a second; tests leave it as it is."""
    images, labels = patterns(1024)
    given = TrainingSet(module=untrained(), inputs={"image": images}, labels=labels)
    net = fit(given.module, given, recipe=FitRecipe(epochs=8, batch=64, learning_rate=1e-2), seed=0).module
    assert isinstance(net, Net)
    return net


def accuracy(answer: Callable[[np.ndarray], np.ndarray], n: int = 2000) -> float:
    """Of scores for images that no training has seen."""
    images, labels = patterns(n, seed=99)
    return float((answer(images).argmax(1) == labels).mean())


def of_module(module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def answer(images: np.ndarray) -> np.ndarray:
        module.eval()
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return answer


def of_model(model: onnx.ModelProto) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def int8(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> onnx.ModelProto:
    """Static int8, calibrated with images of its own."""
    from compression.quantization.placement import place
    from compression.quantization.prepare import prepare
    from compression.quantization.ranges import activation_ranges
    from compression.quantization.recipe import Int8Recipe

    images, _ = patterns(32, seed=5)
    prepared = prepare(model)
    found = activation_ranges(prepared, [{"image": image[None]} for image in images], "minmax")
    return place(prepared, {**found, **ranges}, Int8Recipe())


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
