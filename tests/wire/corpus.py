"""A seeded corpus of broken byte streams: valid conversations with one or more lies in them."""

import random
import struct
from collections.abc import Iterator

import msgspec
import numpy as np

from hybrid.errors import Overloaded
from hybrid.wire import frames
from hybrid.wire.frames import Hello, Kind
from hybrid.wire.message import EncodedMessage, InferRequest, encode_request
from hybrid.wire.tensor import Tensor

EDGES = [0, 1, 7, 16_384, 16_385, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS = [*EDGES, 2**53, 2**63 - 1, 2**63, 2**64, 2**70, -1, -(2**31), 1e308, True, None, "8", [], {}]


def hello(rng: random.Random) -> bytes:
    versions = rng.choices([(1, 1), (0, 5), (2, 3), (0, 0), (5, 1), (-1, 2**40)], [60, 4, 2, 2, 1, 1])[0]
    return frames.hello_frame(
        Hello(versions=versions, software="f" * rng.choice([0, 8, 200]), initial_credit_bytes=rng.choice([1, 1 << 16]),
              max_streams=rng.choice([1, 8]), max_message_bytes=1 << 20)
    )  # fmt: skip


def message(rng: random.Random) -> EncodedMessage:
    dtypes = [np.float32, np.float16, np.int64, np.bool_, np.uint8]
    shapes = [(), (0, 3), (5,), (2, 30), (6000,)]
    arrays = [np.zeros(rng.choice(shapes), dtype=rng.choice(dtypes)) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.3:
        arrays.append(np.array([b"one", b"", b"three"], dtype=object))
    return encode_request(
        InferRequest(
            model_digest="ab" * 32,
            cut="0123456789abcdef",
            inputs=tuple(Tensor.of(f"t{i}", array) for i, array in enumerate(arrays)),
        )
    )


def lie(header: bytes, rng: random.Random) -> bytes:
    """The JSON header with one value replaced."""
    value = msgspec.json.decode(header)
    tensor = rng.choice(value["inputs"])
    where = rng.randrange(7)
    if where == 0:
        tensor["shape"] = [rng.choice(NUMBERS) for _ in range(rng.choice([0, 1, 2, 33, 64]))]
    elif where == 1:
        tensor["parameters"]["binary_data_size"] = rng.choice(NUMBERS)
    elif where == 2:
        tensor["datatype"] = rng.choice(["BF16", "object", "BYTES", "FP64", "", "fp32", "STRING", "INT4"])
    elif where == 3:
        tensor["parameters"]["hybrid_codec"] = rng.choice(["lossless", "jpeg", "fp16", "pickle", "", 5])
    elif where == 4:
        value["parameters"][rng.choice(["hybrid_deadline_s", "hybrid_cut", "x"])] = rng.choice(NUMBERS)
    elif where == 5:
        del tensor[rng.choice(["name", "shape", "datatype", "parameters"])]
    else:
        value["inputs"] = rng.choice([[], {}, None, [tensor, tensor], "x"])
    return msgspec.json.encode(value)


def data_frames(stream: int, rng: random.Random, *, is_lying: bool) -> list[bytes]:
    encoded = message(rng)
    header = lie(encoded.header, rng) if is_lying else encoded.header
    size = rng.choice(EDGES) if is_lying and rng.random() < 0.1 else len(header)
    data = struct.pack("<I", size) + header + b"".join(map(bytes, encoded.buffers))
    step = rng.choice([1000, 16_384])
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    if is_lying and rng.random() < 0.2:
        pieces = rng.choice([pieces[:-1], pieces + pieces[-1:], pieces[::-1], [b"", *pieces]])
    last = len(pieces) - 1
    return [frames.head(Kind.DATA, stream, len(piece), int(i == last)) + piece for i, piece in enumerate(pieces)]


def control_frame(rng: random.Random) -> bytes:
    stream = rng.choice([0, 1, 2, 3, 2**31, 2**32 - 1])
    numbers = [n for n in NUMBERS if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**64]
    return rng.choice(
        [
            frames.credit_frame(max(stream, 1), rng.choice(numbers), rng.choice(numbers)),
            frames.cancel_frame(max(stream, 1)),
            frames.token_frame(rng.choice([Kind.PING, Kind.PONG]), rng.choice(numbers)),
            frames.refusal_frame(rng.choice([Kind.ERROR, Kind.GOAWAY]), stream, Overloaded("x", retry_after_s=1.0)),
            frames.head(Kind.ERROR, stream, 2) + b"{}",
            frames.hello_frame(Hello(initial_credit_bytes=1, max_streams=1, max_message_bytes=1)),
        ]
    )


def spoil(data: bytes, rng: random.Random) -> bytes:
    """One mutation of the raw bytes."""
    spoiled = bytearray(data)
    where = rng.randrange(len(spoiled))
    kind = rng.randrange(6)
    if kind == 0:
        spoiled[where] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del spoiled[where:]
    elif kind == 2:
        spoiled[where:where] = rng.randbytes(rng.choice([1, 4, 8, 100]))
    elif kind == 3:
        spoiled[where : where + 4] = struct.pack("<I", rng.choice(EDGES))
    elif kind == 4:
        del spoiled[where : where + rng.choice([1, 8, 100])]
    else:
        spoiled += rng.randbytes(rng.choice([1, 7, 8, 9, 1000]))
    return bytes(spoiled)


def broken_streams(n: int, *, seed: int) -> Iterator[bytes]:
    """So many byte streams, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(n):
        parts = [hello(rng)]
        for stream in range(1, rng.randrange(2, 5)):
            parts += data_frames(stream, rng, is_lying=rng.random() < 0.6)
            if rng.random() < 0.4:
                parts.append(control_frame(rng))
        if rng.random() < 0.1:
            rng.shuffle(parts)
        data = b"".join(parts)
        yield spoil(data, rng) if rng.random() < 0.5 else data
