"""Engines in a forked child: they stay as they are, since taking one down would wait for threads that are not there.

A fork copies the engine's memory but not its threads. When the child frees the engine (its last reference goes, or the
cycle collector finds it), the engine joins them, for ever, with Python's lock in hand.
"""

import ctypes
import os
from typing import Any
from weakref import WeakSet

_open: "WeakSet[Any]" = WeakSet()


def keep_in_children(engine: Any) -> None:
    """Note an engine that has threads of its own: a forked child never frees it."""
    _open.add(engine)


def _in_child() -> None:
    for engine in list(_open):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
