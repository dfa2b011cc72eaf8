"""Pings, progress and stalls: what counts as a sign of life."""

import pytest

from hybrid.wire import frames
from hybrid.wire.events import PongReceived, WithdrawalSettled
from hybrid.wire.frames import FrameReader, Kind
from tests.wire.pair import open_pair, request_of


def test_pings_measure_the_round_trip():
    pair = open_pair()
    pair.client.ping(0.0)
    pair.now_s = 0.25
    (event,), _ = pair.settle()
    assert event == PongReceived(0.25, is_quiet=True)


def test_a_flood_of_pings_is_answered_once():
    pair = open_pair()
    for token in range(50_000):
        pair.server.receive(frames.token_frame(Kind.PING, token), 0.0)
    (frame,) = FrameReader().feed(pair.server.next_frames(1 << 20, 0.0))
    assert (frame.kind, frames.read_token(frame)) == (Kind.PONG, 49_999)


def test_silence_is_a_stall_only_while_an_answer_is_owed():
    pair = open_pair()
    pair.client.ping(0.0)
    assert pair.client.stalled_s(100.0) == 0.0
    pair.client.send_request(request_of(200_000), 100.0)
    assert pair.client.stalled_s(100.5) == 0.5


def test_a_late_pong_is_no_stall_while_acknowledgements_advance():
    pair = open_pair()
    pair.client.send_request(request_of(200_000), 0.0)
    pair.client.ping(0.0)
    for second in range(1, 6):
        pair.now_s = float(second)
        pair.flush_client(32_768)
        pair.deliver_up(1 << 20)
        acks = [f for f in FrameReader().feed(pair.server.next_frames(1 << 20, pair.now_s)) if f.kind is Kind.CREDIT]
        for frame in acks:
            pair.client.receive(frames.credit_frame(frame.stream, *frames.read_pair(frame)), pair.now_s)
        assert acks
        assert pair.client.is_ping_out
        assert pair.client.stalled_s(second + 0.5) == 0.5


def test_a_long_computation_is_no_stall_while_pongs_come():
    pair = open_pair()
    pair.client.send_request(request_of(10), 0.0)
    pair.settle()
    for second in range(1, 6):
        pair.now_s = float(second)
        pair.client.ping(pair.now_s)
        pair.settle()
        assert pair.client.stalled_s(pair.now_s + 0.1) == pytest.approx(0.1)


def test_repeated_credit_without_advance_is_no_progress():
    pair = open_pair()
    stream = pair.client.send_request(request_of(100_000), 0.0)
    pair.flush_client(1 << 20)
    pair.client.receive(frames.credit_frame(stream, 50_000, 100_000), 1.0)
    pair.client.receive(frames.credit_frame(stream, 50_000, 100_000), 9.0)
    assert pair.client.stalled_s(10.0) == 9.0


def test_what_a_cancelled_upload_had_sent_counts_until_a_later_ping_is_back():
    pair = open_pair()
    stream = pair.client.send_request(request_of(300_000), 0.0)
    pair.flush_client(40_000)
    pair.client.cancel(stream)
    unacked_bytes = pair.client._sending.flight.unacked_bytes
    assert unacked_bytes >= 40_000
    assert pair.client.has_withdrawn
    assert pair.client.stalled_s(2.0) == 2.0, "a gateway that says nothing of it has stalled"
    pair.client.ping(2.0)
    pair.now_s = 3.0
    at_client, _ = pair.settle()
    assert at_client == [WithdrawalSettled(stream, unacked_bytes, 3.0), PongReceived(1.0, is_quiet=False)]
    assert pair.client._sending.flight.unacked_bytes == 0
    assert pair.client.stalled_s(9.0) == 0.0


def test_the_end_of_a_request_is_acknowledged_at_once_and_dates_its_arrival():
    pair = open_pair()
    stream = pair.client.send_request(request_of(20_000), 0.0)
    pair.now_s = 1.0
    pair.settle()
    assert pair.client.upload(stream).acked_bytes == pair.client.upload(stream).n_bytes
    pair.client.cancel(stream)
    pair.client.ping(5.0)
    pair.now_s = 6.0
    (settled, _), _ = pair.settle()
    assert settled.arrived_s == 1.0


def test_acknowledgements_of_a_cancelled_upload_are_progress():
    pair = open_pair()
    stream = pair.client.send_request(request_of(300_000), 0.0)
    pair.flush_client(100_000)
    pair.client.cancel(stream)
    pair.client.receive(frames.credit_frame(stream, 50_000, 300_000), 4.0)
    assert pair.client.stalled_s(5.0) == 1.0
    assert pair.client.next_frames(1 << 20, 5.0)  # the CANCEL, and no more data
    assert not pair.client.has_frames


def test_a_ping_that_was_out_before_the_cancel_settles_nothing():
    pair = open_pair()
    stream = pair.client.send_request(request_of(300_000), 0.0)
    pair.flush_client(40_000)
    pair.client.ping(0.0)
    pair.client.cancel(stream)
    at_client, _ = pair.settle()
    assert [type(event) for event in at_client] == [PongReceived]
    assert pair.client.has_withdrawn
