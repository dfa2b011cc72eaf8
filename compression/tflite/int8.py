"""TensorFlow Lite files in 8 bits, by litert-quantizer: weights and activations, or weights alone.

Design: inputs and outputs stay float, so that every form of a model is asked the same way; the engine quantizes them
at its edge. The quantizer calls what it adds there `NAME_dequant`; the name is shortened in place, since the weights of
its files lie behind the flatbuffer, where a file that is packed again would not find them. 16-bit activations were
measured to cost 40 times float (reference kernels) and are not offered.
"""

import struct
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, Literal

import numpy as np

from compression.errors import NotExportable, NotQuantizable
from compression.measuring import Feeds
from compression.tflite.export import EXTRA, quiet

Kind = Literal["int8", "dynamic"]
"""`int8`: weights and activations. `dynamic`: weights; activations are quantized anew in every run."""

LEAST_SAMPLES: Final = 8
_SIGNATURE: Final = "serving_default"
_ADDED: Final = b"_dequant"
_OTHER: Final = b"~"
"""Takes the last letter's place in the name of a tensor that is no output any more."""


def quantized(model: bytes, samples: Sequence[Feeds], kind: Kind) -> bytes:
    """A quantized form of a float file.

    Args:
        model: as `export` writes it, with one signature.
        samples: requests by input name, of the file's shapes; ranges are taken from them, none for `dynamic`.
        kind: which form.

    Raises:
        NotExportable: litert-quantizer is not installed.
        NotQuantizable: too few samples, samples of other inputs, or a graph that it cannot quantize.
    """
    if kind == "int8" and len(samples) < LEAST_SAMPLES:
        raise NotQuantizable(f"{len(samples)} samples to take ranges from; at least {LEAST_SAMPLES} are wanted")
    try:
        with quiet():
            recipes = import_module("litert_quantizer.recipe")
            quantizers = import_module("litert_quantizer.quantizer")
    except ImportError as exc:
        raise NotExportable(f"litert-quantizer is needed and not installed ({exc}); {EXTRA}") from exc
    try:
        with quiet():
            return _quantized(model, samples, kind, recipes, quantizers)
    except (NotQuantizable, NotExportable):
        raise
    except Exception as exc:
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise NotQuantizable(f"litert-quantizer cannot quantize the model ({kind}): {first[:300]}") from exc


def _quantized(model: bytes, samples: Sequence[Feeds], kind: Kind, recipes: Any, quantizers: Any) -> bytes:
    recipe = recipes.static_wi8_ai8() if kind == "int8" else recipes.dynamic_wi8_afp32()
    quantizer = quantizers.Quantizer(model, recipe)
    if kind == "dynamic":
        return bytes(quantizer.quantize(enable_progress_report=False).quantized_model)
    operation = import_module("litert_quantizer.qtyping").TFLOperationName
    for edge in (operation.INPUT, operation.OUTPUT):
        quantizer.update_quantization_recipe(regex=".*", operation_name=edge, algorithm_key="no_quantize")
    signature, inputs = _signature(model)
    missing = set(inputs) - set(samples[0])
    if missing:
        raise NotQuantizable(f"the samples lack input {min(missing)!r}; they have {', '.join(sorted(samples[0]))}")
    fed = [{inputs[name]: np.ascontiguousarray(feeds[name]) for name in inputs} for feeds in samples]
    ranges = quantizer.calibrate({signature: fed}, num_threads=1)
    return _own_names(bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model))


def _own_names(model: bytes) -> bytes:
    """The file whose outputs are called as before: what was between the name and the output gives the name up."""
    generated = import_module("ai_edge_litert.schema_py_generated")
    graph = generated.ModelT.InitFromPackedBuf(bytearray(model), 0).subgraphs[0]
    for index in graph.outputs:
        name = _bytes(graph.tensors[index].name)
        own = name.removesuffix(_ADDED)
        if name != own:
            model = _put_string(model, own, own[:-1] + _OTHER)
            model = _put_string(model, name, own)
    return model


def _put_string(model: bytes, there: bytes, wanted: bytes) -> bytes:
    """Another string, not longer, in the place of one. A flatbuffer's string is its length, its bytes, and a zero."""
    found = struct.pack("<I", len(there)) + there + b"\0"
    if model.count(found) != 1:
        raise NotQuantizable(f"the quantized file says {there.decode()!r} {model.count(found)} times, once is wanted")
    return model.replace(found, (struct.pack("<I", len(wanted)) + wanted).ljust(len(found), b"\0"))


def _signature(model: bytes) -> tuple[str, dict[str, str]]:
    """The signature's key, and what it calls each input, by the tensor's name."""
    generated = import_module("ai_edge_litert.schema_py_generated")
    found = generated.ModelT.InitFromPackedBuf(bytearray(model), 0)
    signature = (found.signatureDefs or [None])[0]
    if signature is None:
        raise NotQuantizable("the file has no signature; export it again")
    tensors = found.subgraphs[signature.subgraphIndex].tensors
    names = {_text(tensors[port.tensorIndex].name): _text(port.name) for port in signature.inputs}
    return _text(signature.signatureKey) or _SIGNATURE, names


def _bytes(name: bytes | str | None) -> bytes:
    return name.encode() if isinstance(name, str) else name or b""


def _text(name: bytes | str | None) -> str:
    return _bytes(name).decode()
