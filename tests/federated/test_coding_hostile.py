"""Bytes that nobody wrote: refused with a word, never with another error or with much memory."""

import struct
import tracemalloc

import numpy as np
import pytest

from compression.codecs.entropy import squeeze
from hybrid.errors import BadMessage
from hybrid.federated.coding.catalog import form as form_of
from hybrid.federated.coding.form import Form
from hybrid.federated.coding.gaps import decode_gaps
from hybrid.federated.layout import Layout

LAYOUT = Layout(names=("w", "b"), shapes=((20, 15), (3,)))
N = LAYOUT.n_elements
NAMES = ("float32", "int8", "int4", "top-k 0.05", "top-k 0.5")


def form(text: str) -> Form:
    name, _, share = text.partition(" ")
    return form_of(name, float(share or 0.01))


def sound(name: str) -> bytes:
    vector = np.random.default_rng(1).normal(size=N).astype(np.float32)
    return form(name).encode(vector, LAYOUT, np.random.default_rng(2)).content


def outcome(name: str, content: bytes) -> bool:
    """Whether it was read; a refusal has to be `BadMessage`."""
    try:
        vector = form(name).decode(content, LAYOUT)
    except BadMessage as error:
        assert str(error)
        return False
    assert vector.shape == (N,)
    assert vector.dtype == np.float32
    if name != "float32":
        assert np.isfinite(vector).all()
    return True


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_and_every_longer_content_is_refused(name):
    content = sound(name)
    assert outcome(name, content)
    assert not any(outcome(name, content[:length]) for length in range(len(content)))
    assert not outcome(name, content + b"\0")
    assert not outcome(name, content + content)


@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes_are_read_as_a_vector_or_refused(name):
    content, rng = sound(name), np.random.default_rng(3)
    n_refused = 0
    for _ in range(1500):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        n_refused += not outcome(name, bytes(changed))
    assert n_refused > 0 or name == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_read_as_a_vector_or_refused(name):
    rng = np.random.default_rng(4)
    for _ in range(500):
        outcome(name, rng.bytes(int(rng.integers(0, 2 * len(sound(name))))))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3.3e38])
def test_scales_are_finite_and_leave_finite_elements(name, scale):
    content = bytearray(sound(name))
    content[2:6] = struct.pack("<f", scale)
    with pytest.raises(BadMessage, match="scale"):
        form(name).decode(bytes(content), LAYOUT)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3e38])
def test_a_sparse_contents_scale_too(scale):
    content = bytearray(sound("top-k 0.05"))
    content[1:5] = struct.pack("<f", scale)
    with pytest.raises(BadMessage, match="scale"):
        form("top-k 0.05").decode(bytes(content), LAYOUT)


def test_levels_below_the_lowest_are_refused():
    scales = struct.pack("<2f", 1, 1)
    with pytest.raises(BadMessage, match="-128"):
        form("int8").decode(bytes([8, 0]) + scales + b"\x80" * N, LAYOUT)
    n_blocks = 3
    with pytest.raises(BadMessage, match="-8"):
        form("int4").decode(bytes([4, 0]) + struct.pack("<3f", *[1] * n_blocks) + b"\x08" * ((N + 1) // 2), LAYOUT)
    with pytest.raises(BadMessage, match="behind its last element"):
        form("int4").decode(bytes([4, 0]) + struct.pack("<3f", 1, 1, 1) + b"\x11" * ((N + 1) // 2), LAYOUT)
    content = bytearray(sound("top-k 0.05"))
    content[5] = 0x80
    with pytest.raises(BadMessage, match="-128"):
        form("top-k 0.05").decode(bytes(content), LAYOUT)


def test_a_frame_that_says_more_than_the_layout_takes_no_memory():
    """64 MiB of zeros in a few kilobytes, where 303 levels were due."""
    bomb = bytes([8, 1]) + struct.pack("<2f", 1, 1) + squeeze(b"\0" * (64 << 20))
    tracemalloc.start()
    with pytest.raises(BadMessage):
        form("int8").decode(bomb, LAYOUT)
    small = bytes([8, 1]) + struct.pack("<2f", 1, 1) + squeeze(b"\0" * (4 << 20))[:N]
    with pytest.raises(BadMessage):
        form("int8").decode(small, LAYOUT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def bits(text: str) -> bytes:
    return np.packbits([int(bit) for bit in text]).tobytes()


@pytest.mark.parametrize(
    ("code", "parameter", "why"),
    [
        (bits("11"), 0, "holds 2"),
        (bits("1111"), 0, "holds 4"),
        (bits("0000000000011100"), 0, "names element 13 of 12"),
        (bits("1110000000000000"), 0, "behind the last one"),
        (bits("0000000111100000"), 1, "behind the last one"),
        (bits("1111111111110000") + bits("111"), 4, "names element 47 of 12"),
        (b"", 0, "cannot hold"),
        (bits("111"), 25, "cannot hold"),
        (bits("111") + b"\0" * 50, 0, "cannot hold"),
        (bits("00000000"), 0, "holds 0"),
    ],
)
def test_places_that_no_three_elements_of_twelve_have(code, parameter, why):
    with pytest.raises(BadMessage, match=why):
        decode_gaps(memoryview(code), parameter, 3, 12)


def test_places_always_rise():
    """Whatever the bits, since gaps are at least zero: no element is named twice."""
    rng = np.random.default_rng(5)
    n_read = 0
    for _ in range(3000):
        code = rng.bytes(int(rng.integers(1, 4)))
        try:
            indices = decode_gaps(memoryview(code), int(rng.integers(0, 4)), 3, 20)
        except BadMessage:
            continue
        n_read += 1
        assert (np.diff(indices) > 0).all()
        assert 0 <= indices[0] <= indices[-1] < 20
    assert n_read > 10
