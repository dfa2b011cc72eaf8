"""The search for a model that fits its device, its budget and its cut; what is shipped, and what was tried."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid.compress.job import Job, Watch
    from hybrid.compress.run import Result, compress

_HOMES = {"Job": "job", "Watch": "job", "Result": "run", "compress": "run"}

__all__ = ["Job", "Result", "Watch", "compress"]


def __getattr__(name: str) -> Any:
    """What is named is loaded when it is used: the worker that times is a module of this package, and light."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
