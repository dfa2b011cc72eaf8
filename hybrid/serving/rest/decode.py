"""From the body of an inference call to the arrays that an engine takes."""

import asyncio
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from hybrid.errors import BadMessage, TensorMismatch
from hybrid.serving.rest.binary_tensor import array_of_bytes, text_array
from hybrid.serving.rest.body import HEADER_LENGTH, ON_LOOP_BYTES, Body
from hybrid.serving.rest.json_tensor import array_of_json
from hybrid.serving.rest.message import NO_DATA, InferCall, InputTensor

_MAX_SIZE = 1 << 40
_MAX_RANK = 32

_OBJECT_BYTES = 64
"""A number or short string as a Python object, its place in a list, and its element of the array."""

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
    """A call and its feeds; `raw` when the body was bytes alone, so that the reply shall be too.

    `n_checked_bytes`: bytes of feeds that are known to be what the model takes; -1 where that is still to be seen.
    """

    call: InferCall
    feeds: dict[str, np.ndarray]
    raw: bool = False
    n_checked_bytes: int = -1


class _Recipe(NamedTuple):
    """Where the tensors of a body lie whose JSON was seen before with the same model.

    Clients send one header for one shape again and again; then a body is arrays at known places, nothing to decide.
    """

    inputs: Mapping[str, TensorSpec]
    call: InferCall
    parts: list[tuple[str, np.dtype, int, int, list[int]]]
    n_bytes: int


_recipes: dict[bytes, _Recipe] = {}


def decode_known(body: Body, inputs: Mapping[str, TensorSpec]) -> Decoded | None:
    """The call where all of it is here and its JSON came before with this model; None where it must be decoded.

    Args:
        body: nothing of it was read yet.
        inputs: what the model takes; the same object as before.
    """
    n_json = body.n_json
    if not n_json or n_json > _KNOWN_BYTES:
        return None
    buffer = body.present()
    if buffer is None:
        return None
    recipe = _recipes.get(buffer[:n_json])
    if recipe is None or recipe.inputs is not inputs or len(buffer) != n_json + recipe.n_bytes:
        return None
    feeds: dict[str, np.ndarray] = {}
    for name, kind, n_items, start, shape in recipe.parts:
        array = np.frombuffer(buffer, kind, n_items, n_json + start).reshape(shape)
        feeds[name] = array if array.flags.aligned else array.copy()
    return Decoded(recipe.call, feeds, n_checked_bytes=recipe.n_bytes)


async def decode_call(body: Body, inputs: Mapping[str, TensorSpec], regions: RegionReader | None) -> Decoded:
    """Read and decode a whole call.

    Args:
        body: nothing of it was read yet.
        inputs: what the model takes; a raw body's shape is deduced from it, and tensors that it does not take are
            refused before any of them is decoded.
        regions: shared memory, None while that is not allowed.

    Raises:
        BadMessage: broken JSON or sizes that contradict one another.
        TensorMismatch: a tensor whose data are not what it declares, or that the model does not take.
        TooLarge: beyond the body's limits.
    """
    if body.n_json == 0:
        return _raw_call(await body.rest(), inputs)
    text = await body.json()
    known = _known.get(text) if len(text) <= _KNOWN_BYTES else None
    if known is not None:
        call, n_binary = known
    elif len(text) <= ON_LOOP_BYTES:
        call, n_binary = _parsed(text)
    else:
        call, n_binary = await asyncio.to_thread(_parsed, text)
    if body.n_json is None:
        if n_binary:
            raise BadMessage(f"an input has binary_data_size, but the request has no {HEADER_LENGTH} header; send it")
        data = memoryview(b"")
    else:
        data = await body.binary(n_binary)
    _match(call.inputs, inputs)
    if known is not None and body.n_json is not None:
        _remember(text, call, inputs, n_binary)
    pieces: list[memoryview | None] = []
    n_slow = len(text)
    position = 0
    for tensor in call.inputs:
        n_bytes = tensor.parameters.binary_data_size
        piece = None
        if n_bytes is not None:
            piece = data[position : position + n_bytes]
            position += n_bytes
        elif tensor.parameters.shared_memory_region is not None:
            # Read here and not in the thread, because a region may be closed while a thread runs.
            piece = _from_region(tensor, tensor.parameters.shared_memory_region, regions)
        if piece is not None and tensor.datatype == BYTES:
            n_slow += len(piece)
        pieces.append(piece)
    if n_slow <= ON_LOOP_BYTES:
        return Decoded(call, _arrays(call.inputs, pieces))
    body.hold(sum(map(_made_bytes, call.inputs, pieces)))
    return Decoded(call, await asyncio.to_thread(_arrays, call.inputs, pieces))


