"""What training gives back: a student taught against one that is not, and int8 and 3-bit weights learned or rounded.

Fashion-MNIST, from Debian's package `dataset-fashion-mnist` (see cascade.py). Small nets with depthwise convolutions
are trained here; all 10,000 test images judge, in onnxruntime. The hard net is the same one with a channel before the
last convolution made 300 times as large and weighted down behind it: float answers stay, int8 ranges widen.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.cascade import ROOT, data_folder, load
from benchmarks.report import Record, publish
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.training.exporting import export
from compression.training.fake_quantization import fake_quantized
from compression.training.fit_recipe import FitRecipe
from compression.training.fitting import fit
from compression.training.grids import grids
from compression.training.heads import low_rank_head, separate_head
from compression.training.quantization_aware import quantization_aware
from compression.training.rounding import adaround
from compression.training.tracing import traced
from compression.training.training_set import TrainingSet

N_TRAINED: Final = 12_000
N_CALIBRATION: Final = 128
TEACHER: Final = FitRecipe(epochs=6, learning_rate=1e-2)
ROUNDED: Final = FitRecipe(epochs=3, learning_rate=2e-3, rise_ratio=0.1, weight_decay=0.0)
LARGER: Final = 300
LEVELS_OF_3_BITS: Final = 3
METHOD: Final = (
    f"Fashion-MNIST, {N_TRAINED:,} training and 10,000 test images, three seeds; accuracy in %, judged by onnxruntime."
    " Difference in points to the row that each is compared with, of the same seed: mean, and least to most. Weights of"
    " 3 bits are float weights on such a grid, then int8. Static int8 is U8S8 per channel, minimum to maximum of"
    f" {N_CALIBRATION} training images; taught and learned rows take the same samples as their neighbours."
)


class Net(nn.Module):
    """Four convolutions, one of them depthwise, and a product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.wide = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.last = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes."""
        scores: torch.Tensor = self.head(self.last(self.wide(self.deep(self.stem(image)))).mean((2, 3)))
        return scores


def fresh(width: int, seed: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(width)


def hardened(net: nn.Module) -> Net:
    """The same answers, with one channel much larger than the others on its way."""
    made = Net(16)
    made.load_state_dict(net.state_dict())
    with torch.no_grad():
        norm, after = made.wide[1], made.last[0]
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(after, nn.Conv2d)
        channel = int((norm.bias + norm.weight.abs()).argmax())
        norm.weight[channel] *= LARGER
        norm.bias[channel] *= LARGER
        after.weight[:, channel] /= LARGER
    return made.eval()


def accuracy(model: onnx.ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = [session.run(None, {"image": images[at : at + 500]})[0] for at in range(0, len(images), 500)]
    return 100 * float((np.concatenate(scores).argmax(1) == labels).mean())


def coarse(int8: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """The same quantizer, but that its weights' scales leave 3 levels on each side."""

    def made(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> onnx.ModelProto:
        quantized = int8(model, ranges)
        weights = {one.name for one in quantized.graph.initializer if one.data_type == onnx.TensorProto.INT8}
        read = [node for node in quantized.graph.node if node.op_type == "DequantizeLinear"]
        scales = {node.input[1] for node in read if node.input[0] in weights}
        for tensor in quantized.graph.initializer:
            if tensor.name in scales:
                scale = numpy_helper.to_array(tensor) * np.float32(127 / LEVELS_OF_3_BITS)
                tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
        return quantized

    return made


def measured(seed: int, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Accuracies of one seed, by row."""
    images, labels = train

    def training_set(module: nn.Module) -> TrainingSet:
        return TrainingSet(module=module, inputs={"image": images}, labels=labels, output_names=("scores",))

    def exported(module: nn.Module) -> onnx.ModelProto:
        return export(module, {"image": images[:4]}, ("scores",))

    def int8(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> onnx.ModelProto:
        samples = [{"image": image[None]} for image in images[:N_CALIBRATION]]
        return quantize(model, samples, Int8Recipe(), ranges=ranges).model

    def judged(model: onnx.ModelProto) -> float:
        return accuracy(model, *test)

    begun = fresh(16, seed)
    teacher = fit(begun, training_set(begun), recipe=TEACHER, seed=seed).module
    student = fresh(6, seed)
    found = {"teacher, 16 channels": judged(exported(teacher))}
    alone = fit(student, training_set(student), recipe=TEACHER, seed=seed).module
    taught = fit(student, training_set(teacher), teacher=teacher, recipe=TEACHER, seed=seed).module
    found["student, 6 channels, from labels"] = judged(exported(alone))
    found["student, taught"] = judged(exported(taught))
    found["int8 of the teacher"] = judged(int8(exported(teacher), {}))
    hard = hardened(teacher)
    found["hard net, int8"] = judged(int8(exported(hard), {}))
    learned = quantization_aware(hard, training_set(hard), int8, recipe=ROUNDED, seed=seed)
    found["hard net, int8, quantization-aware"] = judged(learned.quantized)
    few = coarse(int8)
    trace = traced(teacher, {"image": images[:4]}, ("scores",))
    nearest = fake_quantized(trace, grids(few(trace.model, {}), trace.model))
    found["3-bit weights, to nearest"] = judged(int8(trace.written(nearest.on_grid(nearest.module)), {}))
    rounded = adaround(teacher, training_set(teacher), few, n_samples=256, n_steps=400, seed=seed)
    found["3-bit weights, AdaRound"] = judged(int8(rounded.model, {}))
    learned = quantization_aware(teacher, training_set(teacher), few, recipe=ROUNDED, seed=seed)
    found["3-bit weights, quantization-aware"] = judged(int8(learned.model, learned.ranges))
    return found


COMPARED: Final = {
    "student, taught": "student, 6 channels, from labels",
    "int8 of the teacher": "teacher, 16 channels",
    "hard net, int8": "teacher, 16 channels",
    "hard net, int8, quantization-aware": "hard net, int8",
    "3-bit weights, to nearest": "teacher, 16 channels",
    "3-bit weights, AdaRound": "3-bit weights, to nearest",
    "3-bit weights, quantization-aware": "3-bit weights, to nearest",
}


def row(name: str, runs: list[dict[str, float]]) -> tuple[str, ...]:
    mean = f"{statistics.mean(run[name] for run in runs):.2f}"
    if name not in COMPARED:
        return name, mean, ""
    gaps = [run[name] - run[COMPARED[name]] for run in runs]
    return name, mean, f"{statistics.mean(gaps):+.2f} ({min(gaps):+.2f} to {max(gaps):+.2f}), {COMPARED[name]}"


def head_row(images: np.ndarray) -> tuple[str, ...]:
    model = export(fresh(64, 0), {"image": images[:4]}, ("scores",))
    feature = next(node.input[0] for node in model.graph.node if node.op_type == "Gemm")
    whole, low = separate_head(model, feature).n_bytes, low_rank_head(model, feature, rank=2).n_bytes
    return "an update of a head of 128 x 10", "", f"{whole:,} bytes whole, {low:,} at rank 2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = data_folder(Path(ROOT) / ".cache")
    train, test = load(folder, "train"), load(folder, "t10k")
    images = train.images.reshape(-1, 1, 28, 28)[:N_TRAINED]
    pair = (images, train.labels[:N_TRAINED])
    judge = (test.images.reshape(-1, 1, 28, 28), test.labels)
    runs = [measured(given.seed + at, pair, judge) for at in range(given.seeds)]
    return publish(
        Record(
            name="training",
            claim="Training gives back what int8, few bits and few channels take",
            method=METHOD,
            seed=given.seed,
            columns=("", "accuracy", "difference, and to what"),
            rows=[*(row(name, runs) for name in runs[0]), head_row(images)],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
