"""Whatever is sent to the gateway: a 4xx with JSON, never a crash, never a 5xx, and the next request works."""

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import small_models
from tests.live_gateway import LiveGateway
from tests.serving_push import push

INFER = "/v2/models/mlp/infer"
X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
TENSOR = {"name": "x", "shape": [1, 64], "datatype": "FP32"}
MAX_BODY = 200_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    folder = tmp_path_factory.mktemp("broken")
    flags = ("--max-body-bytes", str(MAX_BODY), "--max-json-bytes", "60000", "--body-timeout-s", "1")
    with LiveGateway(folder / "data", *flags, "--header-timeout-s", "1") as running:
        push(running.url, small_models.mlp(folder / "mlp.onnx"), "mlp", token=running.token)
        push(running.url, small_models.reshape(folder / "reshape.onnx"), "reshape", token=running.token)
        yield running


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        """The JSON of a refusal, checked to be one."""
        found: dict[str, str] = json.loads(self.body)
        assert 400 <= self.status < 500, (self.status, self.body[:200])
        assert isinstance(found["error"], str)
        assert found["error"]
        assert "Traceback" not in found["error"]
        return found


def send_bytes(gateway: LiveGateway, data: bytes, *, timeout_s: float = 20.0) -> Answer | None:
    """Raw bytes to the gateway; None where it closed without an answer."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout_s) as stream:
        try:
            stream.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return read_answer(stream)


def read_answer(stream: socket.socket) -> Answer | None:
    """The first answer on a connection."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            piece = stream.recv(65536)
            if not piece:
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            piece = stream.recv(65536)
            if not piece:
                break
            body += piece
    except ConnectionResetError:
        return None
    return Answer(int(lines[0].split()[1]), headers, body)


def request_bytes(gateway: LiveGateway, body: bytes, *headers: str, path: str = INFER, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: h", f"Authorization: Bearer {gateway.token}", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(gateway: LiveGateway, body: bytes, *headers: str, path: str = INFER, method: str = "POST") -> Answer:
    answer = send_bytes(gateway, request_bytes(gateway, body, *headers, path=path, method=method))
    assert answer is not None, "the gateway closed without an answer"
    return answer


def call(**changes: object) -> bytes:
    """A JSON call with one good tensor, changed."""
    tensor = {**TENSOR, "data": X.ravel().tolist(), **changes}
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not None}]}).encode()


def binary_call(size: int | None = None, **changes: object) -> bytes:
    tensor = {**TENSOR, "parameters": {"binary_data_size": X.nbytes if size is None else size}, **changes}
    return json.dumps({"inputs": [tensor]}).encode()


def works(gateway: LiveGateway) -> None:
    answer = ask(gateway, call())
    assert answer.status == 200
    assert len(json.loads(answer.body)["outputs"][0]["data"]) == 10