def _made_bytes(tensor: InputTensor, piece: memoryview | None) -> int:
    """What decoding makes of a tensor's elements: each of JSON, and each string, becomes an object first."""
    if piece is not None and tensor.datatype != BYTES:
        return 0
    n_least = memoryview(tensor.data).nbytes // 2 + 1 if piece is None else len(piece) // 4
    return _OBJECT_BYTES * min(prod(tensor.shape), n_least)


def _remember(text: bytes, call: InferCall, inputs: Mapping[str, TensorSpec], n_binary: int) -> None:
    """Keep where the tensors lie, where all of them are plain numbers in the binary part."""
    recipe = _recipes.get(text)
    if recipe is not None and recipe.inputs is inputs:
        return
    parts: list[tuple[str, np.dtype, int, int, list[int]]] = []
    start = 0
    for tensor in call.inputs:
        n_bytes = tensor.parameters.binary_data_size
        if n_bytes is None or tensor.datatype in (BYTES, "BOOL"):
            return
        kind = NUMPY_OF[tensor.datatype]
        parts.append((tensor.name, kind, n_bytes // kind.itemsize, start, tensor.shape))
        start += n_bytes
    if len(_recipes) >= _MAX_KNOWN:
        _recipes.clear()
    _recipes[text] = _Recipe(inputs, call, parts, n_binary)


def _match(tensors: Sequence[InputTensor], inputs: Mapping[str, TensorSpec]) -> None:
    """Refuse tensors that are not the model's inputs, by what they declare."""
    if len(tensors) != 1 and len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadMessage("two inputs have one name; send each input once")
    if len(tensors) != len(inputs):
        _refuse_names(tensors, inputs)
    for tensor in tensors:
        spec = inputs.get(tensor.name)
        if spec is None:
            _refuse_names(tensors, inputs)
        elif not _takes(spec, tensor):
            wanted = [-1 if size is None else size for size in spec.shape]
            raise TensorMismatch(
                f"input {tensor.name!r} is {NUMPY_OF[tensor.datatype]} {tensor.shape}; "
                f"the model wants {spec.dtype} {wanted}"
            )


def _takes(spec: TensorSpec, tensor: InputTensor) -> bool:
    if tensor.datatype != spec.dtype or len(tensor.shape) != len(spec.shape):
        return False
    for mine, theirs in zip(spec.shape, tensor.shape, strict=True):  # noqa: SIM110 (`all` costs a microsecond more)
        if mine is not None and mine != theirs:
            return False
    return True


def _refuse_names(tensors: Sequence[InputTensor], inputs: Mapping[str, TensorSpec]) -> None:
    given = sorted(tensor.name for tensor in tensors[:20])
    raise TensorMismatch(f"inputs {given} given; the model wants exactly {sorted(inputs)}")


def _arrays(tensors: Sequence[InputTensor], pieces: Sequence[memoryview | None]) -> dict[str, np.ndarray]:
    """The arrays by name, each from its bytes, or from its JSON where it has none."""
    feeds: dict[str, np.ndarray] = {}
    for tensor, piece in zip(tensors, pieces, strict=True):
        if piece is None:
            array = array_of_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
        else:
            array = array_of_bytes(tensor.name, tensor.datatype, tensor.shape, piece)
        feeds[tensor.name] = array
    return feeds


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


def _from_region(tensor: InputTensor, region: str, regions: RegionReader | None) -> memoryview:
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
    return data


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
