"""Tensors of a message into arrays: refused before anything is decoded, counted, off the event loop, never a fault.

Design: a few bytes may decode to many, so what counts is what comes out: it is held of the same budget as the bodies
are. A decoder may raise whatever it likes on bytes of a stranger; that is the sender's error, and no fault of ours.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from compression.tensor import BYTES
from hybrid.errors import HybridError, Overloaded, TensorMismatch
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.rest.binary_tensor import text_array
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import RAW, Tensor

OFF_LOOP_BYTES = 16 << 10
"""What decodes to more, or encodes more, does so in a thread."""

_TEXT_BYTES = 64
"""Each string becomes an object of at least that size."""

_log = logging.getLogger("hybrid.serving")


def work_bytes(session: EngineSession, request: InferRequest) -> int:
    """Bytes that decoding this request makes: 0 where all its tensors are views of what came.

    Raises:
        TensorMismatch: a tensor that has to be decoded is none that the session takes; the others cost nothing yet.
    """
    n_bytes = 0
    for tensor in request.inputs:
        spec = tensor.spec
        if tensor.codec == RAW and spec.dtype != BYTES:
            continue
        wanted = session.inputs.get(spec.name)
        if wanted is None:
            raise TensorMismatch(f"input {spec.name!r} is given; the model wants exactly {sorted(session.inputs)}")
        fits = wanted.dtype == spec.dtype and len(wanted.shape) == len(spec.shape)
        if not fits or any(a is not None and a != b for a, b in zip(wanted.shape, spec.shape, strict=True)):
            raise TensorMismatch(
                f"input {wanted.name!r} is {spec.dtype} {list(spec.shape)[:8]};"
                f" {wanted.dtype} {list(wanted.shape)} is wanted"
            )
        n_bytes += (spec.n_elements or 0) * _TEXT_BYTES + tensor.n_bytes if spec.dtype == BYTES else spec.n_bytes or 0
    return n_bytes


def feeds_of(request: InferRequest) -> dict[str, np.ndarray]:
    """The arrays of a message; their bytes are checked against what they declare.

    Raises:
        TensorMismatch: bytes that are not exactly the declared tensor.
        Overloaded: no memory for it.
    """
    return {tensor.spec.name: _array(tensor) for tensor in request.inputs}


@asynccontextmanager
async def decoded(request: InferRequest, n_bytes: int, bodies: BodyBudget) -> AsyncIterator[dict[str, np.ndarray]]:
    """The arrays of a message that is decoded in a thread; held of the budget until the context ends.

    Raises:
        Overloaded: they do not fit beside what is in flight.
        TensorMismatch: as `feeds_of`.
    """
    bodies.take(n_bytes)
    work = asyncio.get_running_loop().run_in_executor(None, feeds_of, request)

    def let_go(done: asyncio.Future[dict[str, np.ndarray]]) -> None:
        bodies.give(n_bytes)
        if not done.cancelled():
            done.exception()  # seen: whoever left does not ask

    try:
        yield await asyncio.shield(work)
    finally:
        if work.done():
            let_go(work)
        else:  # a caller that left leaves its thread at work: its memory goes when that ends
            work.add_done_callback(let_go)


def _array(tensor: Tensor) -> np.ndarray:
    try:
        array = tensor.to_array()
        return text_array(tensor.spec.name, array) if tensor.spec.dtype == BYTES else array
    except HybridError:
        raise
    except MemoryError as exc:
        raise Overloaded("there is no memory to decode the request; try again later", retry_after_s=1.0) from exc
    except Exception as exc:
        _log.warning("decode.failed codec=%s error=%r", tensor.codec, exc)
        raise TensorMismatch(f"tensor {tensor.spec.name!r} does not decode with codec {tensor.codec!r}") from exc
