"""Torch modules written as ONNX, held against the module's own answers in onnxruntime.

Design: the batch stays free where the module allows it, else it is the example's. Nothing of the machine that exported
is left in the file (paths of sources, traces), so the same module gives the same bytes.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch

from compression.errors import CompressionError, NotExportable
from compression.training.answering import arguments, evaluating, outputs_of

TOLERANCE: Final = 1e-4
"""Largest error of an answer, relative to the largest absolute value of its tensor."""

_LOGGERS: Final = (
    "torch", "torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch.onnx", "torch.__trace", "onnxscript",
    "onnx_ir",
)  # fmt: skip
_BATCH: Final = "batch"


def export(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], output_names: Sequence[str] = ()
) -> onnx.ModelProto:
    """The module in evaluation mode as an ONNX model, normalisations folded into convolutions.

    Args:
        module: left as it is.
        example: the inputs of two or more samples by name, in the order of the module's arguments; a batch that cannot
            be free is the example's.
        output_names: empty: `output`, or `output_0`, `output_1`, ...

    Raises:
        NotExportable: torch cannot write it, or what it wrote answers otherwise; with the reason.
    """
    return exported(module, example, output_names)[0]


def exported(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], output_names: Sequence[str] = ()
) -> tuple[onnx.ModelProto, torch.fx.GraphModule]:
    """As `export`, with the graph of torch that it was written from: its values have the same names.

    Raises:
        NotExportable: as `export` does.
    """
    with evaluating(module):
        outputs = _outputs(module, example)
        names = tuple(output_names) or default_names(len(outputs))
        if len(names) != len(outputs):
            raise NotExportable(f"{len(names)} output names for {len(outputs)} outputs; give one an output")
        reasons = []
        for free in (True, False):
            try:
                model, graph = _written(module, example, names, free=free)
                _require_same(module, model, example, free=free)
            except NotExportable as error:
                reasons.append(str(error))
            else:
                return model, graph
    raise NotExportable(reasons[-1])


def captured(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.fx.GraphModule:
    """The module in evaluation mode as a graph of torch, its batch free where it can be.

    Raises:
        NotExportable: torch cannot follow what the module does.
    """
    with evaluating(module), _quiet():
        with suppress(Exception):  # whatever forbids a free batch, torch says it again where it forbids any
            return torch.export.export(module, given, dynamic_shapes=_shapes(given, free=True)).module()
        try:
            return torch.export.export(module, given).module()
        except Exception as error:
            raise NotExportable(f"torch cannot follow what this module does: {_reason(error)}") from error


def _shapes(given: tuple[torch.Tensor, ...], *, free: bool) -> tuple[dict[int, object], ...] | None:
    batch = torch.export.Dim(_BATCH)  # one for all inputs
    return tuple({0: batch} for _ in given) if free else None


def default_names(n_outputs: int) -> tuple[str, ...]:
    """What outputs are called that nobody named."""
    return ("output",) if n_outputs == 1 else tuple(f"output_{at}" for at in range(n_outputs))


def _written(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], names: tuple[str, ...], *, free: bool
) -> tuple[onnx.ModelProto, torch.fx.GraphModule]:
    given = arguments(module, example, slice(None))
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                given,
                dynamo=True,
                input_names=list(example),
                output_names=list(names),
                dynamic_shapes=_shapes(given, free=free),
                external_data=False,
                verbose=False,
            )
            assert program is not None
            assert program.exported_program is not None
            graph = program.exported_program.module()
    except Exception as error:
        raise NotExportable(f"torch cannot write this module as ONNX: {_reason(error)}") from error
    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    _strip(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise NotExportable(f"torch wrote an invalid model: {error}") from error
    return model, graph


def _outputs(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return [one.cpu().numpy() for one in outputs_of(module(*arguments(module, example, slice(None))))]
    except CompressionError as error:
        raise NotExportable(str(error)) from error
    except Exception as error:
        raise NotExportable(f"the module does not take the example: {_reason(error)}") from error


def _require_same(
    module: torch.nn.Module, model: onnx.ModelProto, example: Mapping[str, np.ndarray], *, free: bool
) -> None:
    """Holds the written model against the module: all samples, and with a free batch the first alone too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for batch in [slice(None), slice(0, 1)] if free else [slice(None)]:
            feeds = {name: values[batch] for name, values in example.items()}
            seen = session.run(None, feeds)
            for name, mine, wanted in zip(
                [one.name for one in session.get_outputs()], seen, _outputs(module, feeds), strict=True
            ):
                _require_close(name, np.asarray(mine), wanted)
    except NotExportable:
        raise
    except Exception as error:  # onnxruntime raises classes of its own that have no common root
        raise NotExportable(f"onnxruntime does not run what torch wrote: {_reason(error)}") from error


def _require_close(name: str, mine: np.ndarray, wanted: np.ndarray) -> None:
    if mine.shape != wanted.shape or mine.dtype != wanted.dtype:
        raise NotExportable(
            f"output {name!r} is {mine.dtype}{mine.shape} in ONNX, {wanted.dtype}{wanted.shape} in torch"
        )
    if not wanted.size:
        return
    largest = float(np.abs(wanted).max()) or 1.0
    error = float(np.abs(mine.astype(np.float64) - wanted.astype(np.float64)).max()) / largest
    if not error <= TOLERANCE:
        raise NotExportable(
            f"output {name!r} in ONNX is {error:.1e} (relative) off the module's, at most {TOLERANCE:.0e} is right;"
            " does forward() draw random numbers, or depend on more than its arguments?"
        )


def _strip(model: onnx.ModelProto) -> None:
    """Removes what tells of the machine and the sources, and descriptions of values that are no longer there."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    made = {name for node in model.graph.node for name in node.output}
    kept = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for one in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del one.metadata_props[:]
        one.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about packages that are not installed, and its own deprecated calls."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
            warnings.filterwarnings("ignore", message=r".*(LeafSpec|treespec).*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """The innermost message, its first line; torch wraps errors in pages of advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
