"""A message that a service passes on says so, and its answer says where it was computed."""

from dataclasses import replace

import pytest

from hybrid.errors import BadMessage
from hybrid.wire.limits import Limits
from hybrid.wire.message import (
    InferRequest,
    InferResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)


@pytest.mark.parametrize("hops", [0, 1, 7])
def test_hops_travel(hops: int) -> None:
    encoded = encode_request(InferRequest(model_name="m", hops=hops))
    assert (b"hybrid_hops" in encoded.header) is (hops > 0)
    assert decode_request(encoded.header, Limits()).fill(memoryview(b"")).hops == hops


@pytest.mark.parametrize("given", [b"-1", b"true", b"1.5", b"100000", b'"1"'])
def test_hops_that_are_no_count_are_refused(given: bytes) -> None:
    header = encode_request(InferRequest(model_name="m", hops=1)).header.replace(
        b'"hybrid_hops":1', b'"hybrid_hops":' + given
    )
    with pytest.raises(BadMessage, match="hybrid_hops"):
        decode_request(header, Limits())


def test_where_it_was_computed_travels() -> None:
    response = InferResponse(model_name="m")
    assert b"hybrid_via" not in encode_response(response).header
    encoded = encode_response(replace(response, via="https://cloud:8700"))
    assert decode_response(encoded.header, Limits()).fill(memoryview(b"")).via == "https://cloud:8700"
