"""The channel's rules, one by one, without a socket."""

import numpy as np
import pytest

from hybrid.errors import (
    BadFrame,
    BadMessage,
    Cancelled,
    DigestMismatch,
    Overloaded,
    TensorMismatch,
    TooLarge,
    VersionMismatch,
    Warming,
)
from hybrid.wire import frames
from hybrid.wire.events import (
    Connected,
    Failed,
    GoawayReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
)
from hybrid.wire.frames import FrameReader, Hello, Kind
from hybrid.wire.limits import Limits
from hybrid.wire.message import encode_request
from tests.wire.pair import make_pair, open_pair, request_of, response_of

SMALL = Limits(message_bytes=1_000_000, unfinished_bytes=1_000_000, streams=4, initial_credit_bytes=65_536)


def kinds_in(data: bytes) -> list[Kind]:
    return [frame.kind for frame in FrameReader().feed(data)]


def test_hellos_open_both_ends_and_tell_the_limits():
    pair = make_pair(server=SMALL)
    at_client, at_server = pair.settle()
    assert [type(event) for event in at_client + at_server] == [Connected, Connected]
    assert pair.client.peer == Hello(
        software="server", initial_credit_bytes=65_536, max_streams=4, max_message_bytes=1_000_000
    )


@pytest.mark.parametrize("n_bytes", [0, 1, 16_000, 70_000, 900_000])
def test_a_request_and_its_response_travel_whole(n_bytes):
    pair = open_pair(SMALL, SMALL)
    stream = pair.client.send_request(request_of(n_bytes, fill=7), 0.0)
    _, (event,) = pair.settle()
    assert isinstance(event, RequestReceived)
    assert event.stream == stream
    np.testing.assert_array_equal(event.request.inputs[0].to_array(), np.full(n_bytes, 7, dtype=np.uint8))
    pair.server.send_response(stream, response_of(n_bytes, fill=9))
    (answer,), _ = pair.settle()
    assert isinstance(answer, ResponseReceived)
    np.testing.assert_array_equal(answer.response.outputs[0].to_array(), np.full(n_bytes, 9, dtype=np.uint8))
    assert pair.client.n_streams == pair.server.n_streams == 0


def test_receive_seconds_run_from_first_to_last_byte():
    pair = open_pair()
    pair.client.send_request(request_of(60_000), 0.0)
    pair.flush_client(1 << 20)
    pair.now_s = 5.0
    assert pair.deliver_up(20_000) == []
    pair.now_s = 7.5
    (event,) = pair.deliver_up(1 << 20)
    assert event.receive_s == 2.5


def test_no_more_than_the_initial_credit_is_sent_before_a_grant():
    pair = open_pair(SMALL, SMALL)
    pair.client.send_request(request_of(500_000), 0.0)
    for _ in range(100):
        pair.flush_client()
    sizes = [len(frame.payload) for frame in FrameReader().feed(bytes(pair.up))]
    assert sum(sizes) == SMALL.initial_credit_bytes
    assert max(sizes) == 16 * 1024


def test_bodies_wait_for_the_budget_in_turn_and_all_arrive():
    pair = open_pair(SMALL, SMALL)
    streams = [pair.client.send_request(request_of(800_000, fill=n), 0.0) for n in range(4)]
    order = []
    granted = set()
    while len(order) < 4:
        pair.flush_client()
        order += [event.stream for event in pair.deliver_up(1 << 20)]
        pair.flush_server()
        for frame in FrameReader().feed(bytes(pair.down)):
            if frame.kind is Kind.CREDIT and frames.read_pair(frame)[1] > SMALL.initial_credit_bytes:
                granted.add(frame.stream)
        assert len(granted - set(order)) <= 1, "two bodies of 800 kB do not fit a budget of 1 MB"
        pair.deliver_down(1 << 20)
    assert order == streams


def test_many_streams_together_do_not_wait_for_each_others_acknowledgements():
    pair = open_pair()
    for _ in range(60):
        pair.client.send_request(request_of(30_000), 0.0)
    _, events = pair.settle()
    assert len(events) == 60


