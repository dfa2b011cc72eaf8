"""Inputs for TensorFlow Lite models, and small models that tests write themselves."""

from pathlib import Path

import numpy as np

from devices.tflite_details import PORT_TYPES
from devices.tflite_engine import TfliteSession
from hybrid.tflite.model_file import read, schema, write


def feeds_for(session: TfliteSession, seed: int = 0) -> dict[str, np.ndarray]:
    """One request of noise."""
    random = np.random.default_rng(seed)
    feeds = {}
    for port in session.get_inputs():
        kind, shape = PORT_TYPES[port.type], [size or 1 for size in port.shape]
        noise = random.standard_normal(shape) if kind.kind == "f" else random.integers(-100, 100, shape)
        feeds[port.name] = noise.astype(kind)
    return feeds


def voice(session: TfliteSession, n_frames: int = 45) -> list[dict[str, np.ndarray]]:
    """Frames that the wake word does not take for silence, one after the other: its answers rise in the last ones."""
    (port,) = session.get_inputs()
    wave = [127 * np.sin(np.arange(40) / 6 + step / 3) for step in range(n_frames)]
    return [{port.name: np.tile(frame, (1, 3, 1)).astype(np.int8)} for frame in wave]


def with_weights_behind(source: Path, target: Path) -> Path:
    """The same model as writers of large files lay it: weights behind the flatbuffer, found by offset and size."""
    model = read(source)
    for buffer in model.buffers:  # a first pass for the size: 1 stands for "will be filled in"
        buffer.kept = None if buffer.data is None or len(buffer.data) == 0 else bytes(buffer.data)
    for _ in range(2):
        front = _packed(model)
        at = -(-len(front) // 16) * 16
        for buffer in model.buffers:
            if buffer.kept is not None:
                buffer.data, buffer.offset, buffer.size = None, at, len(buffer.kept)
                at += -(-len(buffer.kept) // 16) * 16
    front = _packed(model)
    data = bytearray(front)
    for buffer in model.buffers:
        if buffer.kept is not None:
            data.extend(b"\0" * (buffer.offset - len(data)))
            data.extend(buffer.kept)
    target.write_bytes(bytes(data))
    return target


def _packed(model) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def dense(target: Path, weights: np.ndarray, *, activations: int | None = None, kind: int | None = None) -> Path:
    """One fully connected layer `x -> y`; `activations` and `kind` are types of the schema (float32 without)."""
    generated = schema()
    floats = generated.TensorType.FLOAT32
    model = generated.ModelT()
    model.version = 3
    code = generated.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = generated.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model.operatorCodes = [code]
    empty, held = generated.BufferT(), generated.BufferT()
    held.data = np.frombuffer(weights.tobytes(), np.uint8)
    model.buffers = [empty, held]
    n_out, n_in = weights.shape
    shapes = {"x": (1, n_in), "w": (n_out, n_in), "y": (1, n_out)}
    graph = generated.SubGraphT()
    graph.tensors = []
    for name, shape in shapes.items():
        tensor = generated.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), int(name == "w")
        tensor.type = (
            (floats if kind is None else kind) if name == "w" else floats if activations is None else activations
        )
        if tensor.type != floats:
            tensor.quantization = generated.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.05], [0]
        graph.tensors.append(tensor)
    operator = generated.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = generated.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = generated.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs, graph.name = [operator], [0], [2], "main"
    model.subgraphs = [graph]
    target.write_bytes(write(model))
    return target
