"""From the body of an inference call to the arrays that an engine takes."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from hybrid.errors import BadMessage, TensorMismatch
from hybrid.serving.binary_tensor import array_of_bytes, text_array
from hybrid.serving.http_body import HEADER_LENGTH, Body
from hybrid.serving.json_tensor import array_of_json
from hybrid.serving.oip_message import NO_DATA, InferCall, InputTensor

_MAX_SIZE = 1 << 40
_MAX_RANK = 32

_KNOWN_BYTES = 512
_MAX_KNOWN = 256

_decoder = msgspec.json.Decoder(InferCall)
_known: dict[bytes, tuple[InferCall, int]] = {}


class RegionReader(Protocol):
    """Reads from registered shared memory."""

    def read(self, region: str, offset: int, n_bytes: int) -> memoryview:
        """A copy of the bytes there. Raises `NotFound` or `TensorMismatch`."""
        ...


class Decoded(NamedTuple):
    """A call and its feeds; `raw` when the body was bytes alone, so that the reply shall be too."""

    call: InferCall
    feeds: dict[str, np.ndarray]
    raw: bool = False


async def decode_call(body: Body, inputs: Mapping[str, TensorSpec], regions: RegionReader | None) -> Decoded:
    """Read and decode a whole call.

    Args:
        body: nothing of it was read yet.
        inputs: what the model takes; only a raw body needs it, to deduce its shape.
        regions: shared memory, None while that is not allowed.

    Raises:
        BadMessage: broken JSON or sizes that contradict one another.
        TensorMismatch: a tensor whose data are not what it declares.
        TooLarge: beyond the body's limits.
    """
    if body.n_json == 0:
        return _raw_call(await body.rest(), inputs)
    text = await body.json()
    known = _known.get(text) if len(text) <= _KNOWN_BYTES else None
    call, n_binary = known or _parsed(text)
    if body.n_json is None:
        if n_binary:
            raise BadMessage(f"an input has binary_data_size, but the request has no {HEADER_LENGTH} header; send it")
        data = memoryview(b"")
    else:
        data = await body.binary(n_binary)
    feeds: dict[str, np.ndarray] = {}
    position = 0
    for tensor in call.inputs:
        n_bytes = tensor.parameters.binary_data_size
        if n_bytes is not None:
            array = array_of_bytes(tensor.name, tensor.datatype, tensor.shape, data[position : position + n_bytes])
            position += n_bytes
        elif tensor.parameters.shared_memory_region is not None:
            array = _from_region(tensor, tensor.parameters.shared_memory_region, regions)
        else:
            array = array_of_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
        feeds[tensor.name] = array
    if len(feeds) != len(call.inputs):
        raise BadMessage("two inputs have one name; send each input once")
    return Decoded(call, feeds)


def _parsed(text: bytes) -> tuple[InferCall, int]:
    """The call that a JSON text spells, checked, and its bytes of binary tensors.

    Clients send one header for one shape again and again; a short one that came before is neither parsed nor checked.
    """
    try:
        call = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise BadMessage(f"the body is not an inference request: {exc}") from exc
    n_binary = 0
    for tensor in call.inputs:
        n_binary += _check(tensor)
    if len(text) <= _KNOWN_BYTES:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[text] = (call, n_binary)
    return call, n_binary


def _check(tensor: InputTensor) -> int:
    """Bytes that the tensor takes of the binary part, after its declarations were found consistent."""
    if tensor.datatype not in NUMPY_OF:
        raise TensorMismatch(
            f"input {tensor.name!r} has the datatype {tensor.datatype[:20]!r}; use one of {', '.join(NUMPY_OF)}"
        )
    if len(tensor.shape) > _MAX_RANK or (tensor.shape and not 0 <= min(tensor.shape) <= max(tensor.shape) <= _MAX_SIZE):
        raise TensorMismatch(f"input {tensor.name!r} has an impossible shape; give at most 32 sizes from 0")
    parameters = tensor.parameters
    n_sources = (
        (parameters.binary_data_size is not None)
        + (parameters.shared_memory_region is not None)
        + (tensor.data is not NO_DATA)
    )
    if n_sources != 1:
        raise BadMessage(
            f"input {tensor.name!r} has its data in {n_sources} places; "
            "give exactly one of data, binary_data_size and shared_memory_region"
        )
    n_bytes = parameters.binary_data_size
    if n_bytes is None:
        return 0
    if n_bytes < 0 or (tensor.datatype != BYTES and n_bytes != prod(tensor.shape) * NUMPY_OF[tensor.datatype].itemsize):
        raise TensorMismatch(
            f"input {tensor.name!r} declares {n_bytes} bytes, "
            f"which {tensor.datatype} of shape {tensor.shape} does not have"
        )
    return n_bytes


def _from_region(tensor: InputTensor, region: str, regions: RegionReader | None) -> np.ndarray:
    if regions is None:
        raise TensorMismatch(
            f"input {tensor.name!r} names a shared memory region, which this service does not allow; send the data"
        )
    parameters = tensor.parameters
    if parameters.shared_memory_byte_size is None:
        raise BadMessage(f"input {tensor.name!r} has a shared_memory_region and no shared_memory_byte_size")
    data = regions.read(region, parameters.shared_memory_offset, parameters.shared_memory_byte_size)
    if tensor.datatype != BYTES:  # a region may be larger than what this request uses of it
        data = data[: prod(tensor.shape) * NUMPY_OF[tensor.datatype].itemsize]
    return array_of_bytes(tensor.name, tensor.datatype, tensor.shape, data)


def _raw_call(data: memoryview, inputs: Mapping[str, TensorSpec]) -> Decoded:
    if len(inputs) != 1:
        raise BadMessage(f"a raw body holds one tensor; this model has {len(inputs)} inputs, so send JSON in front")
    (spec,) = inputs.values()
    if spec.dtype == BYTES:
        array = np.empty(1, dtype=object)
        array[0] = bytes(data)
        array = text_array(spec.name, array).reshape([1] * len(spec.shape))
        return Decoded(InferCall(inputs=[]), {spec.name: array}, raw=True)
    shape = _deduced(spec, len(data))
    return Decoded(InferCall(inputs=[]), {spec.name: array_of_bytes(spec.name, spec.dtype, shape, data)}, raw=True)


def _deduced(spec: TensorSpec, n_bytes: int) -> list[int]:
    """The shape of a raw tensor: the first unknown dimension takes what the bytes leave, further ones are 1."""
    known = prod(size for size in spec.shape if size is not None) * NUMPY_OF[spec.dtype].itemsize
    shape = [1 if size is None else size for size in spec.shape]
    if None in spec.shape and known and n_bytes % known == 0:
        shape[spec.shape.index(None)] = n_bytes // known
    return shape