def test_streams_take_turns():
    pair = open_pair()
    long = pair.client.send_request(request_of(200_000), 0.0)
    short = pair.client.send_request(request_of(20_000), 0.0)
    pair.flush_client(100_000)
    turns = [frame.stream for frame in FrameReader().feed(bytes(pair.up))]
    assert turns[:4] == [long, short, long, short]


def test_control_frames_overtake_data():
    pair = open_pair()
    first = pair.client.send_request(request_of(200_000), 0.0)
    other = pair.client.send_request(request_of(200_000), 0.0)
    pair.flush_client(32_768)
    pair.up.clear()
    pair.client.ping(0.0)
    pair.client.cancel(other)
    pair.flush_client(32_768)
    found = list(FrameReader().feed(bytes(pair.up)))
    assert [frame.kind for frame in found[:2]] == [Kind.PING, Kind.CANCEL]
    assert {frame.stream for frame in found[2:]} == {first}


def test_cancel_while_sending_frees_the_server():
    pair = open_pair(SMALL, SMALL)
    stream = pair.client.send_request(request_of(800_000), 0.0)
    pair.flush_client()
    assert pair.deliver_up(1 << 20) == []
    pair.client.cancel(stream)
    assert pair.settle() == ([], [])
    assert pair.server.n_streams == 0
    pair.client.send_request(request_of(900_000), 0.0)
    _, (event,) = pair.settle()
    assert isinstance(event, RequestReceived)


def test_cancel_after_delivery_tells_the_server_once():
    pair = open_pair()
    stream = pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    pair.client.cancel(stream)
    pair.client.cancel(stream)
    assert pair.settle() == ([], [RequestCancelled(stream)])
    pair.server.send_response(stream, response_of(10))
    assert pair.settle() == ([], [])


def test_a_response_that_crosses_its_cancel_is_skipped():
    pair = open_pair()
    stream = pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    pair.server.send_response(stream, response_of(100_000))
    pair.flush_server(1 << 20)
    pair.client.cancel(stream)
    assert pair.deliver_down(1 << 20) == []
    assert pair.settle() == ([], [])
    assert pair.client.state == "open"


@pytest.mark.parametrize(
    "error", [DigestMismatch("other model"), Warming("building", retry_after_s=0.5), Cancelled("gone")]
)
def test_errors_travel_by_their_code(error):
    pair = open_pair()
    stream = pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    pair.server.send_error(stream, error)
    (event,), _ = pair.settle()
    assert isinstance(event, RequestFailed)
    assert type(event.error) is type(error)
    assert str(event.error) == str(error)
    assert event.error.fields == error.fields


def test_an_early_error_stops_the_upload():
    pair = open_pair()
    stream = pair.client.send_request(request_of(5_000_000), 0.0)
    pair.flush_client()
    pair.deliver_up(1 << 20)
    pair.server.send_error(stream, Overloaded("full", retry_after_s=1.0))
    pair.flush_server()
    (event,) = pair.deliver_down(1 << 20)
    assert isinstance(event.error, Overloaded)
    sent = pair.client.sent_bytes
    assert pair.settle() == ([], [])
    assert pair.client.sent_bytes == sent < 100_000


def lying(header: bytes) -> bytes:
    payload = len(header).to_bytes(4, "little") + header
    return frames.head(Kind.DATA, 1, len(payload)) + payload


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (lying(b"{}"), BadMessage),
        (lying(b'{"inputs":[{"name":"x","shape":[4],"datatype":"FP32"}]}'), BadMessage),
        (
            lying(b'{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","parameters":{"binary_data_size":9}}]}'),
            TensorMismatch,
        ),
        (frames.head(Kind.DATA, 1, 4) + (65_537).to_bytes(4, "little"), TooLarge),
        (frames.head(Kind.DATA, 1, 4) + (2**32 - 1).to_bytes(4, "little"), TooLarge),
    ],
)
def test_a_bad_message_ends_its_stream_alone(data, error):
    pair = open_pair()
    (refused,) = pair.server.receive(data, 0.0)
    assert isinstance(refused, RequestRefused)
    assert type(refused.error) is error
    assert pair.server.receive(frames.head(Kind.DATA, 1, 3) + b"abc", 0.0) == [], "what was on its way is skipped"
    assert kinds_in(pair.server.next_frames(32_768, 0.0)) == [Kind.ERROR]
    assert pair.server.state == "open"


