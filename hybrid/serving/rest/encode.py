"""From an engine's arrays to the body of an inference reply."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np

from compression.tensor import BYTES, datatype_of
from hybrid.errors import BadMessage
from hybrid.serving.rest.binary_tensor import bytes_of_array
from hybrid.serving.rest.classification import classify
from hybrid.serving.rest.json_tensor import list_of_array
from hybrid.serving.rest.message import InferReply, OutputParameters, OutputTensor

_ON_LOOP_ELEMENTS: Final = 8 << 10
"""As JSON, strings or classes about 64 KiB."""

_MAX_HEADERS: Final = 256

_encoder = msgspec.json.Encoder()
_headers: dict[tuple[object, ...], bytes] = {}


class RegionWriter(Protocol):
    """Writes to registered shared memory."""

    def write(self, region: str, offset: int, n_bytes: int, data: bytes | memoryview) -> None:
        """Put the data there, within `n_bytes`. Raises `NotFound` or `TensorMismatch`."""
        ...


class ReplyOutput(NamedTuple):
    """One computed output and the form in which it was asked for."""

    name: str
    array: np.ndarray
    binary: bool
    parameters: OutputParameters
    labels: tuple[str, ...] = ()


class EncodedReply(NamedTuple):
    """The body in pieces; `n_json` is the size of the first one when raw tensors follow it, else None."""

    parts: list[bytes | memoryview]
    n_json: int | None


def encode_reply(
    model: tuple[str, str],
    request_id: str,
    outputs: Sequence[ReplyOutput],
    regions: RegionWriter | None,
    parameters: tuple[tuple[str, str], ...] = (),
) -> EncodedReply:
    """The reply of one inference.

    Args:
        model: name and version.
        request_id: echoed, "" leaves it out.
        outputs: in the order of the reply.
        regions: shared memory, None while that is not allowed.
        parameters: of the reply: where it was computed.

    Raises:
        TensorMismatch: an output that has no JSON form was asked for in JSON, or does not fit its region.
    """
    quick = None if request_id else _quick_reply(model, outputs, parameters)
    if quick is not None:
        return quick
    tensors: list[OutputTensor] = []
    buffers: list[bytes | memoryview] = []
    binary = False
    for output in outputs:
        array = output.array
        datatype = datatype_of(array)
        if output.parameters.classification:
            array = classify(output.name, datatype, array, output.parameters.classification, output.labels)
            datatype = BYTES
        tensor = OutputTensor(output.name, datatype, list(array.shape))
        if output.parameters.shared_memory_region is not None:
            tensor.parameters = _into_region(output, array, datatype, regions)
        elif output.binary:
            binary = True
            data = bytes_of_array(array, datatype)
            tensor.parameters = {"binary_data_size": len(data)}
            buffers.append(data)
        else:
            tensor.data = list_of_array(output.name, datatype, array)
        tensors.append(tensor)
    header = _encoder.encode(InferReply(model[0], model[1], tensors, request_id, dict(parameters) or None))
    return EncodedReply([header, *buffers], len(header) if binary else None)


def _quick_reply(
    model: tuple[str, str], outputs: Sequence[ReplyOutput], parameters: tuple[tuple[str, str], ...]
) -> EncodedReply | None:
    """A reply of numbers in binary alone: its JSON is that of the last one of these shapes. None for other replies."""
    key: list[object] = [model, parameters]
    buffers: list[bytes | memoryview] = []
    for output in outputs:
        form, array = output.parameters, output.array
        if not output.binary or form.classification or form.shared_memory_region is not None:
            return None
        datatype = datatype_of(array)
        if datatype == BYTES:
            return None
        buffers.append(bytes_of_array(array, datatype))
        key += (output.name, datatype, array.shape)
    header = _headers.get(tuple(key))
    if header is None:
        tensors = [OutputTensor(output.name, datatype_of(output.array), list(output.array.shape)) for output in outputs]
        for tensor, data in zip(tensors, buffers, strict=True):
            tensor.parameters = {"binary_data_size": len(data)}
        header = _encoder.encode(InferReply(model[0], model[1], tensors, "", dict(parameters) or None))
        if len(_headers) >= _MAX_HEADERS:
            _headers.clear()
        _headers[tuple(key)] = header
    return EncodedReply([header, *buffers], len(header))


def is_slow(outputs: Sequence[ReplyOutput]) -> bool:
    """Whether `encode_reply` would hold up the event loop, so that it belongs in a thread.

    Never with shared memory: a region may be closed, and its descriptor be another file's, while a thread runs.
    """
    n_elements = 0
    for output in outputs:
        if output.parameters.shared_memory_region is not None:
            return False
        if not output.binary or output.parameters.classification or output.array.dtype.hasobject:
            n_elements += output.array.size
    return n_elements > _ON_LOOP_ELEMENTS


def _into_region(
    output: ReplyOutput, array: np.ndarray, datatype: str, regions: RegionWriter | None
) -> dict[str, int | str]:
    parameters = output.parameters
    region = parameters.shared_memory_region or ""
    if regions is None or parameters.shared_memory_byte_size is None:
        raise BadMessage(
            f"output {output.name!r} names shared memory without a byte size, or this service does not allow it; "
            "ask for binary data"
        )
    data = bytes_of_array(array, datatype)
    regions.write(region, parameters.shared_memory_offset, parameters.shared_memory_byte_size, data)
    return {
        "shared_memory_region": region,
        "shared_memory_byte_size": len(data),
        "shared_memory_offset": parameters.shared_memory_offset,
    }
