"""How much memory of a CUDA device is free, asked of CUDA's own runtime library."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

_NAMES: Final = ("libcudart.so.12", "libcudart.so.13", "libcudart.so")


def gpu_memory(device_id: int = 0) -> tuple[int, int] | None:
    """Free and total bytes of the device; None without CUDA, or where it does not answer."""
    runtime = _runtime()
    if runtime is None:
        return None
    free, total, before = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_int()
    if runtime.cudaGetDevice(ctypes.byref(before)) or runtime.cudaSetDevice(device_id):
        return None
    failed = runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    runtime.cudaSetDevice(before.value)
    return None if failed else (free.value, total.value)


@cache
def _runtime() -> Any:
    for name in (*_installed(), *_NAMES):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _installed() -> list[str]:
    """The library where NVIDIA's Python package for it was installed."""
    found = find_spec("nvidia") and find_spec("nvidia.cuda_runtime")
    roots = (found.submodule_search_locations or []) if found else []
    return [str(path) for root in roots for path in sorted(Path(root, "lib").glob("libcudart.so.*"))]