HELLO = frames.hello_frame(Hello(initial_credit_bytes=1, max_streams=1, max_message_bytes=1))


@pytest.mark.parametrize(
    "data",
    [
        frames.head(Kind.DATA, 1, 1) + b"x",
        frames.token_frame(Kind.PING, 1),
        frames.head(Kind.HELLO, 0, 2) + b"{}",
        frames.head(Kind.HELLO, 0, 4) + b'\xff\xff"}',
        HELLO + HELLO,
        HELLO + b"\x00" * 8,
        HELLO + b"\x09" + b"\x00" * 7,
        HELLO + frames.head(Kind.DATA, 1, 16_385),
        HELLO + frames.head(Kind.DATA, 1, 0),
        HELLO + frames.head(Kind.DATA, 0, 1) + b"x",
        HELLO + frames.head(Kind.DATA, 1, 1, 2) + b"x",
        HELLO + frames.head(Kind.DATA, 1, 2, 1) + b"xx",
        HELLO + frames.head(Kind.CANCEL, 1, 1) + b"x",
        HELLO + frames.head(Kind.CREDIT, 1, 8) + b"x" * 8,
        HELLO + frames.head(Kind.PING, 3, 8) + b"x" * 8,
        HELLO + frames.refusal_frame(Kind.GOAWAY, 0, Overloaded("clients do not drain")),
        HELLO + frames.refusal_frame(Kind.ERROR, 1, Overloaded("clients do not refuse")),
    ],
)
def test_a_fault_in_the_framing_ends_the_connection(data):
    pair = make_pair()
    event = pair.server.receive(data, 0.0)[-1]
    assert isinstance(event, Failed)
    assert type(event.error) is BadFrame
    assert pair.server.state == "closed"
    assert kinds_in(pair.server.next_frames(1 << 20, 0.0))[-1] == Kind.ERROR
    assert pair.server.receive(HELLO, 0.0) == []


def test_more_than_the_credit_ends_the_connection():
    pair = open_pair(SMALL, SMALL)
    message = encode_request(request_of(400_000))
    data = len(message.header).to_bytes(4, "little") + message.header + bytes(message.buffers[0])
    # A second body of the same size waits for the budget, so its credit stays at the initial one.
    for stream in (1, 2, 3):
        for at in range(0, 65_536, 16_384):
            assert pair.server.receive(frames.head(Kind.DATA, stream, 16_384) + data[at : at + 16_384], 0.0) == []
    (event,) = pair.server.receive(frames.head(Kind.DATA, 3, 1) + b"x", 0.0)
    assert isinstance(event, Failed)
    assert "credit" in str(event.error)


def test_an_acknowledgement_of_what_was_never_sent_ends_the_connection():
    pair = open_pair()
    pair.client.send_request(request_of(100), 0.0)
    (event,) = pair.client.receive(frames.credit_frame(1, 10**6, 2**63), 0.0)
    assert isinstance(event, Failed)


def test_old_credits_do_no_harm():
    pair = open_pair(SMALL, SMALL)
    stream = pair.client.send_request(request_of(300_000), 0.0)
    for received in (0, 40_000, 20_000, 0):
        pair.flush_client()
        pair.client.receive(frames.credit_frame(stream, received, 0), 0.0)
    _, (event,) = pair.settle()
    assert isinstance(event, RequestReceived)


