"""A classifier with a narrow waist behind a light head: over a slow link, a request that is divided there wins."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.measuring import Feeds, Timing
from hybrid.compress.job import THIS, Job
from hybrid.compress.timing.timer import DeviceTold
from hybrid.cost.energy import GENERIC_POWER, Power

N_CLASSES, SHAPE, WAIST = 5, (1, 3, 48, 48), "r2"
LAYERS = ((3, 24, 2), (24, 24, 1), (24, 8, 4), (8, 96, 1), (96, 96, 1))
"""Channels in and out, stride: the third leaves 8 x 6 x 6, one kilobyte where the input has 27."""


def samples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of one of five patterns, and which it is."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(98).standard_normal((N_CLASSES, *SHAPE[1:]))
    labels = random.integers(0, N_CLASSES, n)
    return (patterns[labels] + 0.7 * random.standard_normal((n, *SHAPE[1:]))).astype(np.float32), labels


def graph(path: Path) -> Path:
    """x FP32 [1, 3, 48, 48] -> y FP32 [1, 5]: convolutions drawn, and a last layer fitted to samples."""
    random = np.random.default_rng(3)
    weights, nodes, current = [], [], "x"
    for at, (n_in, n_out, stride) in enumerate(LAYERS):
        kernel = random.standard_normal((n_out, n_in, 3, 3)) * (2 / (9 * n_in)) ** 0.5
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{at}"))
        conv = helper.make_node(
            "Conv", [current, f"w{at}"], [f"c{at}"], f"conv{at}", pads=[1] * 4, strides=[stride] * 2
        )
        nodes += [conv, helper.make_node("Relu", [f"c{at}"], [f"r{at}"], f"relu{at}")]
        current = f"r{at}"
    nodes.append(helper.make_node("Flatten", [current], ["f"], "flat"))
    n_features = LAYERS[-1][1] * 36
    x, labels = samples(120, 7)
    body = onnxruntime.InferenceSession(_model(nodes, weights, ("f", n_features)).SerializeToString())
    features = np.concatenate([body.run(None, {"x": one[None]})[0] for one in x])
    wanted = np.eye(N_CLASSES)[labels] - 1 / N_CLASSES
    inner = features @ features.T + 0.1 * np.trace(features @ features.T) / len(x) * np.eye(len(x))
    fitted = 8 * features.T @ np.linalg.solve(inner, wanted)
    weights.append(numpy_helper.from_array(fitted.astype(np.float32), "wf"))
    nodes.append(helper.make_node("MatMul", ["f", "wf"], ["y"], "last"))
    onnx.save(_model(nodes, weights, ("y", N_CLASSES)), str(path))
    return path


def _model(nodes: list, weights: list, output: tuple[str, int]) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
        helper.make_tensor_value_info(output[0], TensorProto.FLOAT, (1, output[1])),
    ]
    made = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


LINK = """title = "a thin line"
rtt_s = 0.005
[up]
p5_bps = 100000
p25_bps = 100000
median_bps = 100000
p75_bps = 100000
p95_bps = 100000
[down]
p5_bps = 1000000
p25_bps = 1000000
median_bps = 1000000
p75_bps = 1000000
p95_bps = 1000000
"""
"""Over it the input takes two seconds, as a small picture a tenth."""


@dataclass
class SlowBySize:
    """A slow device, or a gateway a hundred times as fast, by whose word a model takes as long as its file is large."""

    told: DeviceTold
    s_per_byte: float
    power: Power = GENERIC_POWER
    asked: list[int] = field(default_factory=list)

    def __call__(self, models: Sequence[Path], feeds: Feeds) -> list[Timing]:
        self.asked.append(len(models))
        seconds = [self.s_per_byte * path.stat().st_size for path in models]
        return [Timing(p50_s=each, p95_s=each, low_s=each, n=9) for each in seconds]

    def memory_bytes(self, model: Path, feeds: Feeds) -> int:
        return 2 * model.stat().st_size

    def close(self) -> None:
        """Holds nothing."""


def slow_device(job: Job) -> SlowBySize:
    """By whose word the whole net takes half a second on the device."""
    is_gateway = job.device == THIS
    told = DeviceTold(name=job.device, kind="by size", factor=1, threads=1)
    return SlowBySize(told=told, s_per_byte=1e-8 if is_gateway else 1e-6)


def steady(patch: pytest.MonkeyPatch) -> None:
    """Every encoding and decoding takes as long as any other, whatever else this machine does meanwhile."""
    counted = itertools.count()

    def now_s() -> float:
        return 5e-5 * next(counted)

    patch.setattr("hybrid.compress.splits.heads.perf_counter", now_s)
    for room in ("trial", "split_trial"):
        patch.setattr(f"hybrid.calibration.{room}.time", SimpleNamespace(perf_counter=now_s))
