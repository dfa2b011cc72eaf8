"""One sample as it is kept on a box and brought to a gateway: what a model was given, what it answered, what was right.

Layout: MessagePack; inputs and output are a packed request and a packed response (`hybrid.fleet.packed`), so that every
tensor that travels can be a sample.
"""

from collections.abc import Mapping

import msgspec
import numpy as np

from hybrid.errors import BadMessage
from hybrid.fleet.packed import pack_request, pack_response, unpack_request, unpack_response
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor

Arrays = Mapping[str, np.ndarray]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A sample.

    Attributes:
        id: unique on its box.
        model: name under which the model answered.
        model_digest: which model answered.
        variant: of it; empty for the whole model as it was shipped.
        made_s: seconds since 1970 by the box's calendar, which may be wrong.
        label: what was right, as JSON text; empty where nobody said.
        inputs: packed request.
        output: packed response.
    """

    id: str
    model: str
    model_digest: str
    variant: str
    made_s: float
    label: str
    inputs: bytes
    output: bytes

    def input_arrays(self) -> dict[str, np.ndarray]:
        """The inputs by name. Raises `ProtocolError` where they are damaged."""
        return {tensor.spec.name: tensor.to_array() for tensor in unpack_request(self.inputs).inputs}

    def output_arrays(self) -> dict[str, np.ndarray]:
        """The outputs by name. Raises `ProtocolError` where they are damaged."""
        return {tensor.spec.name: tensor.to_array() for tensor in unpack_response(self.output).outputs}

    def encoded(self) -> bytes:
        """As it is kept and travels."""
        return msgspec.msgpack.encode(self)


def packed_arrays(inputs: Arrays, outputs: Arrays) -> tuple[bytes, bytes]:
    """Inputs and output as a sample holds them. Raises `TensorMismatch` or `TooLarge`."""
    request = InferRequest(inputs=tuple(Tensor.of(name, array) for name, array in inputs.items()))
    response = InferResponse(outputs=tuple(Tensor.of(name, array) for name, array in outputs.items()))
    return pack_request(request), pack_response(response)


def parse_sample(content: bytes) -> Sample:
    """The sample. Raises `BadMessage` where it is none."""
    try:
        return msgspec.msgpack.decode(content, type=Sample)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"this is no sample: {exc}") from exc
