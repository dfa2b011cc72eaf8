"""The client against a real server: answers, errors, cancelling, sharing, both carriers."""

import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

from hybrid.errors import (
    CATALOG,
    BadMessage,
    DeadlinePassed,
    GatewayUnreachable,
    HybridError,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Warming,
)
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests.transport.conftest import ask, counts, eventually

LIMITS = {"stall_s": 5.0, "timeout_s": 10.0}


@pytest.fixture(params=["websocket", "http"])
def carried(request, server_of, client_of):
    """A client over each carrier."""
    server = server_of(*(["--block", "403"] if request.param == "http" else []))
    return client_of(server.url)


@pytest.mark.parametrize("n_bytes", [0, 4_000, 150_000, 1_500_000])
def test_what_is_sent_comes_back(carried, n_bytes):
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, n_bytes, dtype=np.uint8)
    inputs = (Tensor.of("a", array), Tensor.of("b", np.float32(2.5)), Tensor.of("s", np.array(["ü", ""], dtype=object)))
    response = carried.infer(InferRequest(model_name="echo", inputs=inputs), **LIMITS).result(10)
    back = {tensor.spec.name: tensor.to_array() for tensor in response.outputs}
    np.testing.assert_array_equal(back["a"], array)
    assert back["b"] == 2.5
    assert back["s"].tolist() == ["ü".encode(), b""]
    assert back["a"].flags.writeable


@pytest.mark.parametrize("code", ["warming", "overloaded", "digest_mismatch", "unknown_cut", "deadline_passed"])
def test_errors_come_back_as_what_they_are(carried, code):
    with pytest.raises(CATALOG[code], match=f"as asked: {code}") as caught:
        carried.infer(ask(f"error:{code}"), **LIMITS).result(10)
    assert caught.value.fields == {"retry_after_s": 0.5}


def test_a_fault_of_the_gateway_tells_no_details(carried):
    with pytest.raises(HybridError) as caught:
        carried.infer(ask("bug"), **LIMITS).result(10)
    assert "secret" not in str(caught.value)
    assert carried.infer(ask("echo"), **LIMITS).result(10).model_name == "echo"


def test_cancelling_the_future_cancels_the_computation(carried):
    future = carried.infer(ask("slow:30"), **LIMITS)
    assert eventually(lambda: counts(carried)["running"] == 1)
    assert future.cancel()
    assert wait([future], 5).done == {future}, "those who wait for it are told"
    assert eventually(lambda: counts(carried)["running"] == 0)
    assert counts(carried)["cancelled"] == 1
    with pytest.raises(CancelledError):
        future.result()


def test_a_request_that_takes_too_long_ends_at_its_timeout_on_both_sides(carried):
    since_s = time.monotonic()
    with pytest.raises(DeadlinePassed):
        carried.infer(ask("slow:30"), stall_s=5, timeout_s=0.5).result(10)
    assert time.monotonic() - since_s < 3
    assert eventually(lambda: counts(carried)["running"] == 0)
    assert carried.state == "ready"


def test_a_long_computation_is_no_stall(carried):
    assert carried.infer(ask("slow:1.5"), stall_s=0.4, timeout_s=10).result(10).compute_s == 1.5


def test_requests_run_side_by_side(carried):
    since_s = time.monotonic()
    futures = [carried.infer(ask("slow:0.5", 20_000), **LIMITS) for _ in range(20)]
    assert not wait(futures, 10).not_done
    assert all(future.exception() is None for future in futures)
    assert time.monotonic() - since_s < 5


def test_many_threads_share_one_client(shared_server, client_of):
    client = client_of(shared_server.url)
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            array = rng.integers(0, 256, int(rng.integers(1, 60_000)), dtype=np.uint8)
            request = InferRequest(model_name="echo", inputs=(Tensor.of("x", array),))
            back = client.infer(request, **LIMITS).result(20).outputs[0].to_array()
            if not np.array_equal(back, array):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_clients_of_one_gateway_and_identity_are_one(shared_server):
    url = shared_server.url
    one, two = acquire(url, None, trust=Trust()), acquire(url, None, trust=Trust())
    other = acquire(url, "hyb_other", trust=Trust())
    assert one is two
    assert other is not one
    release(one)
    assert two.infer(ask("echo"), **LIMITS).result(10).model_name == "echo"
    release(two)
    release(other)
    with pytest.raises(GatewayUnreachable):
        two.infer(ask("echo"), **LIMITS).result(10)


