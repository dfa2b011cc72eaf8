"""A torch module as a TensorFlow Lite file, by litert-torch: named as the module's user names things, and checked.

Design: litert-torch (the successor of ai-edge-torch; no TensorFlow in it) keeps torch's layout, so that inputs and
outputs have the shapes of the ONNX export, batch of the example. It names tensors after its own signature; a variant of
an artifact must be asked by the model's own names, so the tensors are renamed in the file, before anything quantizes it
(the quantizer writes weights behind the flatbuffer, where a rewritten file would no longer find them).
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from compression.errors import NotExportable
from compression.measuring import Feeds
from compression.tflite.runtimes import answers

if TYPE_CHECKING:
    from torch import nn

TOLERANCE: Final = 1e-3
"""Largest difference to the module, as a share of an output's largest value: other kernels, other order of sums."""

EXTRA: Final = "pip install 'hybrid-split[tflite-export]' (on a build machine: 1 GB)"


def export(module: "nn.Module", example: Feeds, output_names: Sequence[str]) -> bytes:
    """The module as a TensorFlow Lite file for the example's shapes.

    Args:
        module: in evaluation mode; takes the example's arrays in their order, gives a tensor or a tuple of them.
        example: one request by input name; its batch is the file's.
        output_names: one for each output.

    Raises:
        NotExportable: litert-torch is not installed, cannot convert the module, or what it wrote answers otherwise.
    """
    import torch

    converter = _imported("litert_torch")
    module = module.eval()
    given = tuple(torch.from_numpy(np.array(array)) for array in example.values())
    with torch.no_grad():
        wanted = module(*given)
    references = [tensor.numpy() for tensor in (wanted if isinstance(wanted, tuple | list) else (wanted,))]
    if len(references) != len(output_names):
        raise NotExportable(f"the module gives {len(references)} outputs, {len(output_names)} names are given for them")
    try:
        with quiet():
            written = bytes(converter.convert(module, given).model_content())
    except Exception as exc:
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise NotExportable(f"litert-torch cannot convert the module: {first[:300]}") from exc
    named = renamed(written, list(example), list(output_names))
    found = answers(named, [example], list(output_names))[0]
    for name, got, reference in zip(output_names, found, references, strict=True):
        apart = float(np.abs(got.astype(np.float64) - reference).max(initial=0.0))
        most = float(np.abs(reference).max(initial=0.0))
        if got.shape != reference.shape or not apart <= TOLERANCE * max(most, 1e-6):
            raise NotExportable(
                f"output {name!r} of the exported file is {apart:.3g} away from the module's (largest value "
                f"{most:.3g}, {TOLERANCE:g} of it is allowed): something in it may depend on training mode or on chance"
            )
    return named


def renamed(model: bytes, input_names: Sequence[str], output_names: Sequence[str]) -> bytes:
    """The same file whose inputs and outputs are called so, in the order of its signature.

    Raises:
        NotExportable: other numbers of them, or no schema here.
    """
    import flatbuffers

    generated = _imported("ai_edge_litert.schema_py_generated")
    found = generated.ModelT.InitFromPackedBuf(bytearray(model), 0)
    graph = found.subgraphs[0]
    for ports, names, what in ((graph.inputs, input_names, "inputs"), (graph.outputs, output_names, "outputs")):
        if len(ports) != len(names):
            raise NotExportable(f"the exported file has {len(ports)} {what}, {len(names)} names are given for them")
    if any(buffer.offset > 1 for buffer in found.buffers):
        raise NotExportable("weights lie behind the flatbuffer; rename a file before it is quantized")
    indices = [int(index) for index in (*graph.inputs, *graph.outputs)]
    if len(set(indices)) != len(indices):
        raise NotExportable("an output is an input, or given twice: it cannot have two names in a TensorFlow Lite file")
    wanted = dict(zip(indices, (*input_names, *output_names), strict=True))
    taken = set(wanted.values())
    for index, tensor in enumerate(graph.tensors):
        name = tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name or ""
        tensor.name = wanted.get(index, f"{name}#{index}" if name in taken else name)
    builder = flatbuffers.Builder(len(model) + (1 << 16))
    builder.Finish(found.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what these libraries print (progress, summaries, absl's log) off stdout and stderr, ours included.

    stdout is a command's result here. The file descriptors are turned away as well, since much is written by C++.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    level = logging.root.manager.disable
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123  (a device, not a file)
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        logging.disable(logging.CRITICAL)
        try:
            with (
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _imported(name: str) -> Any:
    try:
        with quiet():
            return import_module(name)
    except ImportError as exc:
        raise NotExportable(f"{name.partition('.')[0]} is needed and not usable here ({exc}); {EXTRA}") from exc
