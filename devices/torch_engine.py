"""Models on torch: an ONNX file is converted once, held against onnxruntime, and runs on a CUDA device from then on.

Design: the converter is onnx2pytorch (read and tried: 0.6.0 of 2026 converted twelve tails of six real models with
differences up to 4e-6; onnx2torch had its last change in 2024 and lacks many operators; torch itself reads no ONNX).
Whatever it cannot convert, or converts to something else, is refused here, so that onnxruntime runs it. A run cannot be
ended in its middle. On a CPU torch took 10 to 100 times as long as onnxruntime, so that only CUDA is offered.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from devices.errors import DeviceError, OperatorUnsupported
from devices.onnx_engine import Port, open_session, ports

TOLERANCE: Final = 1e-4
"""Largest difference to onnxruntime, as a share of the output's largest value."""

_NUMPY_OF: Final = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8,
}  # fmt: skip


def torch_reason() -> str:
    """Why torch cannot run models here; empty where it can."""
    missing = [name for name in ("torch", "torchvision", "onnx2pytorch") if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed; install hybrid-split[torch]"
    if not import_module("torch").cuda.is_available():
        return "torch finds no CUDA device"
    return ""


class TorchSession:
    """An open model with as much of onnxruntime's face as serving uses.

    Args:
        path: the model file; external data lie beside it.
        device: torch's name of the device, such as `cuda:0`.

    Raises:
        OperatorUnsupported: the converter cannot, or its model gives other numbers than onnxruntime.
        DeviceError: onnxruntime cannot open the file either.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._torch = torch = import_module("torch")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = device
        self._lock = Lock()
        reference = _reference(path)
        self._inputs, self._outputs = ports(reference)
        try:
            self._net = import_module("onnx2pytorch").ConvertModel(import_module("onnx").load(str(path)))
            self._net.eval().to(device)
        except Exception as exc:
            raise OperatorUnsupported(
                f"{path.name} cannot be converted to torch ({_first_line(exc)}); run it on onnxruntime", path=str(path)
            ) from exc
        self._check(reference, path)

    def get_inputs(self) -> list[Port]:
        """What goes in."""
        return list(self._inputs)

    def get_outputs(self) -> list[Port]:
        """What comes out."""
        return list(self._outputs)

    def get_providers(self) -> list[str]:
        """Where it runs."""
        return [f"torch:{self._device}"]

    def run(
        self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray], options: Any = None
    ) -> list[np.ndarray]:
        """The named outputs (all when None). `options.terminate` is looked at before the run only."""
        torch = self._torch
        with self._lock, torch.inference_mode():
            if options is not None and options.terminate:
                raise DeviceError("the run was terminated before it began")
            given = [torch.from_numpy(_writable(feeds[port.name])).to(self._device) for port in self._inputs]
            found = self._net(*given)
        many = found if isinstance(found, list | tuple) else [found]
        by_name = dict(zip((port.name for port in self._outputs), many, strict=True))
        wanted = names or list(by_name)
        return [np.ascontiguousarray(by_name[name].detach().cpu().numpy()) for name in wanted]

    def _check(self, reference: ort.InferenceSession, path: Path) -> None:
        """See that both engines give the same for made-up inputs; also warms the device up."""
        feeds = _made_up(self._inputs)
        try:
            wanted = reference.run(None, feeds)
        except Exception as exc:
            raise OperatorUnsupported(
                f"{path.name} does not run on made-up inputs, so that nothing can be said of it on torch",
                path=str(path),
            ) from exc
        try:
            pairs = zip(wanted, self.run(None, feeds), strict=True)
            differs = not all(_equal(mine, theirs) for mine, theirs in pairs)
        except Exception as exc:
            raise OperatorUnsupported(f"{path.name} fails on torch ({_first_line(exc)})", path=str(path)) from exc
        if differs:
            raise OperatorUnsupported(
                f"{path.name} gives other numbers on torch than on onnxruntime; it runs on the latter", path=str(path)
            )


def _reference(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = open_session(path, options, ["CPUExecutionProvider"])
    strange = [node.type for node in (*session.get_inputs(), *session.get_outputs()) if node.type not in _NUMPY_OF]
    if strange:
        raise OperatorUnsupported(f"{path.name} has {strange[0]}, which torch does not take", path=str(path))
    return session


def _made_up(inputs: Sequence[Port]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for port in inputs:
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        kind = _NUMPY_OF[port.type]
        values = random.random(shape) if np.issubdtype(kind, np.floating) else np.ones(shape)
        feeds[port.name] = np.asarray(values).astype(kind)
    return feeds


def _equal(mine: np.ndarray, theirs: np.ndarray) -> bool:
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    scale = max(1e-6, float(np.max(np.abs(mine.astype(np.float64)), initial=0.0)))
    return bool(np.allclose(mine.astype(np.float64), theirs.astype(np.float64), rtol=0, atol=TOLERANCE * scale))


def _writable(array: np.ndarray) -> np.ndarray:
    """Torch wants to be able to write to what it is given; received buffers are read-only."""
    return np.ascontiguousarray(array) if array.flags.writeable else array.copy()


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
