"""From the body of an inference call to a request of the wire, without the model: its tensors say what they are."""

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from hybrid.errors import BadMessage, TensorMismatch, TooLarge
from hybrid.serving.rest.body import Body
from hybrid.serving.rest.json_tensor import array_of_json
from hybrid.serving.rest.message import NO_DATA, InferCall, InputTensor
from hybrid.wire.limits import MAX_RANK, Limits
from hybrid.wire.message import InferRequest, OutputRequest
from hybrid.wire.tensor import Tensor

_MOST_ELEMENTS: Final = 1 << 28
_decoder = msgspec.json.Decoder(InferCall)


@dataclass(frozen=True, slots=True)
class Wanted:
    """For which model a call is."""

    name: str
    version: str


async def deferred_request(wanted: Wanted, body: Body) -> InferRequest:
    """The request of a call's body; raises as `request_and_call` does."""
    return (await request_and_call(wanted, body))[0]


async def request_and_call(wanted: Wanted, body: Body) -> tuple[InferRequest, InferCall]:
    """The request of a call's body, and the call; shared memory is refused, for it would be gone by then.

    Raises:
        BadMessage, TensorMismatch, TooLarge: it is none.
    """
    text = await body.json()
    try:
        call = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the JSON is not an inference request: {exc}") from exc
    sizes = [_binary_bytes(tensor) for tensor in call.inputs]
    rest = await body.binary(sum(sizes)) if any(sizes) or body.n_json is not None else memoryview(b"")
    tensors: list[Tensor] = []
    at = 0
    for tensor, size in zip(call.inputs, sizes, strict=True):
        spec = _spec(tensor)
        if tensor.parameters.binary_data_size is not None:
            payload = bytes(rest[at : at + size])
            _check_size(spec, payload)
            tensors.append(Tensor(spec=spec, payload=payload))
            at += size
        else:
            tensors.append(Tensor.of(tensor.name, array_of_json(tensor.name, spec.dtype, tensor.shape, tensor.data)))
    outputs = tuple(
        OutputRequest(name=output.name, classification=output.parameters.classification) for output in call.outputs
    )
    request = InferRequest(
        model_name=wanted.name, model_version=wanted.version, id=call.id, inputs=tuple(tensors), outputs=outputs
    )
    return request, call


def _binary_bytes(tensor: InputTensor) -> int:
    parameters = tensor.parameters
    if parameters.shared_memory_region is not None:
        raise BadMessage(f"input {tensor.name!r} lies in shared memory, which a deferred request cannot wait in")
    size = parameters.binary_data_size
    if size is None:
        if tensor.data == NO_DATA:
            raise BadMessage(f"input {tensor.name!r} has neither data nor binary_data_size")
        return 0
    if not 0 <= size <= Limits().message_bytes:
        raise TooLarge(f"input {tensor.name!r}: {size} bytes are more than a request may have")
    return size


def _spec(tensor: InputTensor) -> TensorSpec:
    if tensor.datatype not in NUMPY_OF:
        raise TensorMismatch(f"input {tensor.name!r} has datatype {tensor.datatype[:20]!r}; the protocol's are wanted")
    if len(tensor.shape) > MAX_RANK or min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) > _MOST_ELEMENTS:
        raise TensorMismatch(f"input {tensor.name!r}: shape {tensor.shape[:8]} cannot be sent")
    return TensorSpec(name=tensor.name, dtype=tensor.datatype, shape=tuple(tensor.shape))


def _check_size(spec: TensorSpec, payload: bytes) -> None:
    if spec.dtype != BYTES and len(payload) != math.prod(_sizes(spec)) * NUMPY_OF[spec.dtype].itemsize:
        raise TensorMismatch(f"input {spec.name!r}: {len(payload)} bytes are not {spec.dtype} {list(spec.shape)}")


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if size is not None)