BROKEN_BODIES = {
    "nothing": b"",
    "no object": b"[]",
    "an empty object": b"{}",
    "not JSON": b"hello",
    "half JSON": b'{"inputs": [',
    "not UTF-8": b'{"inputs": [{"name": "\xff\xfe"}]}',
    "null": b"null",
    "deep nesting": b"[" * 50_000,
    "deep nesting in data": b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":' + b"[" * 30_000,
    "no inputs": b'{"inputs": []}',
    "inputs of a wrong type": b'{"inputs": {"x": 1}}',
    "an unknown datatype": call(datatype="FP8"),
    "a datatype that lies": call(datatype="INT32"),
    "FP16 in JSON": call(datatype="FP16"),
    "an unknown input": call(name="z"),
    "a negative size": call(shape=[-1, 64]),
    "a huge size": call(shape=[2**62, 64]),
    "a huge rank": call(shape=[1] * 40),
    "a fraction in the shape": call(shape=[1.5, 64]),
    "too few numbers": call(data=[1.0] * 63),
    "too many numbers": call(data=[1.0] * 65),
    "strings for numbers": call(data=["1"] * 64),
    "nulls for numbers": call(data=[None] * 64),
    "no data": call(data=None),
    "data twice": call(parameters={"binary_data_size": 256}),
    "binary without its header": binary_call(),
    "a shared memory region": call(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 256}),
    "a batch that the model does not have": call(shape=[64, 1]),
    "two inputs of one name": json.dumps(
        {"inputs": [{**TENSOR, "data": [0.0] * 64}, {**TENSOR, "data": [0.0] * 64}]}
    ).encode(),
    "an unknown output": json.dumps(
        {"inputs": [{**TENSOR, "data": [0.0] * 64}], "outputs": [{"name": "nope"}]}
    ).encode(),
    "one output twice": json.dumps(
        {"inputs": [{**TENSOR, "data": [0.0] * 64}], "outputs": [{"name": "y"}, {"name": "y"}]}
    ).encode(),
    "a classification of -1": json.dumps(
        {"inputs": [{**TENSOR, "data": [0.0] * 64}], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}
    ).encode(),
    "an id that is a number": json.dumps({"id": 7, "inputs": [{**TENSOR, "data": [0.0] * 64}]}).encode(),
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_broken_json_is_a_4xx_with_json(gateway: LiveGateway, name: str) -> None:
    answer = ask(gateway, BROKEN_BODIES[name])
    assert answer.error["code"] in ("bad_message", "tensor_mismatch", "forbidden", "too_large")
    works(gateway)


@pytest.mark.parametrize(
    ("length", "header", "body"),
    [
        ("abc", None, X.tobytes()),
        ("-5", None, X.tobytes()),
        ("1e3", None, X.tobytes()),
        ("99999999999999999999", None, X.tobytes()),
        ("70000", None, X.tobytes()),
        ("1000", None, X.tobytes()),
        (None, binary_call(), X.tobytes()[:-1]),
        (None, binary_call(), X.tobytes() + b"x"),
        (None, binary_call(), b""),
        (None, binary_call(-1), X.tobytes()),
        (None, binary_call(2**60), X.tobytes()),
        (None, binary_call(200), X.tobytes()[:200]),
        (None, binary_call(shape=[2, 64]), X.tobytes()),
        (None, binary_call(datatype="BYTES"), X.tobytes()),
        (None, binary_call(datatype="BYTES", shape=[2**40]), X.tobytes()),
        ("0", None, X.tobytes()[:-1]),
    ],
)
def test_broken_binary_sizes(gateway: LiveGateway, length: str | None, header: bytes | None, body: bytes) -> None:
    shown = length if length is not None else str(len(header or b""))
    ask(gateway, (header or b"") + body, f"Inference-Header-Content-Length: {shown}").error  # noqa: B018 (checks)
    works(gateway)


def test_the_header_name_is_not_found_inside_other_names(gateway: LiveGateway) -> None:
    answer = ask(gateway, call(), "X-Inference-Header-Content-Length: 5", "X: Inference-Header-Content-Length: 9")
    assert answer.status == 200


def test_a_raw_body_is_the_tensor(gateway: LiveGateway) -> None:
    answer = ask(gateway, X.tobytes() * 2, "Inference-Header-Content-Length: 0")
    assert answer.status == 200
    n_json = int(answer.headers["inference-header-content-length"])
    described = json.loads(answer.body[:n_json])["outputs"][0]
    assert described["shape"] == [2, 10]
    values = np.frombuffer(answer.body[n_json:], np.float32).reshape(2, 10)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)


def test_a_body_beyond_the_limit_is_refused_by_its_length(gateway: LiveGateway) -> None:
    data = request_bytes(gateway, b"", f"Content-Length: {MAX_BODY + 1}")
    answer = send_bytes(gateway, data)
    assert answer is not None
    assert answer.status == 413
    assert answer.error["code"] == "too_large"


def test_a_body_without_a_length_is_refused_where_it_grows_too_large(gateway: LiveGateway) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = send_bytes(gateway, request_bytes(gateway, chunk * 5, "Transfer-Encoding: chunked"))
    assert answer is None or answer.status == 413
    works(gateway)


def test_a_good_chunked_body_is_read(gateway: LiveGateway) -> None:
    body = binary_call() + X.tobytes()
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\n\r\n"
    headers = (f"Inference-Header-Content-Length: {len(binary_call())}", "Transfer-Encoding: chunked")
    assert ask(gateway, chunks, *headers).status == 200


@pytest.mark.parametrize("chunks", [b"zz\r\nabc\r\n", b"5\r\nab", b"-1\r\n\r\n"])
def test_broken_chunks_are_refused(gateway: LiveGateway, chunks: bytes) -> None:
    answer = send_bytes(gateway, request_bytes(gateway, chunks, "Transfer-Encoding: chunked"))
    assert answer is None or answer.error
    works(gateway)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bombs_and_broken_packing(gateway: LiveGateway, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = pack(bytes(100_000_000))
    assert len(bomb) < MAX_BODY
    for body, status in ((bomb, 413), (pack(call())[:-4], 400), (b"plain", 400), (b"", 400), (pack(b"{}"), 400)):
        answer = ask(gateway, body, f"Content-Encoding: {encoding}")
        assert (answer.status, bool(answer.error)) == (status, True)
    good = ask(gateway, pack(call()), f"Content-Encoding: {encoding}")
    assert good.status == 200


def test_an_unknown_packing_is_refused(gateway: LiveGateway) -> None:
    assert "identity" in ask(gateway, call(), "Content-Encoding: br").error["error"]


def test_packed_json_comes_back_to_who_takes_it(gateway: LiveGateway) -> None:
    many = np.tile(X, (40, 1))
    body = call(shape=[40, 64], data=many.ravel().tolist())
    plain = ask(gateway, body)
    packed = ask(gateway, body, "Accept-Encoding: gzip, deflate, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert "content-encoding" not in plain.headers


def test_values_that_the_graph_refuses_are_the_senders_fault(gateway: LiveGateway) -> None:
    inputs = [
        {"name": "x", "shape": [6], "datatype": "FP32", "data": [0.0] * 6},
        {"name": "s", "shape": [2], "datatype": "INT64", "data": [4, 4]},
    ]
    answer = ask(gateway, json.dumps({"inputs": inputs}).encode(), path="/v2/models/reshape/infer")
    assert (answer.status, answer.error["code"]) == (400, "engine_failed")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/mlp/versions/9/ready", 404),
        ("GET", "/v2/models/nobody/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/repository/models/nobody/load", 404),
        ("POST", "/v2/repository/models/nobody/unload", 404),
        ("POST", "/v2/models/%00%ff/infer", 404),
        ("POST", "/v2/models/..%2f..%2fetc/infer", 404),
    ],
)
def test_what_is_not_there_is_404_in_json(gateway: LiveGateway, method: str, path: str, status: int) -> None:
    answer = ask(gateway, b"{}", path=path, method=method)
    assert (answer.status, answer.error["code"]) == (status, "not_found")


