"""A generated corpus of broken byte streams against both ends: typed errors only, no memory, no hang."""

import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest

from hybrid.errors import CATALOG, HybridError, ProtocolError, RefusedError
from hybrid.wire import frames
from hybrid.wire.channel import Channel
from hybrid.wire.events import Failed, RequestFailed, RequestReceived, RequestRefused
from hybrid.wire.frames import FrameReader, Hello, Kind
from hybrid.wire.limits import Limits
from tests.wire.corpus import broken_streams

LIMITS = Limits(message_bytes=1 << 20, unfinished_bytes=1 << 20, streams=8, initial_credit_bytes=65_536)
N_STREAMS = 4_000


def feed(role, data: bytes, rng: random.Random) -> list:
    channel = Channel(role, limits=LIMITS, software="fuzz", now_s=0.0)
    if role == "client":
        hello = Hello(initial_credit_bytes=1 << 16, max_streams=8, max_message_bytes=1 << 20)
        channel.receive(frames.hello_frame(hello), 0.0)
        data = data[len(frames.hello_frame(hello)) :] if rng.random() < 0.5 else data
    events, at = [], 0
    while at < len(data):
        size = rng.choice([1, 3, 8, 64, 4096, len(data)])
        events += channel.receive(data[at : at + size], 0.0)
        at += size
    while channel.has_frames:
        assert list(FrameReader().feed(channel.next_frames(32_768, 0.0))), "what it answers is well formed"
    return events


@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "client"])
def test_broken_streams_bring_typed_errors_only(role):
    rng = random.Random(20260712)
    n_frames = 0
    seen: Counter[str] = Counter()
    tracemalloc.start()
    for data in broken_streams(N_STREAMS, seed=7 if role == "server" else 8):
        n_frames += count_frames(data)
        for event in feed(role, data, rng):
            if isinstance(event, Failed | RequestRefused | RequestFailed):
                assert isinstance(event.error, HybridError)
                assert event.error.code in CATALOG or isinstance(event.error, RefusedError)
                seen[event.error.code] += 1
            elif isinstance(event, RequestReceived):
                seen["whole"] += 1
                try:
                    for tensor in event.request.inputs:
                        tensor.to_array()
                except ProtocolError as exc:
                    seen[exc.code] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_frames >= 10_000
    assert seen["bad_frame"] > 500
    if role == "server":
        assert min(seen["bad_message"], seen["tensor_mismatch"], seen["version_mismatch"], seen["whole"]) > 20
    assert peak < 16 << 20


def count_frames(data: bytes) -> int:
    """Frames in a stream by their declared lengths, the broken one included."""
    n, at = 0, 0
    while at < len(data):
        n += 1
        at += 8 + (struct.unpack_from("<H", data, at + 2)[0] if at + 4 <= len(data) else 0)
    return n


def test_random_bytes_bring_typed_errors_only():
    rng = random.Random(3)
    for _ in range(3000):
        data = rng.randbytes(rng.randrange(1, 400))
        channel = Channel("server", limits=LIMITS, software="fuzz", now_s=0.0)
        events = channel.receive(data, 0.0)
        assert channel.state in {"opening", "closed"}
        assert all(isinstance(event, Failed) and isinstance(event.error, HybridError) for event in events)


def test_the_corpus_is_the_same_every_time():
    def digest(streams: Iterator[bytes]) -> int:
        return hash(tuple(streams))

    assert digest(broken_streams(50, seed=7)) == digest(broken_streams(50, seed=7))


def test_the_corpus_holds_every_kind():
    kinds = set()
    for data in broken_streams(300, seed=7):
        try:
            kinds |= {frame.kind for frame in FrameReader().feed(data)}
        except ProtocolError:
            continue
    assert kinds == set(Kind)