@pytest.mark.parametrize("versions", [(2, 9), (0, 0)])
def test_another_protocol_version_is_a_version_mismatch_on_both_sides(versions):
    pair = make_pair()
    hello = Hello(versions=versions, software="other", initial_credit_bytes=1, max_streams=1, max_message_bytes=1)
    (event,) = pair.server.receive(frames.hello_frame(hello), 0.0)
    assert isinstance(event, Failed)
    assert type(event.error) is VersionMismatch
    answer = pair.server.next_frames(1 << 20, 0.0)
    assert kinds_in(answer) == [Kind.HELLO, Kind.ERROR]
    error_only = answer[answer.index(b"\x05", 8) :]
    failed = pair.client.receive(error_only, 0.0)
    assert [type(event) for event in failed] == [Failed]
    assert type(failed[0].error) is VersionMismatch


def test_more_streams_than_allowed_are_refused_on_both_sides():
    pair = open_pair(SMALL, SMALL)
    for _ in range(4):
        pair.client.send_request(request_of(10), 0.0)
    with pytest.raises(Overloaded):
        pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    message = encode_request(request_of(10))
    payload = len(message.header).to_bytes(4, "little") + message.header + bytes(message.buffers[0])
    (event,) = pair.server.receive(frames.head(Kind.DATA, 9, len(payload), frames.END) + payload, 0.0)
    assert isinstance(event.error, Overloaded)
    assert pair.server.n_streams == 4


def test_a_client_that_takes_no_answers_is_refused_more():
    pair = open_pair(SMALL, SMALL)
    streams = [pair.client.send_request(request_of(10), 0.0) for _ in range(2)]
    pair.settle()
    for stream in streams:
        pair.server.send_response(stream, response_of(900_000))
    pair.flush_server(1 << 20)
    pair.client.send_request(request_of(10), 0.0)
    pair.flush_client()
    (event,) = pair.deliver_up(1 << 20)
    assert isinstance(event, RequestRefused)
    assert isinstance(event.error, Overloaded)
    at_client, _ = pair.settle()
    assert sorted(type(event).__name__ for event in at_client) == ["RequestFailed", *["ResponseReceived"] * 2]


def test_messages_beyond_the_peers_limit_are_not_sent():
    pair = open_pair(SMALL, SMALL)
    with pytest.raises(TooLarge):
        pair.client.send_request(request_of(1_000_001), 0.0)
    stream = pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    pair.server.send_response(stream, response_of(1_000_001))
    (event,), _ = pair.settle()
    assert isinstance(event.error, TooLarge)


def test_a_peer_that_does_not_read_its_errors_is_dropped():
    pair = open_pair()
    for stream in range(1, 5000):
        pair.server.receive(frames.head(Kind.DATA, stream, 6) + (2).to_bytes(4, "little") + b"{}", 0.0)
    assert pair.server.state == "closed"
    assert len(pair.server.next_frames(1 << 30, 0.0)) <= 65_536


def test_goaway_finishes_what_was_accepted_and_refuses_the_rest():
    pair = open_pair()
    kept = pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    late = pair.client.send_request(request_of(10), 0.0)
    pair.server.go_away(Overloaded("draining", retry_after_s=2.0))
    at_client, at_server = pair.settle()
    assert at_server == []
    assert [type(event) for event in at_client] == [GoawayReceived, RequestFailed]
    assert at_client[1].stream == late
    assert at_client[1].error.fields == {"retry_after_s": 2.0}
    with pytest.raises(Overloaded):
        pair.client.send_request(request_of(10), 0.0)
    pair.server.send_response(kept, response_of(10))
    (answer,), _ = pair.settle()
    assert isinstance(answer, ResponseReceived)


def test_a_bad_response_fails_its_request_and_cancels_it():
    pair = open_pair()
    stream = pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    (event,) = pair.client.receive(frames.head(Kind.DATA, stream, 6) + (2).to_bytes(4, "little") + b"{}", 0.0)
    assert isinstance(event, RequestFailed)
    assert isinstance(event.error, BadMessage)
    _, (cancelled,) = pair.settle()
    assert cancelled == RequestCancelled(stream)
