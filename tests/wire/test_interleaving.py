"""Two channels against one another: any split of the bytes, any order of sending, delivering and cancelling."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import Overloaded
from hybrid.wire.events import (
    Failed,
    PongReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    WithdrawalSettled,
)
from hybrid.wire.frames import FrameReader
from hybrid.wire.limits import Limits
from tests.wire.pair import Pair, make_pair, open_pair, request_of, response_of

TIGHT = Limits(message_bytes=200_000, unfinished_bytes=200_000, streams=5, initial_credit_bytes=20_000)
SIZES = [0, 1, 10, 15_000, 20_500, 65_000, 150_000]


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_frames_are_the_same_however_the_bytes_are_split(seed, sizes):
    pair = open_pair(Limits(), Limits())
    rng = random.Random(seed)
    for _ in range(3):
        pair.client.send_request(request_of(rng.choice(SIZES), fill=rng.randrange(256)), 0.0)
    pair.client.ping(0.0)
    for _ in range(20):
        pair.flush_client()
    data = bytes(pair.up)
    whole = [(f.kind, f.stream, bytes(f.payload), f.end) for f in FrameReader().feed(data)]
    reader, pieces, at, turn = FrameReader(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces += [(f.kind, f.stream, bytes(f.payload), f.end) for f in reader.feed(data[at : at + size])]
        at, turn = at + size, turn + 1
    assert pieces == whole


class Scenario:
    """A random walk over two channels, and the books that must balance."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.rng = random.Random(seed)
        self.open: dict[int, tuple[int, int]] = {}
        self.cancelled: set[int] = set()
        self.at_server: set[int] = set()
        self.ended: dict[int, str] = {}

    def step(self) -> None:
        self.pair.now_s += self.rng.random() * 0.01
        self.rng.choice(
            [self.ask, self.cancel, self.answer, self.flush_up, self.flush_down, self.up, self.down, self.up, self.down]
        )()
        assert self.pair.client.n_streams <= TIGHT.streams

    def ask(self) -> None:
        size, fill = self.rng.choice(SIZES), self.rng.randrange(256)
        try:
            stream = self.pair.client.send_request(request_of(size, fill=fill), self.pair.now_s)
        except Overloaded:
            return
        self.open[stream] = (size, fill)

    def cancel(self) -> None:
        if self.open:
            stream = self.rng.choice(sorted(self.open))
            del self.open[stream]
            self.cancelled.add(stream)
            self.pair.client.cancel(stream)
            self.pair.client.ping(self.pair.now_s)

    def answer(self) -> None:
        if self.at_server:
            stream = self.rng.choice(sorted(self.at_server))
            self.at_server.discard(stream)
            if self.rng.random() < 0.2:
                self.pair.server.send_error(stream, Overloaded("no"))
            else:
                self.pair.server.send_response(stream, response_of(self.rng.choice(SIZES), fill=stream % 256))

    def flush_up(self) -> None:
        self.pair.flush_client(self.rng.choice([1, 1000, 40_000]))

    def flush_down(self) -> None:
        self.pair.flush_server(self.rng.choice([1, 1000, 40_000]))

    def up(self) -> None:
        for event in self.pair.deliver_up(self.rng.choice([1, 7, 8, 9, 500, 16_392, 100_000])):
            if isinstance(event, RequestReceived):
                array = event.request.inputs[0].to_array()
                if event.stream in self.open:
                    size, fill = self.open[event.stream]
                    np.testing.assert_array_equal(array, np.full(size, fill, dtype=np.uint8))
                self.at_server.add(event.stream)
            elif isinstance(event, RequestCancelled):
                assert event.stream in self.cancelled
                self.at_server.discard(event.stream)
            elif isinstance(event, RequestRefused):
                # The client counts a stream as free when it cancels, the server when it hears of that.
                assert isinstance(event.error, Overloaded)
            else:
                assert not isinstance(event, Failed), event

    def down(self) -> None:
        for event in self.pair.deliver_down(self.rng.choice([1, 7, 8, 9, 500, 16_392, 100_000])):
            if isinstance(event, WithdrawalSettled):
                assert event.stream in self.cancelled
                continue
            if isinstance(event, PongReceived):
                if self.pair.client.has_withdrawn:
                    self.pair.client.ping(self.pair.now_s)
                continue
            assert isinstance(event, ResponseReceived | RequestFailed), event
            assert event.stream not in self.cancelled, "nothing comes after a cancel"
            assert event.stream not in self.ended, "each request ends once"
            del self.open[event.stream]
            if isinstance(event, ResponseReceived):
                values = event.response.outputs[0].to_array()
                assert (values == event.stream % 256).all()
            self.ended[event.stream] = type(event).__name__

    def finish(self) -> None:
        while True:
            before = (len(self.pair.up), len(self.pair.down), self.pair.client.sent_bytes, self.pair.server.sent_bytes)
            while self.at_server:
                self.answer()
            self.flush_up()
            self.flush_down()
            while self.pair.up:
                self.up()
            while self.pair.down:
                self.down()
            after = (0, 0, self.pair.client.sent_bytes, self.pair.server.sent_bytes)
            quiet = not (self.pair.client.has_frames or self.pair.server.has_frames or self.at_server)
            if before == after and quiet:
                return


@given(seed=st.integers(0, 2**63), steps=st.integers(50, 600))
@settings(max_examples=150, deadline=None)
def test_any_interleaving_ends_every_request_exactly_once_and_frees_everything(seed, steps):
    pair = open_pair(TIGHT, TIGHT)
    scenario = Scenario(pair, seed)
    for _ in range(steps):
        scenario.step()
    scenario.finish()
    assert scenario.open == {}, "every request that was not cancelled has ended"
    assert pair.client.n_streams == pair.server.n_streams == 0
    assert pair.client.state == pair.server.state == "open"
    for end in (pair.client, pair.server):
        assert end._budget._free_bytes == TIGHT.budget_bytes
        assert not end._budget._waiting
        assert end._sending.flight.unacked_bytes == 0
        assert end._sending.unsent_bytes == 0
        assert not end.has_withdrawn


@given(seed=st.integers(0, 2**63), loss=st.integers(0, 60_000))
@settings(max_examples=60, deadline=None)
def test_a_stream_cut_anywhere_gives_no_message_and_no_fault(seed, loss):
    pair = make_pair(TIGHT, TIGHT)
    rng = random.Random(seed)
    pair.flush_server()
    pair.deliver_down(1 << 20)
    pair.client.send_request(request_of(rng.choice([15_000, 65_000])), 0.0)
    pair.flush_client(100_000)
    whole = len(pair.up)
    del pair.up[max(0, whole - 1 - loss) :]
    events = pair.deliver_up(1 << 20)
    assert not any(isinstance(event, RequestReceived | Failed) for event in events)
