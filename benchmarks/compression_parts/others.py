"""What other tools make of a trained net: their int8, and Torch-Pruning alone."""

import copy
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from torch import nn

from benchmarks.compression_parts import foreign, tasks


def quantized(model: Path, calibration: Path, folder: Path) -> dict[str, Path]:
    """The int8 form of each tool that works here, by title; one that does not is told on stdout.

    Args:
        model: fp32.
        calibration: an .npz with one array of images, named as the input.
        folder: where they go.
    """
    files = _by_onnxruntime(model, calibration, folder)
    for number, tool in enumerate(foreign.QUANTIZERS):
        out = folder / f"other{number}.onnx"
        try:
            foreign.run(tool, model, calibration, out)
        except foreign.Unavailable as exc:
            print(f"{tool.title}: {exc}", flush=True)
        else:
            files[tool.title] = out
    return files


def _by_onnxruntime(model: Path, calibration: Path, folder: Path) -> dict[str, Path]:
    """onnxruntime's own static quantization, its three ways of finding ranges."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    (name, images), *_ = np.load(calibration).items()

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # (shipped without types)
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {name: image[None]}

    files = {}
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile):
        out = files[f"onnxruntime static, {method.name}"] = folder / f"ort-{method.name}.onnx"
        quantize_static(
            str(model), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=method,
        )  # fmt: skip
    return files


def pruned(net: nn.Module, task: tasks.Task, ratio: float, epochs: int, seed: int) -> nn.Module:
    """So many channels taken away by Torch-Pruning alone, as its own examples do it, and a short training."""
    small = copy.deepcopy(net)
    pruner = torch_pruning.pruner.MetaPruner(
        small, torch.tensor(task.images[:1]), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, global_pruning=True, isomorphic=True, round_to=8, ignored_layers=[small.classify],
    )  # fmt: skip
    pruner.step()
    return tasks.train(small, task, epochs, seed)
