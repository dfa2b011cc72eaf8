"""Memory that was freed goes back to the system where the C library can give it back."""

import ctypes
import sys

import pytest

from hybrid.scouting.memory import give_back_unused

N_BLOCKS = 1000
BLOCK_BYTES = 64 * 1024


def test_what_was_freed_is_given_back_once() -> None:
    libc = ctypes.CDLL(None)
    if not sys.platform.startswith("linux") or not hasattr(libc, "gnu_get_libc_version"):
        pytest.skip("only glibc gives freed memory back when it is asked")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    blocks = [libc.malloc(BLOCK_BYTES) for _ in range(N_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    held = blocks.pop()  # the last one keeps the library from giving the others back by itself
    for block in blocks:
        libc.free(block)
    assert give_back_unused() > 0.9 * N_BLOCKS * BLOCK_BYTES
    assert give_back_unused() < 0.1 * N_BLOCKS * BLOCK_BYTES
    libc.free(held)
