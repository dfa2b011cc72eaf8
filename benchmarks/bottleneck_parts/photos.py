"""A task at 224x224 without labelled data: crops of photos that packages carry, answered as EfficientNet-Lite0 does.

The net has its trained ImageNet weights (tests/zoo.py); what is right is its own first class of the uncompressed crop,
for crops where it gives that class at least `LEAST_SHARE`. Training takes one half of each photo, the test the other.
"""

from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tests import zoo

NAMES: Final = (
    "astronaut.png", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png", "brick.png", "gravel.png", "coins.png",
    "camera.png", "moon.png", "color.png", "page.png", "cell.png", "chelsea.png", "coffee.png", "rocket.jpg",
    "retina.jpg", "grass.png", "text.png",
)  # fmt: skip
SIDE: Final = 224
LEAST_SHARE: Final = 0.3


def crops(n: int, seed: int, *, first_half: bool) -> np.ndarray:
    """Square parts of one half of each photo, a fifth of its area to all of it: uint8 (n, 224, 224, 3).

    Those of first halves are for training: every second has a part of another in it, and light and colour change.
    """
    rng = np.random.default_rng(seed)
    halves = [_half(Image.open(zoo.photo(name)).convert("RGB"), first=first_half) for name in NAMES]
    found = [_crop(halves[at % len(halves)], rng) for at in range(n)]
    if not first_half:
        return np.stack(found)
    for at in range(1, n, 2):
        top, left, height, width = (
            rng.integers(0, SIDE // 2, 2).tolist() + rng.integers(SIDE // 4, SIDE // 2, 2).tolist()
        )
        other = found[int(rng.integers(0, n))]
        found[at] = found[at].copy()
        found[at][top : top + height, left : left + width] = other[top : top + height, left : left + width]
    contrast, light = rng.uniform(0.7, 1.3, (n, 1, 1, 1)), rng.uniform(-25, 25, (n, 1, 1, 3))
    return np.stack(
        [
            np.clip((one - 127.5) * c + 127.5 + b, 0, 255).astype(np.uint8)
            for one, c, b in zip(found, contrast, light, strict=True)
        ]
    )


def _half(photo: Image.Image, *, first: bool) -> Image.Image:
    """The left or upper half of a photo, or the other."""
    width, height = photo.size
    if width >= height:
        return photo.crop((0, 0, width // 2, height) if first else (width // 2, 0, width, height))
    return photo.crop((0, 0, width, height // 2) if first else (0, height // 2, width, height))


def _crop(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    width, height = photo.size
    side = min(width, height) * float(np.sqrt(rng.uniform(0.2, 1)))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    box = (left, top, left + side, top + side)
    crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


def as_input(pictures: np.ndarray) -> np.ndarray:
    """What the net takes: float32 (n, 3, 224, 224)."""
    return np.ascontiguousarray(((pictures.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2))


def net() -> onnx.ModelProto:
    """EfficientNet-Lite0 for any number of images."""
    model = onnx.load(zoo.efficientnet())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return model


def head(model: onnx.ModelProto, cut: str) -> onnx.ModelProto:
    """From the image to one tensor."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    last = [node.output[0] for node in made.graph.node].index(cut)
    del made.graph.node[last + 1 :], made.graph.output[:]
    read = {name for node in made.graph.node for name in node.input}
    weights = [tensor for tensor in made.graph.initializer if tensor.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(weights)
    made.graph.output.append(onnx.ValueInfoProto(name=cut))
    made.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return made


class Tail(nn.Module):
    """The net behind a tensor in torch; `cut` is the submodule that passes the tensor on."""

    def __init__(self, model: onnx.ModelProto, cut: str) -> None:
        super().__init__()
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        first = [node.output[0] for node in model.graph.node].index(cut) + 1
        self._name, self._nodes = cut, list(model.graph.node)[first:]
        self.cut = nn.Identity()
        self.weights = nn.ParameterDict()
        self.sums = nn.ModuleDict()
        for node in self._nodes:
            for name in node.input:
                if name in weights:
                    self.weights[_word(name)] = nn.Parameter(torch.from_numpy(np.array(weights[name])))
            if node.op_type in ("Add", "GlobalAveragePool"):
                self.sums[_word(node.output[0])] = nn.Identity()

    def forward(self, crossing: Tensor) -> Tensor:
        """The tensor to logits (n, 1000)."""
        seen = {self._name: self.cut(crossing).contiguous(memory_format=torch.channels_last)}
        made: Tensor = crossing
        for node in self._nodes:
            made = self._run(node, [seen.get(name) for name in node.input], [_word(name) for name in node.input])
            name = _word(node.output[0])
            seen[node.output[0]] = made = self.sums[name](made) if name in self.sums else made
        return made

    def _run(self, node: onnx.NodeProto, inputs: list[Tensor | None], words: list[str]) -> Tensor:
        x = inputs[0]
        assert x is not None
        if node.op_type == "Conv":
            given: dict[str, Any] = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            weight, bias = self.weights[words[1]], self.weights[words[2]]
            stride, size = given["strides"][0], weight.shape[2]
            total = max((-(-x.shape[2] // stride) - 1) * stride + size - x.shape[2], 0)
            before, behind = total // 2, total - total // 2
            if before == behind:
                return functional.conv2d(x, weight, bias, stride, before, groups=given["group"])
            padded = functional.pad(x, (before, behind, before, behind))
            return functional.conv2d(padded, weight, bias, stride, groups=given["group"])
        if node.op_type == "Clip":
            return x.clamp(0, 6)
        if node.op_type == "Add":
            assert inputs[1] is not None
            return x + inputs[1]
        if node.op_type == "GlobalAveragePool":
            return x.mean((2, 3), keepdim=True)
        if node.op_type == "Flatten":
            return x.flatten(1)
        assert node.op_type == "Gemm", node.op_type
        return functional.linear(x, self.weights[words[1]], self.weights[words[2]])


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """An engine of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def answers(engine: onnxruntime.InferenceSession, values: np.ndarray, batch: int = 16) -> np.ndarray:
    """The engine's first output for all rows."""
    name = engine.get_inputs()[0].name
    parts = [engine.run(None, {name: values[at : at + batch]})[0] for at in range(0, len(values), batch)]
    found: np.ndarray = np.concatenate(parts)
    return found


def _word(name: str) -> str:
    return name.replace(".", "_")
