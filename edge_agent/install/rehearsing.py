"""The process of a rehearsal: limits first, then the engine, the model, one run, and a line of JSON about it."""

import contextlib
import ctypes
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.install.rehearsal import Piece, Review

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_POLITENESS: Final = 5


def main() -> int:
    """Read a `Piece` from standard input, write a `Review` to standard output."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # engines print; standard output carries the answer alone
    piece = msgspec.json.decode(sys.stdin.buffer.read(), type=Piece)
    _limit(piece)
    parent = os.getppid()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    review = play(piece)
    with os.fdopen(answer_to, "wb") as answer:
        answer.write(msgspec.json.encode(review))
    return 0


def play(piece: Piece) -> Review:
    """Open the model, run it, compare."""
    from hybrid.errors import HybridError

    try:
        _play(piece)
    except HybridError as exc:
        return Review(code=exc.code, detail=str(exc)[:500])
    except MemoryError:
        return Review(
            code="engine_crashed", detail=f"{piece.name} needs more than {piece.memory_bytes} bytes of memory"
        )
    return Review()


def _play(piece: Piece) -> None:
    from edge_agent.install.golden import compare, golden_arrays
    from hybrid.artifact.digest import files_of_model
    from hybrid.serving.engines.model_facts import facts_of
    from hybrid.serving.engines.opening import EngineSettings, open_engine

    path = Path(piece.model)
    if piece.engine in ("onnxruntime", "tflite-head"):
        files_of_model(path)  # an engine may follow external data out of the model's folder: refused here
    session = open_engine(path, EngineSettings(n_intra_threads=1), facts_of(path))
    if not piece.inputs:
        _run_anything(session)
        return
    feeds = golden_arrays(Path.read_bytes, Path("/"), piece.inputs)
    golden = golden_arrays(Path.read_bytes, Path("/"), piece.outputs)
    session.check(feeds)
    names = [name for name in golden if name in session.output_names]
    found = dict(zip(names, session.run(feeds, names), strict=True))
    compare(found, golden, piece.tolerance, piece.name)


def _run_anything(session: Any) -> None:
    """Without golden inputs ones will do: whether they suit the model nobody knows, but they must not crash it."""
    import numpy as np

    from compression.tensor import BYTES, NUMPY_OF
    from hybrid.errors import EngineFailed

    if any(spec.dtype == BYTES for spec in session.signature.inputs):
        return
    feeds = {
        spec.name: np.ones([1 if size is None else size for size in spec.shape], NUMPY_OF[spec.dtype])
        for spec in session.signature.inputs
    }
    if sum(array.nbytes for array in feeds.values()) > 1 << 28:
        return
    with contextlib.suppress(EngineFailed):
        session.run(feeds)


def _limit(piece: Piece) -> None:
    """Memory, time, no core dump, no network where the kernel lets a process give it up."""
    if piece.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (piece.memory_bytes, piece.memory_bytes))
    if piece.cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (piece.cpu_s, piece.cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_POLITENESS)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _end_with_parent(parent: int) -> None:
    """An agent that was killed leaves no process behind."""
    waiting = threading.Event()
    while not waiting.wait(1.0):
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
