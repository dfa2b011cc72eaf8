"""The one message of both carriers: an Open Inference Protocol request or response with binary tensors."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from hybrid.errors import BadMessage, TensorMismatch, TooLarge
from hybrid.wire.limits import HEADER_BYTES, MAX_RANK, Limits
from hybrid.wire.tensor import RAW, Tensor

Parameter = str | bool | int | float
Buffer = bytes | memoryview
Message = TypeVar("Message", "InferRequest", "InferResponse")

_REQUEST_TEXTS: Final = ("model_name", "model_version", "model_digest", "shape_key", "cut", "split", "traceparent")
_RESPONSE_SECONDS: Final = ("hybrid_receive_s", "hybrid_queue_s", "hybrid_compute_s")

ENCODED_SLACK_BYTES: Final = 4096
"""An encoded tensor may exceed its raw size by 1/16 and this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """An output that the caller wants; `classification` > 0 asks for the top classes instead of the tensor."""

    name: str
    binary: bool = True
    classification: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request: a whole model's inputs, or the tensors of a cut.

    Attributes:
        model_name: the model, when asked for by name.
        inputs: the tensors.
        outputs: wanted outputs; empty means all.
        model_digest: the model, when asked for by content.
        shape_key: canonical text of the input shapes.
        cut: cut id; empty means that the inputs are the whole model's.
        split: digest of the split by whose decoder the inputs are to be decoded; empty where by none.
        output_codec: codec for the response's tensors.
        deadline_s: seconds left when this was sent; None without a deadline.
        traceparent: W3C trace context.
        hops: how many services passed it on; one that was passed on once is computed where it arrives.
    """

    model_name: str = ""
    model_version: str = ""
    id: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[OutputRequest, ...] = ()
    model_digest: str = ""
    shape_key: str = ""
    cut: str = ""
    split: str = ""
    output_codec: str = RAW
    deadline_s: float | None = None
    traceparent: str = ""
    hops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """The answer, with the gateway's own measurements in seconds.

    Attributes:
        via: URL of the gateway that had a part in it, where a box passed the request on.
    """

    model_name: str = ""
    model_version: str = ""
    id: str = ""
    outputs: tuple[Tensor, ...] = ()
    receive_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    via: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMessage:
    """A message as bytes: the JSON header and the buffers of its body, in order."""

    header: bytes
    buffers: tuple[Buffer, ...]

    @property
    def n_body_bytes(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.buffers))


class _TensorHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Parameter] = {}


class _OutputHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    parameters: dict[str, Parameter] = {}


class _RequestHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    inputs: tuple[_TensorHeader, ...]
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: tuple[_OutputHeader, ...] = ()


class _ResponseHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    outputs: tuple[_TensorHeader, ...]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Parameter] = {}


_REQUEST = msgspec.json.Decoder(_RequestHeader)
_RESPONSE = msgspec.json.Decoder(_ResponseHeader)
_ENCODE = msgspec.json.Encoder()


Planned = tuple[TensorSpec, str, int]
"""Spec, codec and declared size of a tensor whose bytes have yet to come."""


@dataclass(frozen=True, slots=True)
class BodyPlan(Generic[Message]):
    """A decoded header, its sizes checked; `fill` makes the message of it and the body.

    Attributes:
        make: the message from its tensors.
        tensors: what each tensor will be.
        n_body_bytes: their bytes in all.
    """

    make: Callable[[tuple[Tensor, ...]], Message]
    tensors: tuple[Planned, ...]
    n_body_bytes: int

    def fill(self, body: memoryview) -> Message:
        """The message whose tensors view this body.

        Raises:
            TensorMismatch: the body's length is not the declared one.
        """
        if len(body) != self.n_body_bytes:
            raise TensorMismatch(f"the body has {len(body)} bytes, its header declares {self.n_body_bytes}")
        tensors: list[Tensor] = []
        at = 0
        for spec, codec, size in self.tensors:
            tensors.append(Tensor(spec=spec, codec=codec, payload=body[at : at + size]))
            at += size
        return self.make(tuple(tensors))


def encode_request(request: InferRequest) -> EncodedMessage:
    """The request as bytes.

    Raises:
        TooLarge: its header exceeds 64 KiB.
    """
    parameters: dict[str, Parameter] = {
        f"hybrid_{name}": value for name in _REQUEST_TEXTS if (value := getattr(request, name))
    }
    if request.output_codec != RAW:
        parameters["hybrid_output_codec"] = request.output_codec
    if request.deadline_s is not None:
        parameters["hybrid_deadline_s"] = request.deadline_s
    if request.hops:
        parameters["hybrid_hops"] = request.hops
    parameters["binary_data_output"] = True
    header = _RequestHeader(
        inputs=_tensor_headers(request.inputs),
        id=request.id,
        parameters=parameters,
        outputs=tuple(_output_header(output) for output in request.outputs),
    )
    return _encoded(header, request.inputs)


def encode_response(response: InferResponse) -> EncodedMessage:
    """The response as bytes.

    Raises:
        TooLarge: its header exceeds 64 KiB.
    """
    header = _ResponseHeader(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        parameters={
            "hybrid_receive_s": response.receive_s,
            "hybrid_queue_s": response.queue_s,
            "hybrid_compute_s": response.compute_s,
            **({"hybrid_via": response.via} if response.via else {}),
        },
        outputs=_tensor_headers(response.outputs),
    )
    return _encoded(header, response.outputs)


def decode_request(header: Buffer, limits: Limits) -> BodyPlan[InferRequest]:
    """The plan of a request's body; nothing of the size that the header declares is allocated.

    Raises:
        BadMessage: not a request. TensorMismatch: sizes that contradict datatype and shape. TooLarge: over a limit.
    """
    found = _decoded(_REQUEST, header)
    planned, n_body_bytes = _planned(found.inputs, limits)
    parameters = found.parameters
    texts = {name: _text(parameters, f"hybrid_{name}") for name in _REQUEST_TEXTS}
    codec = _text(parameters, "hybrid_output_codec") or RAW
    deadline_s = _seconds(parameters, "hybrid_deadline_s") if "hybrid_deadline_s" in parameters else None
    hops = _count(parameters, "hybrid_hops")
    outputs = tuple(_output_request(output, parameters) for output in found.outputs)

    def make(tensors: tuple[Tensor, ...]) -> InferRequest:
        return InferRequest(
            id=found.id, inputs=tensors, outputs=outputs, output_codec=codec, deadline_s=deadline_s, hops=hops, **texts
        )

    return BodyPlan(make, planned, n_body_bytes)


def decode_response(header: Buffer, limits: Limits) -> BodyPlan[InferResponse]:
    """The plan of a response's body; raises as `decode_request` does."""
    found = _decoded(_RESPONSE, header)
    planned, n_body_bytes = _planned(found.outputs, limits)
    receive_s, queue_s, compute_s = (_seconds(found.parameters, name) for name in _RESPONSE_SECONDS)
    via = _text(found.parameters, "hybrid_via")

    def make(tensors: tuple[Tensor, ...]) -> InferResponse:
        return InferResponse(
            model_name=found.model_name,
            model_version=found.model_version,
            id=found.id,
            outputs=tensors,
            receive_s=receive_s,
            queue_s=queue_s,
            compute_s=compute_s,
            via=via,
        )

    return BodyPlan(make, planned, n_body_bytes)


