"""The JSON of the Open Inference Protocol v2 inference call, as typed structures.

Source: kserve/open-inference-protocol (REST), and Triton's binary tensor data, classification and shared memory
extensions. Unknown fields and parameters are ignored, as the protocol asks.
"""

import msgspec


class InputParameters(msgspec.Struct, frozen=True):
    """Parameters of one input tensor."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class OutputParameters(msgspec.Struct, frozen=True):
    """Parameters of one wanted output."""

    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class RequestParameters(msgspec.Struct, frozen=True):
    """Parameters of the whole request that mean something here.

    Attributes:
        priority: Triton's: 1 is the highest, 0 leaves it to the model.
        timeout: Triton's: microseconds that the answer may take; 0 for no limit.
        hybrid_priority: 0 to 9, higher first; -1 leaves it to the model.
        hybrid_deadline_s: seconds that the answer may take; 0 for no limit.
    """

    binary_data_output: bool = False
    priority: int = 0
    timeout: int = 0
    hybrid_priority: int = -1
    hybrid_deadline_s: float = 0.0


_NO_INPUT_PARAMETERS = InputParameters()
NO_OUTPUT_PARAMETERS = OutputParameters()
NO_REQUEST_PARAMETERS = RequestParameters()
NO_DATA = msgspec.Raw(b"")
"""Stands where an input carries no JSON data."""


class InputTensor(msgspec.Struct, frozen=True):
    """One input: its data stand here as JSON, behind the header as bytes, or in a shared memory region."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters = _NO_INPUT_PARAMETERS
    data: msgspec.Raw = NO_DATA


class WantedOutput(msgspec.Struct, frozen=True):
    """One output that the client asks for, and in which form."""

    name: str
    parameters: OutputParameters = NO_OUTPUT_PARAMETERS


class InferCall(msgspec.Struct, frozen=True):
    """An inference request; an empty `outputs` asks for all."""

    inputs: list[InputTensor]
    id: str = ""
    outputs: list[WantedOutput] = []
    parameters: RequestParameters = NO_REQUEST_PARAMETERS


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """One output of a reply."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int | str] | None = None
    data: list[object] | msgspec.UnsetType = msgspec.UNSET


class InferReply(msgspec.Struct, omit_defaults=True):
    """An inference reply."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str = ""
    parameters: dict[str, str] | None = None
