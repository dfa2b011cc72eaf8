"""Large and packed requests: refused before they are decoded, unpacked wherever they stand, never in others' way."""

import gzip
import http.client
import json
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from compression.tensor import BYTES
from hybrid.serving.rest.binary_tensor import bytes_of_array
from tests import small_models
from tests.live_gateway import LiveGateway
from tests.serving_push import push

X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
HEADER_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    folder = tmp_path_factory.mktemp("large")
    with LiveGateway(folder / "data", "--no-auth") as running:
        push(running.url, small_models.mlp(folder / "mlp.onnx"), "mlp")
        texts = small_models.echo(folder / "texts.onnx", onnx.TensorProto.STRING, ["n"])
        push(running.url, texts, "texts")
        yield running


def ask(gateway: LiveGateway, model: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    stream = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=100)
    try:
        stream.request("POST", f"/v2/models/{model}/infer", body, headers)
        answer = stream.getresponse()
        return answer.status, answer.read()
    finally:
        stream.close()


def call(text: bytes, shape: list[int], datatype: str = "FP32") -> bytes:
    """A JSON call whose data are that text."""
    head = {"name": "x", "shape": shape, "datatype": datatype}
    return b'{"inputs": [' + json.dumps(head).encode()[:-1] + b', "data": ' + text + b"}]}"


def longest_wait_s(gateway: LiveGateway, until: Future[tuple[int, bytes]]) -> float:
    """The longest that somebody else waited for a word while a request was under way."""
    longest_s = 0.0
    stream = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=100)
    try:
        while not until.done():
            started_s = time.perf_counter()
            stream.request("GET", "/v2/health/live")
            assert stream.getresponse().read() is not None
            longest_s = max(longest_s, time.perf_counter() - started_s)
    finally:
        stream.close()
    return longest_s


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_raw_body_is_unpacked(gateway: LiveGateway, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    plain = ask(gateway, "mlp", X.tobytes(), {HEADER_LENGTH: "0"})
    packed = ask(gateway, "mlp", pack(X.tobytes()), {HEADER_LENGTH: "0", "Content-Encoding": encoding})
    assert plain[0] == 200
    assert packed == plain


def test_a_raw_body_keeps_the_limits_of_packed_ones(gateway: LiveGateway) -> None:
    bomb = gzip.compress(bytes(257 << 20), 1)
    for body, status in ((bomb, 413), (gzip.compress(X.tobytes())[:-4], 400), (X.tobytes(), 400)):
        assert ask(gateway, "mlp", body, {HEADER_LENGTH: "0", "Content-Encoding": "gzip"})[0] == status


@pytest.mark.parametrize(
    ("text", "shape", "datatype"),
    [(b'["a"]', [1, 63], "FP32"), (b'["a"]', [64], "FP32"), (b'["a"]', [1, 64], "INT32")],
)
def test_what_the_model_does_not_take_is_not_decoded(
    gateway: LiveGateway, text: bytes, shape: list[int], datatype: str
) -> None:
    status, body = ask(gateway, "mlp", call(text, shape, datatype), {})
    assert status == 400
    assert "the model wants FP32 [-1, 64]" in json.loads(body)["error"]


def test_few_packed_bytes_of_many_numbers_hold_nobody_up(gateway: LiveGateway) -> None:
    many = b"[" + b"0," * (16 << 20) + b"0]"
    bodies = [gzip.compress(call(many, shape)) for shape in ([1, 64], [len(many) // 2])]
    with ThreadPoolExecutor(1) as pool:
        for body in bodies:
            assert len(body) < 64 << 10
            asked = pool.submit(ask, gateway, "mlp", body, {"Content-Encoding": "gzip"})
            assert longest_wait_s(gateway, asked) < 0.5
            assert asked.result()[0] == 400


@pytest.mark.parametrize("binary", [True, False])
def test_a_large_string_tensor_holds_nobody_up(gateway: LiveGateway, binary: bool) -> None:
    texts = np.array(["a,b"] * 500_000, dtype=object)
    data = bytes(bytes_of_array(texts, BYTES))
    tensor = {"name": "x", "shape": [texts.size], "datatype": BYTES, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    with ThreadPoolExecutor(1) as pool:
        started_s = time.perf_counter()
        asked = pool.submit(ask, gateway, "texts", head + data, {HEADER_LENGTH: str(len(head))})
        longest_s = longest_wait_s(gateway, asked)
        whole_s = time.perf_counter() - started_s
    status, body = asked.result()
    assert status == 200
    assert longest_s < 0.3 * whole_s
    if binary:
        assert body.endswith(data)
    else:
        assert json.loads(body)["outputs"][0]["data"] == texts.tolist()


def test_large_json_and_its_packed_reply_are_right(gateway: LiveGateway) -> None:
    many = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    nested = call(json.dumps(many.tolist()).encode(), [3000, 64])
    status, plain = ask(gateway, "mlp", nested, {})
    assert status == 200
    assert len(plain) > 64 << 10
    packed = ask(gateway, "mlp", gzip.compress(nested), {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    assert gzip.decompress(packed[1]) == plain
    raw = ask(gateway, "mlp", many.tobytes(), {HEADER_LENGTH: "0"})[1][-3000 * 40 :]
    found = np.array(json.loads(plain)["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(found, np.frombuffer(raw, np.float32))