def test_a_wrong_method_names_the_right_ones(gateway: LiveGateway) -> None:
    answer = ask(gateway, b"", path=INFER, method="GET")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    assert answer.error["code"] == "protocol"
    assert ask(gateway, b"", path="/v2/health/live", method="DELETE").headers["allow"] == "GET,HEAD"


def test_shared_memory_is_off_unless_it_was_allowed(gateway: LiveGateway) -> None:
    path = "/v2/systemsharedmemory/region/r/register"
    answer = ask(gateway, b'{"key": "/r", "offset": 0, "byte_size": 4}', path=path)
    assert answer.status == 403
    assert "--allow-shared-memory" in answer.error["error"]
    assert ask(gateway, b"", path="/v2/systemsharedmemory/status", method="GET").body == b"[]"


def test_bytes_that_are_no_http_get_json_or_a_closed_door(gateway: LiveGateway) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 500,
    ):
        answer = send_bytes(gateway, data + b"\r\n\r\n")
        assert answer is None or answer.error["code"] == "protocol"
    works(gateway)


def test_header_bombs_are_refused(gateway: LiveGateway) -> None:
    for headers in (["X: " + "a" * 200_000], [f"X-{i}: a" for i in range(5000)]):
        answer = send_bytes(gateway, request_bytes(gateway, call(), *headers))
        assert answer is None or answer.error
    works(gateway)


def test_a_body_that_stops_coming_is_given_up(gateway: LiveGateway) -> None:
    started_s = time.monotonic()
    data = request_bytes(gateway, call()[:50], f"Content-Length: {len(call())}")
    answer = send_bytes(gateway, data)
    assert answer is not None
    assert answer.status == 408
    assert answer.error
    assert time.monotonic() - started_s < 8


def test_a_trickle_is_given_up_too(gateway: LiveGateway) -> None:
    body = call()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as stream:
        stream.sendall(request_bytes(gateway, b"", f"Content-Length: {len(body)}"))
        answer = None
        for i in range(40):
            try:
                stream.sendall(body[i : i + 1])
            except OSError:
                break
            stream.settimeout(0.1)
            try:
                answer = read_answer(stream)
                break
            except TimeoutError:
                continue
    assert answer is not None
    assert answer.status == 408


def test_a_connection_that_sends_nothing_is_closed(gateway: LiveGateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as stream:
        stream.sendall(b"POST /v2")
        assert stream.recv(1) == b""


def test_without_a_good_token_nothing_but_health_answers(gateway: LiveGateway) -> None:
    def status(path: str, *headers: str) -> Answer:
        data = "\r\n".join([f"GET {path} HTTP/1.1", "Host: h", *headers]).encode() + b"\r\n\r\n"
        answer = send_bytes(gateway, data)
        assert answer is not None
        return answer

    assert status("/v2/health/live").status == 200
    assert status("/v2/health/ready").status == 200
    for path in ("/v2", "/v2/models/mlp", "/metrics", "/v2/nothing"):
        for headers in ((), ("Authorization: Bearer hyb_aaaaaaaa_" + "a" * 32,), ("Authorization: Basic eDp5",)):
            answer = status(path, *headers)
            assert (answer.status, answer.error["code"]) == (401, "unauthenticated")
            assert "www-authenticate" in answer.headers


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_good_request_is_an_answer(gateway: LiveGateway, data: st.DataObject) -> None:
    """Bytes of the JSON and of the tensors changed, dropped or doubled: 200 where it still makes sense, else 4xx."""
    body = bytearray(binary_call() + X.tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        kind = data.draw(st.sampled_from(["change", "drop", "double"]))
        if kind == "change":
            body[at] = data.draw(st.integers(0, 255))
        elif kind == "drop":
            del body[at]
        else:
            body.insert(at, body[at])
    length = data.draw(st.sampled_from([len(binary_call()), len(binary_call()) - 1, len(binary_call()) + 1]))
    answer = ask(gateway, bytes(body), f"Inference-Header-Content-Length: {length}")
    if answer.status != 200:
        assert answer.error
