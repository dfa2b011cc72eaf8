"""Open a model as with onnxruntime; every request is computed on the device, on a gateway, or split between both.

Design: names are loaded when they are first touched (PEP 562), so that `import hybrid` costs less than the engine it
stands for, and a program that only reads an artifact or asks for a cut never pays for sessions.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import RunOptions, SessionOptions

    from hybrid.errors import HybridError
    from hybrid.schedule.options import Options
    from hybrid.schedule.prospect import Candidate
    from hybrid.session.inference import InferenceSession
    from hybrid.session.report import RunReport

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "HybridError",
    "InferenceSession",
    "Options",
    "RunOptions",
    "RunReport",
    "SessionOptions",
    "__version__",
]

_HOME = {
    "Candidate": "hybrid.schedule.prospect",
    "HybridError": "hybrid.errors",
    "InferenceSession": "hybrid.session.inference",
    "Options": "hybrid.schedule.options",
    "RunOptions": "onnxruntime",
    "RunReport": "hybrid.session.report",
    "SessionOptions": "onnxruntime",
}
"""The module in which each public name lives."""

if not TYPE_CHECKING:  # a type checker would take it for any name at all

    def __getattr__(name: str) -> object:
        """Load a public name, or a submodule, at its first use."""
        if name == "errors":
            return import_module("hybrid.errors")
        if name not in _HOME:
            raise AttributeError(f"module 'hybrid' has no attribute {name!r}; it has {', '.join(__all__)}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
