"""The index of a file: covers it, is the same everywhere, comes back as it was written, and is not to be fooled."""

import hashlib
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.artifact.chunk_messages import (
    MAX_RANGES,
    compress,
    decompress,
    put_ranges,
    refs_of,
    take_ranges,
)
from hybrid.artifact.chunk_view import FileView
from hybrid.artifact.chunks import (
    MAX_PIECE_BYTES,
    MIN_PIECE_BYTES,
    Chunk,
    ChunkIndex,
    build,
    decode,
    encode,
    piece_bytes_for,
    put_numbers,
)
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import BadMessage


def index_of(path: Path, extents: list[tuple[int, int]], piece_bytes: int = MIN_PIECE_BYTES) -> ChunkIndex:
    return build(FileView(path, path.stat().st_size), extents, piece_bytes)


def test_chunks_cover_the_file_in_order_and_large_tensors_are_cut_from_their_start(tmp_path: Path):
    data = random.Random(1).randbytes(700_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    index = index_of(path, [(10, 100), (1000, 600_000)])
    assert b"".join(chunk.glue or data[chunk.offset : chunk.offset + chunk.size] for chunk in index.chunks) == data
    named = [(chunk.offset, chunk.size) for chunk in index.chunks if chunk.name]
    assert named == [(10, 100), (1000, 262_144), (263_144, 262_144), (525_288, 75_712)]
    assert index.chunks[1].name == hashlib.sha256(data[10:110]).digest()[:6]


def test_a_file_without_tensors_is_cut_into_pieces_and_an_empty_one_into_none(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    assert all(chunk.name for chunk in index_of(path, []).chunks)
    assert len(index_of(path, []).chunks) == 12
    path.write_bytes(b"")
    assert decode(encode(index_of(path, [])), 0).chunks == ()


def test_too_much_glue_is_named_instead_of_carried(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(random.Random(2).randbytes(12 << 20))
    extents = [(at, 64) for at in range(0, 12 << 20, 500_000)]
    index = index_of(path, extents)
    assert sum(len(chunk.glue) for chunk in index.chunks) <= 8 << 20
    assert decode(encode(index), 12 << 20) == index


@given(st.lists(st.tuples(st.integers(1, 70_000), st.binary(max_size=40)), max_size=40))
def test_an_index_comes_back_as_it_was_written(parts: list[tuple[int, bytes]]):
    chunks, at = [], 0
    for size, glue in parts:
        size = len(glue) or size
        chunks.append(Chunk(at, size, b"" if glue else hashlib.sha256(bytes([size % 256])).digest()[:6], glue))
        at += size
    index = ChunkIndex(size=at, piece_bytes=1 << 18, chunks=tuple(chunks))
    assert decode(decompress(compress(encode(index))), at) == index


def hostile(*, size: int = 1000, piece: int = 1 << 18, lengths: tuple[int, ...] = (1000 << 1,), tail: int = 6) -> bytes:
    head = bytearray([1])
    put_numbers(head, (piece, size, len(lengths), *lengths))
    return bytes(head) + bytes(tail)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x02" + hostile()[1:], id="another schema"),
        pytest.param(hostile(size=1001), id="another size"),
        pytest.param(hostile(lengths=(999 << 1,)), id="a gap at the end"),
        pytest.param(hostile(lengths=(1001 << 1,)), id="beyond the end"),
        pytest.param(hostile(lengths=(0, 1000 << 1), tail=12), id="an empty chunk"),
        pytest.param(hostile(lengths=(600 << 1, 600 << 1), tail=12), id="more than the file"),
        pytest.param(hostile(lengths=((1 << 62),)), id="huge"),
        pytest.param(hostile(lengths=((1 << 40) << 1 | 1,)), id="huge glue"),
        pytest.param(hostile(piece=1 << 40), id="huge pieces"),
        pytest.param(hostile(piece=0), id="no pieces"),
        pytest.param(hostile(piece=100), id="longer than a piece"),
        pytest.param(hostile(tail=5), id="cut off"),
        pytest.param(hostile(tail=7), id="too long"),
        pytest.param(b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", id="an endless number"),
        pytest.param(b"\x01" + bytes([0x80, 0x80, 0x10, 0xE8, 7]) + b"\xff\xff\xff\x7f", id="many chunks"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(data: bytes):
    assert decode(hostile(), 1000).chunks[0].size == 1000
    with pytest.raises(BadMessage):
        decode(data, 1000)


def test_noise_is_refused_in_little_memory():
    rng = random.Random(4)
    sound = encode(
        ChunkIndex(size=500, piece_bytes=1 << 18, chunks=(Chunk(0, 400, b"abcdef"), Chunk(400, 100, b"", bytes(100))))
    )
    tracemalloc.start()
    try:
        for _ in range(3000):
            data = bytearray(sound)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(16)] = rng.randrange(256)
            try:
                decode(bytes(data), 500)
            except BadMessage:
                pass
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_is_refused_before_it_unfolds():
    import zstandard

    with pytest.raises(BadMessage, match="are the most"):
        decompress(zstandard.ZstdCompressor().compress(bytes(64 << 20)))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(BadMessage):
        decompress(unsized)
    with pytest.raises(BadMessage, match="unpacked"):
        decompress(b"\x28\xb5\x2f\xfd nonsense follows here")


def test_against_a_like_index_one_is_little_more_than_the_difference():
    rng = random.Random(6)
    old = rng.randbytes(20_000)
    new = old[:10_000] + b"changed" + old[10_000:]
    small = compress(new, old)
    assert len(small) < 100 < len(compress(new))
    assert decompress(small, old) == new


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 5000)), max_size=50))
def test_ranges_come_back_as_they_were_written(gaps: list[tuple[int, int]]):
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append((at + gap, length))
        at += gap + length
    assert take_ranges(put_ranges(ranges), at) == ranges
    if ranges:
        with pytest.raises(BadMessage):
            take_ranges(put_ranges(ranges), at - 1)


def test_ranges_are_bounded():
    with pytest.raises(BadMessage):
        take_ranges(put_ranges([(0, (16 << 20) + 1)]), 1 << 40)
    with pytest.raises(BadMessage):
        take_ranges(put_ranges([(at * 2, 1) for at in range(MAX_RANGES + 1)]), 1 << 40)
    with pytest.raises(BadMessage):
        take_ranges(put_ranges([(0, 0)]), 100)
    with pytest.raises(BadMessage):
        take_ranges(b"\x80", 100)


def test_pieces_grow_with_the_file_and_never_beyond_what_one_call_may_ask():
    assert piece_bytes_for(0) == piece_bytes_for(1 << 30) == MIN_PIECE_BYTES
    assert piece_bytes_for(2 << 30) == 2 * MIN_PIECE_BYTES
    assert piece_bytes_for(1 << 50) == MAX_PIECE_BYTES == 16 << 20


def test_files_that_are_no_models_are_asked_for_with_the_models_beside_them():
    def entry(mark: str) -> FileEntry:
        return FileEntry(sha256=mark * 64, size=1)

    names = {"a/m.onnx": "1", "a/w/m.data": "2", "b.onnx": "3", "b.tflite": "4", "labels": "5"}
    refs = refs_of({name: entry(mark) for name, mark in names.items()})
    assert refs["a/m.onnx"].models == refs["b.onnx"].models == refs["b.tflite"].models == {}
    assert refs["a/w/m.data"].models == {"1" * 64: "w/m.data", "3" * 64: "a/w/m.data"}
    assert refs["labels"].models == {"3" * 64: "labels"}