def test_closing_ends_what_is_in_flight(shared_server):
    client = acquire(shared_server.url, None, trust=Trust())
    client.wait_settled(10)
    future = client.infer(ask("slow:30"), **LIMITS)
    release(client)
    assert isinstance(future.exception(5), HybridError)


def test_an_unreachable_gateway_fails_at_once_and_says_why(client_of):
    client = client_of("http://127.0.0.1:9", wait=False)
    assert client.wait_settled(10) == "down"
    since_s = time.monotonic()
    with pytest.raises(GatewayUnreachable, match=r"not connected|cannot be reached"):
        client.infer(ask("echo"), **LIMITS).result(10)
    assert time.monotonic() - since_s < LIMITS["stall_s"] / 2


def test_an_address_that_is_none_is_refused():
    with pytest.raises(GatewayUnreachable, match="give http"):
        acquire("ftp://127.0.0.1", None, trust=Trust())


def test_a_wrong_token_is_told(server_of, client_of):
    server = server_of("--token", "right")
    client = client_of(server.url, "wrong", wait=False)
    assert client.wait_settled(10) == "down"
    assert client.down_reason.startswith(Unauthenticated.code)
    assert client_of(server.url, "right").state == "ready"


def test_a_server_that_is_no_gateway_is_told(client_of):
    import http.server

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        client = client_of(f"http://127.0.0.1:{other.server_port}", wait=False)
        assert client.wait_settled(10) == "down"
        assert "404" in client.down_reason
        other.shutdown()


def test_control_calls_go_over_http(carried):
    assert carried.post_json("/v2/hybrid/prepare", {"a": 1}, timeout_s=5).result(10) == {"you": {"a": 1}}
    with pytest.raises(NotFound):
        carried.post_json("/v2/hybrid/nothing", {}, timeout_s=5).result(10)


def test_control_calls_that_fail_are_typed(client_of):
    client = client_of("http://127.0.0.1:9", wait=False)
    with pytest.raises(GatewayUnreachable):
        client.post_json("/v2/hybrid/prepare", {}, timeout_s=5).result(10)


def test_a_request_beyond_the_gateways_limit_is_not_sent(server_of, client_of):
    client = client_of(server_of("--message-bytes", "100000").url)
    with pytest.raises(TooLarge):
        client.infer(ask("echo", 100_001), **LIMITS).result(10)
    assert client.gateway_info.max_message_bytes == 100_000


def test_too_many_requests_are_refused_at_once(shared_server, client_of):
    client = client_of(shared_server.url)
    futures = [client.infer(ask("slow:30"), **LIMITS) for _ in range(300)]
    refused = [future for future in futures if future.done() and isinstance(future.exception(), Overloaded)]
    assert len(refused) >= 300 - 256
    for future in futures:
        future.cancel()
    assert eventually(lambda: counts(client)["running"] == 0)


def test_the_link_is_measured_on_the_way(shared_server, client_of):
    client = client_of(shared_server.url)
    for _ in range(3):
        client.infer(ask("echo", 200_000), **LIMITS).result(10)
    assert 0 < client.link.view.rtt_s < 0.5
    assert client.link.view.uplink_bps > 1e6


def test_ipv6_addresses_work(server_of, client_of):
    server = server_of("--host", "::1")
    client = client_of(f"http://[::1]:{server.port}")
    assert client.infer(ask("echo"), **LIMITS).result(10).model_name == "echo"


def test_state_changes_are_told(server_of):
    server = server_of()
    client = acquire(server.url, None, trust=Trust())
    client.wait_settled(10)
    told, is_ready = [], threading.Event()

    def listen(state):
        told.append(state)
        if state == "ready":
            is_ready.set()

    client.on_change(listen)
    server.kill()
    assert eventually(lambda: client.state == "down")
    server.start()
    assert is_ready.wait(15)
    assert told[-1] == "ready"
    assert "down" in told
    release(client)


def test_an_unsendable_request_is_the_futures_error(shared_server, client_of):
    client = client_of(shared_server.url)
    tensors = tuple(Tensor.of("n" * 100 + str(i), np.zeros(1)) for i in range(1000))
    with pytest.raises(TooLarge):
        client.infer(InferRequest(model_name="echo", inputs=tensors), **LIMITS).result(10)
    with pytest.raises((BadMessage, Warming, TooLarge)):
        client.infer(InferRequest(model_name="error:bad_message"), **LIMITS).result(10)