def _encoded(header: msgspec.Struct, tensors: tuple[Tensor, ...]) -> EncodedMessage:
    data = _ENCODE.encode(header)
    if len(data) > HEADER_BYTES:
        raise TooLarge(f"the message's header has {len(data)} bytes, the limit is {HEADER_BYTES}; send fewer tensors")
    return EncodedMessage(header=data, buffers=tuple(tensor.payload for tensor in tensors))


Header = TypeVar("Header")


def _decoded(decoder: msgspec.json.Decoder[Header], header: Buffer) -> Header:
    if len(header) > HEADER_BYTES:
        raise TooLarge(f"a message header of {len(header)} bytes; the limit is {HEADER_BYTES}")
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the message's header is not an inference message: {exc}") from exc


def _tensor_headers(tensors: Iterable[Tensor]) -> tuple[_TensorHeader, ...]:
    headers: list[_TensorHeader] = []
    for tensor in tensors:
        parameters: dict[str, Parameter] = {"binary_data_size": len(tensor.payload)}
        if tensor.codec != RAW:
            parameters["hybrid_codec"] = tensor.codec
        shape = tuple(size for size in tensor.spec.shape if size is not None)
        headers.append(
            _TensorHeader(name=tensor.spec.name, shape=shape, datatype=tensor.spec.dtype, parameters=parameters)
        )
    return tuple(headers)


