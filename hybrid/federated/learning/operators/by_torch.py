"""Operators that torch computes, called as those of numpy are: arrays in, an array and a way back for gradients out.

Design: each operator is a small graph of its own, whose gradient torch finds; between operators all is numpy's. So a
model that needs torch for its convolutions alone is the same program, and training may stand still between any two.
torch is loaded by the first that needs it, its library before and without the interpreter's lock, since else requests
would wait for that (0.3 s).
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from hybrid.errors import ModelUntrainable
from hybrid.federated.learning.operators.call import INSTALL_TORCH, Call, Gradients, Operator, Pull

Tensors = Sequence[Any]
Compute = Callable[[Call, Tensors], Any]
"""From a call and its inputs as tensors (None where an optional one is left out) to the answer, a tensor."""

_LIBRARY: Final = "libtorch_cpu.so"


def is_here() -> bool:
    """Whether torch is installed; it is not loaded."""
    return find_spec("torch") is not None


@cache
def loaded() -> Any:
    """The module torch. Raises `ModelUntrainable` where it is not installed."""
    spec = find_spec("torch")
    if spec is None:
        raise ModelUntrainable(f"this model learns with torch, which is not installed here: {INSTALL_TORCH}")
    for folder in spec.submodule_search_locations or ():
        _load_library(Path(folder) / "lib" / _LIBRARY)
    import torch

    return torch


def _load_library(path: Path) -> None:
    """A call through ctypes lets other threads run, which an import does not; where it fails, the import does it."""
    if path.is_file():
        with suppress(OSError, AttributeError, TypeError):
            load = ctypes.CDLL(None).dlopen
            load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
            load(os.fsencode(path), os.RTLD_NOW | os.RTLD_LOCAL)


@contextmanager
def one_thread() -> Iterator[None]:
    """While the block runs, torch computes in the calling thread alone."""
    torch = loaded()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def by_torch(compute: Compute) -> Operator:
    """An operator of what torch computes; its gradient is torch's."""

    def operator(call: Call) -> tuple[np.ndarray, Pull]:
        torch = loaded()
        tensors: list[Any] = [None if array is None else _tensor(torch, array) for array in call.arrays]
        wanted = [at for at, is_needed in enumerate(call.needs) if is_needed and tensors[at] is not None]
        for at in wanted:
            tensors[at].requires_grad_()
        with one_thread(), torch.set_grad_enabled(bool(wanted)):
            try:
                answer = compute(call, tensors)
            except RuntimeError as exc:  # what torch says of shapes that do not fit
                raise ValueError(str(exc).splitlines()[0][:200]) from exc

        def pull(g: np.ndarray) -> Gradients:
            with one_thread():  # of a number: given a tensor to begin with, torch loads sympy first, for a second
                whole = torch.dot(answer.reshape(-1), _tensor(torch, g).reshape(-1))
                found = torch.autograd.grad(whole, [tensors[at] for at in wanted], allow_unused=True)
            parts: list[np.ndarray | None] = [None] * len(tensors)
            for at, part in zip(wanted, found, strict=True):
                parts[at] = None if part is None else part.numpy()
            return parts

        return answer.detach().numpy(), pull

    return operator


def _tensor(torch: Any, array: np.ndarray) -> Any:
    """The same memory; copied where torch could not have it as it is."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(np.ascontiguousarray(array) if array.dtype.kind == "f" else array)
