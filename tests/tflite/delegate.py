"""A real delegate of TensorFlow Lite, made of callbacks: it computes one layer, and fails when it is told to.

The layouts are those of LiteRT's stable C headers (common.h): only the fields that are used are named.
"""

import ctypes as c
from typing import Any

import numpy as np

OK, ERROR = 0, 1
_Status = c.c_int


class _Registration(c.Structure):
    _fields_ = [
        ("init", c.c_void_p), ("free", c.c_void_p), ("prepare", c.c_void_p), ("invoke", c.c_void_p),
        ("profiling_string", c.c_void_p), ("builtin_code", c.c_int32), ("custom_name", c.c_char_p),
        ("version", c.c_int), ("external", c.c_void_p), ("async_kernel", c.c_void_p), ("inplace", c.c_uint64),
    ]  # fmt: skip


class _Delegate(c.Structure):
    _fields_ = [
        ("data", c.c_void_p), ("prepare", c.c_void_p), ("copy_from", c.c_void_p), ("copy_to", c.c_void_p),
        ("free_handle", c.c_void_p), ("flags", c.c_int64), ("builder", c.c_void_p),
    ]  # fmt: skip


class _Context(c.Structure):
    _fields_ = [
        ("tensors_size", c.c_size_t), ("execution_plan", c.c_void_p), ("tensors", c.c_void_p), ("impl", c.c_void_p),
        ("resize", c.c_void_p), ("report", c.c_void_p), ("add", c.c_void_p), ("node", c.c_void_p),
        ("replace", c.c_void_p),
    ]  # fmt: skip


class _Tensor(c.Structure):
    _fields_ = [
        ("type", c.c_int), ("data", c.c_void_p), ("dims", c.c_void_p), ("scale", c.c_float), ("zero", c.c_int32),
        ("allocation_type", c.c_int), ("bytes", c.c_size_t), ("allocation", c.c_void_p), ("name", c.c_char_p),
        ("delegate", c.c_void_p), ("handle", c.c_int), ("is_stale", c.c_bool), ("is_variable", c.c_bool),
        ("quantization_type", c.c_int), ("quantization", c.c_void_p), ("sparsity", c.c_void_p),
        ("dims_signature", c.c_void_p),
    ]  # fmt: skip


_Prepare = c.CFUNCTYPE(_Status, c.POINTER(_Context), c.c_void_p)
_Kernel = c.CFUNCTYPE(_Status, c.POINTER(_Context), c.c_void_p)
_Replace = c.CFUNCTYPE(_Status, c.POINTER(_Context), _Registration, c.c_void_p, c.c_void_p)


class LayerDelegate:
    """Computes the only layer of `made.dense`: y = W x, tensors 0 (x) and 2 (y).

    Args:
        weights: W.
        name: what sessions call it.

    Attributes:
        fails_at: "" (works), "open" or "run".
        n_opened: how often a session was opened with it.
        n_runs: how often it computed.
        wrong: what it adds to each answer.
    """

    def __init__(self, weights: np.ndarray, name: str = "npu") -> None:
        self.name = name
        self.fails_at = ""
        self.n_opened = self.n_runs = 0
        self.wrong = 0.0
        self._weights = weights.astype(np.float32)
        self._prepared, self._ready, self._invoked = _Prepare(self._prepare), _Kernel(self._check), _Kernel(self._run)
        self._struct = _Delegate(prepare=c.cast(self._prepared, c.c_void_p))
        self._nodes = (c.c_int * 2)(1, 0)  # TfLiteIntArray: one node, number 0

    def _get_native_delegate_pointer(self) -> int:
        return c.addressof(self._struct)

    def _prepare(self, context: Any, delegate: int) -> int:
        self.n_opened += 1
        if self.fails_at == "open":
            return ERROR
        kernel = _Registration(
            prepare=c.cast(self._ready, c.c_void_p),
            invoke=c.cast(self._invoked, c.c_void_p),
            custom_name=b"Layer",
            version=1,
        )
        return _Replace(context.contents.replace)(context, kernel, c.addressof(self._nodes), delegate)

    def _check(self, _context: Any, _node: int) -> int:
        return OK

    def _run(self, context: Any, _node: int) -> int:
        if self.fails_at == "run":
            return ERROR
        self.n_runs += 1
        n_out, n_in = self._weights.shape
        tensors = c.cast(context.contents.tensors, c.POINTER(_Tensor))
        given = np.ctypeslib.as_array((c.c_float * n_in).from_address(tensors[0].data))
        made = np.ctypeslib.as_array((c.c_float * n_out).from_address(tensors[2].data))
        made[:] = self._weights @ given + np.float32(self.wrong)
        return OK