def _output_header(output: OutputRequest) -> _OutputHeader:
    parameters: dict[str, Parameter] = {"binary_data": output.binary}
    if output.classification:
        parameters["classification"] = output.classification
    return _OutputHeader(name=output.name, parameters=parameters)


def _output_request(header: _OutputHeader, request: dict[str, Parameter]) -> OutputRequest:
    binary = header.parameters.get("binary_data", request.get("binary_data_output", False))
    classes = header.parameters.get("classification", 0)
    if not isinstance(binary, bool) or isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise BadMessage(f"output {header.name!r}: binary_data must be a boolean and classification a count")
    return OutputRequest(name=header.name, binary=binary, classification=classes)


def _planned(headers: tuple[_TensorHeader, ...], limits: Limits) -> tuple[tuple[Planned, ...], int]:
    """What each tensor will be, and the bytes of them all."""
    if len({header.name for header in headers}) != len(headers):
        raise BadMessage("two tensors of the message have the same name; names must differ")
    planned: list[Planned] = []
    n_body_bytes = n_decoded_bytes = 0
    for header in headers:
        tensor, n_decoded = _planned_tensor(header)
        planned.append(tensor)
        n_body_bytes += tensor[2]
        n_decoded_bytes += n_decoded
        if max(n_decoded_bytes, n_body_bytes) > limits.message_bytes:
            raise TooLarge(f"the message's tensors exceed {limits.message_bytes} bytes; send a smaller batch")
    return tuple(planned), n_body_bytes


def _planned_tensor(header: _TensorHeader) -> tuple[Planned, int]:
    """What the tensor will be, and its decoded size."""
    if header.datatype not in NUMPY_OF:
        raise TensorMismatch(
            f"tensor {header.name!r} has datatype {header.datatype!r}; use one of {', '.join(NUMPY_OF)}"
        )
    if len(header.shape) > MAX_RANK or min(header.shape, default=0) < 0:
        raise TensorMismatch(f"tensor {header.name!r}: at most {MAX_RANK} dimensions, each >= 0")
    size = header.parameters.get("binary_data_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise BadMessage(f"tensor {header.name!r} has no valid binary_data_size; send tensors in binary form")
    codec = _text(header.parameters, "hybrid_codec") or RAW
    spec = TensorSpec(name=header.name, dtype=header.datatype, shape=header.shape)
    n_elements = math.prod(header.shape)
    if header.datatype == BYTES:
        fits = codec == RAW and size >= 4 * n_elements and (n_elements > 0 or size == 0)
        decoded = max(size, 64 * n_elements)  # every element becomes an object of at least that size
    else:
        decoded = n_elements * NUMPY_OF[header.datatype].itemsize
        fits = size == decoded if codec == RAW else size <= decoded + decoded // 16 + ENCODED_SLACK_BYTES
    if not fits:
        raise TensorMismatch(
            f"tensor {header.name!r} declares {size} bytes with codec {codec!r}, which {header.datatype} of shape "
            f"{list(header.shape)} cannot have"
        )
    return (spec, codec, size), decoded


def _text(parameters: dict[str, Parameter], name: str) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str):
        raise BadMessage(f"parameter {name} is {type(value).__name__}; it must be text")
    return value


def _count(parameters: dict[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1000:
        raise BadMessage(f"parameter {name} is {value!r}; it must be a small count")
    return value


def _seconds(parameters: dict[str, Parameter], name: str) -> float:
    value = parameters.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadMessage(f"parameter {name} is {value!r}; it must be seconds >= 0")
    return float(value)
