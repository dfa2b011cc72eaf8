"""Messages: what is encoded comes back, and a header that lies is refused before its body exists."""

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.tensor import NUMPY_OF
from hybrid.errors import BadMessage, ProtocolError, TensorMismatch, TooLarge
from hybrid.wire.limits import Limits
from hybrid.wire.message import (
    InferRequest,
    InferResponse,
    OutputRequest,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from hybrid.wire.tensor import Tensor

LIMITS = Limits()
TEXT = st.text(max_size=30)


def joined(message) -> memoryview:
    return memoryview(bytearray(b"".join(message.buffers)))


@given(
    text=st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT),
    deadline_s=st.none() | st.floats(0, 1e6),
    outputs=st.lists(st.builds(OutputRequest, name=TEXT, binary=st.booleans(), classification=st.integers(0, 9))),
    arrays=st.dictionaries(
        TEXT,
        st.sampled_from(sorted(set(NUMPY_OF) - {"BYTES"})).flatmap(
            lambda dtype: hnp.arrays(NUMPY_OF[dtype], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        ),
        max_size=4,
    ),
)
def test_requests_come_back(text, deadline_s, outputs, arrays):
    request = InferRequest(
        model_name=text[0],
        model_version=text[1],
        id=text[2],
        model_digest=text[3],
        shape_key=text[4],
        cut=text[5],
        traceparent=text[6],
        output_codec="fp16",
        deadline_s=deadline_s,
        outputs=tuple(outputs),
        inputs=tuple(Tensor.of(name, array) for name, array in arrays.items()),
    )
    message = encode_request(request)
    back = decode_request(message.header, LIMITS).fill(joined(message))
    assert [t.to_array().tobytes() for t in back.inputs] == [array.tobytes() for array in arrays.values()]
    assert [t.spec for t in back.inputs] == [t.spec for t in request.inputs]
    for name in request.__slots__:
        if name != "inputs":
            assert getattr(back, name) == getattr(request, name), name


def test_responses_come_back_with_their_times():
    response = InferResponse(
        model_name="m",
        model_version="2",
        id="7",
        outputs=(Tensor.of("y", np.arange(6.0).reshape(2, 3)), Tensor.of("s", np.array([b"a", b""], dtype=object))),
        receive_s=0.25,
        queue_s=0.5,
        compute_s=1.5,
    )
    message = encode_response(response)
    back = decode_response(message.header, LIMITS).fill(joined(message))
    assert (back.model_name, back.model_version, back.id) == ("m", "2", "7")
    assert (back.receive_s, back.queue_s, back.compute_s) == (0.25, 0.5, 1.5)
    np.testing.assert_array_equal(back.outputs[0].to_array(), np.arange(6.0).reshape(2, 3))
    assert back.outputs[1].to_array().tolist() == [b"a", b""]


def test_unknown_parameters_are_ignored():
    header = msgspec.json.encode(
        {
            "inputs": [
                {"name": "x", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2, "new": "thing"}}
            ],
            "parameters": {"priority": 3, "hybrid_future": True},
            "future": [1, {"a": None}],
        }
    )
    assert decode_request(header, LIMITS).n_body_bytes == 2


def header_of(**changes) -> bytes:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    return msgspec.json.encode({"inputs": [tensor | changes]})


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"", BadMessage),
        (b"\xff\xfe{}", BadMessage),
        (b"{}", BadMessage),
        (b"[]", BadMessage),
        (b"null", BadMessage),
        (b'{"inputs":' + b"[" * 30000, BadMessage),
        (b'{"inputs":{}}', BadMessage),
        (b'{"inputs":[],"id":5}', BadMessage),
        (b'{"inputs":[],"parameters":{"hybrid_cut":5}}', BadMessage),
        (b'{"inputs":[],"parameters":{"hybrid_deadline_s":-1}}', BadMessage),
        (b'{"inputs":[],"parameters":{"hybrid_deadline_s":1e400}}', BadMessage),
        (b'{"inputs":[],"parameters":{"hybrid_deadline_s":"soon"}}', BadMessage),
        (b'{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-1}}]}', BadMessage),
        (b"{" + b" " * 70000 + b"}", TooLarge),
        (header_of(parameters={}), BadMessage),
        (header_of(parameters={"binary_data_size": -16}), BadMessage),
        (header_of(parameters={"binary_data_size": True}), BadMessage),
        (header_of(parameters={"binary_data_size": 16.0}), BadMessage),
        (header_of(parameters={"binary_data_size": "16"}), BadMessage),
        (header_of(parameters={"binary_data_size": 15}), TensorMismatch),
        (header_of(parameters={"binary_data_size": 2**63 - 1}), TensorMismatch),
        (header_of(shape=[2, -2]), TensorMismatch),
        (header_of(shape=[1] * 64), TensorMismatch),
        (header_of(shape=[2**31, 2**31]), TensorMismatch),
        (header_of(shape=[2**33, 2**31, 0], parameters={"binary_data_size": 1}), TensorMismatch),
        (header_of(shape=[0.5]), BadMessage),
        (header_of(shape=None), BadMessage),
        (header_of(datatype="BF16"), TensorMismatch),
        (header_of(datatype="object"), TensorMismatch),
        (header_of(datatype="FP64"), TensorMismatch),
        (header_of(datatype="BYTES", parameters={"binary_data_size": 15}), TensorMismatch),
        (header_of(datatype="BYTES", shape=[0], parameters={"binary_data_size": 4}), TensorMismatch),
        (header_of(shape=[2**28], parameters={"binary_data_size": 2**30}), TooLarge),
        (header_of(shape=[2**40], parameters={"binary_data_size": 100, "hybrid_codec": "lossless"}), TooLarge),
        (header_of(shape=[2], parameters={"binary_data_size": 2**30, "hybrid_codec": "lossless"}), TensorMismatch),
        (header_of(parameters={"binary_data_size": 16, "hybrid_codec": 7}), BadMessage),
        (msgspec.json.encode({"inputs": [msgspec.json.decode(header_of())["inputs"][0]] * 2}), BadMessage),
    ],
)
def test_headers_that_lie_are_refused(header, error):
    with pytest.raises(error):
        decode_request(header, LIMITS)


@given(shape=st.lists(st.integers(-3, 2**70), max_size=40), size=st.integers(-1, 2**70), codec=st.text(max_size=3))
def test_no_declaration_takes_memory(shape, size, codec):
    header = header_of(shape=shape, parameters={"binary_data_size": size, "hybrid_codec": codec})
    tracemalloc.start()
    try:
        plan = decode_request(header, LIMITS)
    except ProtocolError:
        pass
    else:
        assert plan.n_body_bytes <= LIMITS.message_bytes
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


def test_headers_beyond_64_kib_are_not_made():
    tensors = tuple(Tensor.of(f"{'n' * 100}{i}", np.zeros(1)) for i in range(1000))
    with pytest.raises(TooLarge):
        encode_request(InferRequest(inputs=tensors))


def test_a_body_of_another_length_is_refused():
    plan = decode_request(header_of(), LIMITS)
    with pytest.raises(TensorMismatch):
        plan.fill(memoryview(bytes(15)))
