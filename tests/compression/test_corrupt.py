"""Bytes that are wrong (random, mutated, cut off, lying about sizes) end in `CorruptPayload` or in a whole tensor."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compression.codecs import catalog
from compression.codecs.codec import Payload
from compression.errors import CorruptPayload
from compression.tensor import BYTES, NUMPY_OF, TensorSpec, datatype_of

SHAPES = ((1, 3, 24, 32), (24, 32, 3), (1, 1, 16, 16), (700,), (), (0, 4))
MEBIBYTE = 1 << 20
FLOATS = ["FP16", "FP32", "FP64"]
PICTURES = ("jpeg", "jpeg75", "webp", "webp75", "lossless-webp")
CARRIED = dict.fromkeys(("fp16", "q8", "q8z", "q4", "q4z"), FLOATS) | {name: ["UINT8", "FP32"] for name in PICTURES}
"""Datatypes of the codecs that do not carry all of them."""


def decodes_or_refuses(name: str, payload: Payload, spec: TensorSpec) -> None:
    """The promise of `Codec.decode`, whatever the bytes."""
    try:
        array = catalog.get(name).decode(payload, spec)
    except CorruptPayload:
        return
    assert array.shape == spec.shape
    assert array.dtype == NUMPY_OF[spec.dtype]
    assert array.flags.writeable


def sample(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(5)
    if dtype == BYTES:
        array = np.empty(shape, object)
        array.reshape(-1)[:] = [bytes([index % 7]) * (index % 11) for index in range(array.size)]
        return array
    smooth = np.add.outer(np.arange(int(np.prod(shape)) or 1), [0])[:, 0] // 3 % 200
    noisy = (smooth + rng.integers(0, 3, smooth.size))[: int(np.prod(shape))]
    return (noisy / (1 if dtype in ("UINT8", "INT64", "BOOL") else 255)).astype(NUMPY_OF[dtype]).reshape(shape)


@pytest.mark.parametrize("name", list(catalog.CODECS))
@given(payload=st.binary(max_size=300), dtype=st.sampled_from(list(NUMPY_OF)), shape=st.sampled_from(SHAPES))
@settings(max_examples=200, deadline=None)
def test_random_bytes(name: str, payload: bytes, dtype: str, shape: tuple[int, ...]) -> None:
    decodes_or_refuses(name, payload, TensorSpec(name="t", dtype=dtype, shape=shape))


@given(form=st.integers(0, 5), payload=st.binary(max_size=200), dtype=st.sampled_from(list(NUMPY_OF)))
@settings(max_examples=200, deadline=None)
def test_random_bytes_behind_every_lossless_form(form: int, payload: bytes, dtype: str) -> None:
    for shape in SHAPES:
        decodes_or_refuses("lossless", bytes([form]) + payload, TensorSpec(name="t", dtype=dtype, shape=shape))


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_payloads(data: st.DataObject) -> None:
    """A valid payload with bytes flipped, removed, doubled or cut off, also read as another tensor."""
    name = data.draw(st.sampled_from(list(catalog.CODECS)))
    dtype = data.draw(st.sampled_from(CARRIED.get(name, list(NUMPY_OF))))
    shape = data.draw(st.sampled_from(SHAPES[:3] if name in PICTURES else SHAPES))
    payload = bytearray(catalog.get(name).encode(sample(dtype, shape)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(payload) - 1)))
        edit = data.draw(st.sampled_from(["flip", "cut", "drop", "double", "grow"]))
        if edit == "flip" and payload:
            payload[at] ^= data.draw(st.integers(1, 255))
        elif edit == "cut":
            del payload[at:]
        elif edit == "drop":
            del payload[at : at + 3]
        elif edit == "double":
            payload[at:at] = payload[at : at + 20]
        else:
            payload += data.draw(st.binary(min_size=1, max_size=9))
    other_dtype = data.draw(st.sampled_from([dtype, dtype, *NUMPY_OF]))
    other_shape = data.draw(st.sampled_from([shape, shape, *SHAPES]))
    decodes_or_refuses(name, payload, TensorSpec(name="t", dtype=other_dtype, shape=other_shape))


@pytest.mark.parametrize("name", ["none", "lossless"])
def test_every_truncation_is_refused(name: str) -> None:
    for dtype in ("UINT8", "FP32", "INT64", BYTES):
        array = sample(dtype, (1, 3, 6, 8))
        spec = TensorSpec(name="t", dtype=datatype_of(array), shape=array.shape)
        payload = catalog.get(name).encode(array)
        for length in range(len(payload)):
            with pytest.raises(CorruptPayload):
                catalog.get(name).decode(payload[:length], spec)
        with pytest.raises(CorruptPayload):
            catalog.get(name).decode(payload + b"\0", spec)


def peak_bytes_refusing(name: str, payload: bytes, spec: TensorSpec) -> int:
    catalog_codec = catalog.get(name)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload):
            catalog_codec.decode(payload, spec)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGER = TensorSpec(name="t", dtype="FP32", shape=(1, 3, 64, 64))


def test_a_zstd_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MEBIBYTE))
    spec = TensorSpec(name="t", dtype="UINT8", shape=(1, 3, 64, 64))
    image = b"\x03\x00" + bomb
    strings = b"\x01" + struct.pack("<I", 64 * MEBIBYTE) + bomb
    planes = b"\x02" + struct.pack("<I", len(bomb)) + bomb
    assert peak_bytes_refusing("lossless", image, spec) < MEBIBYTE
    assert peak_bytes_refusing("lossless", planes, spec) < MEBIBYTE
    levels = b"\x01\xff\x00\x08" + bomb
    assert all(peak_bytes_refusing(name, levels, LARGER) < MEBIBYTE for name in ("q8", "q8z", "q4", "q4z"))
    palettes = struct.pack("<II", 3 * 256, len(bomb)) + bomb
    assert peak_bytes_refusing("lossless-webp", palettes, LARGER) < MEBIBYTE
    assert peak_bytes_refusing("lossless", strings, TensorSpec(name="t", dtype=BYTES, shape=(4,))) < MEBIBYTE


def test_a_zstd_frame_without_a_size_or_with_a_huge_window_is_refused() -> None:
    spec = TensorSpec(name="t", dtype="UINT8", shape=(64, 64))
    content = bytes(range(64)) * 64
    no_size = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    # A hand-made header (RFC 8878, 3.1.1): 4-byte content size, no single segment, a window of 2 GiB.
    lying = struct.pack("<IBBI", 0xFD2FB528, 0x80, 21 << 3, len(content)) + no_size[6:]
    for frame, words in ((no_size, "declares no size"), (lying, "window")):
        with pytest.raises(CorruptPayload, match=words):
            catalog.get("lossless").decode(b"\x03\x00" + frame, spec)


def jpeg_payload(file: bytes, channels: int = 3) -> bytes:
    return struct.pack("<dd", 0, 255) * channels + struct.pack("<I", len(file)) + file


def jpeg_file(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "file",
    [
        jpeg_file((5000, 4000)),
        jpeg_file((32, 24), mode="L"),
        jpeg_file((24, 32)),
        jpeg_file((32, 24), progressive=True),
        jpeg_file((32, 24), exif=b"Exif\0\0 anything"),
        jpeg_file((32, 24))[:150],
        jpeg_file((32, 24)).replace(b"\xff\xda", b"\xff\xd9", 1),
    ],
    ids=["too large", "grey", "turned", "progressive", "exif", "cut", "no scan"],
)
def test_a_jpeg_of_anything_else_is_refused_before_pixels(file: bytes) -> None:
    spec = TensorSpec(name="t", dtype="FP32", shape=(1, 3, 24, 32))
    assert peak_bytes_refusing("jpeg", jpeg_payload(file), spec) < MEBIBYTE


def test_two_frames_in_one_jpeg_are_refused() -> None:
    """The first frame has the declared size, a second one is what a decoder would take."""
    good, other = jpeg_file((32, 24)), jpeg_file((640, 480))
    start = other.index(b"\xff\xc0")
    second = other[start : start + 2 + struct.unpack_from(">H", other, start + 2)[0]]
    scan = good.index(b"\xff\xda")
    spec = TensorSpec(name="t", dtype="FP32", shape=(1, 3, 24, 32))
    with pytest.raises(CorruptPayload, match="480"):
        catalog.get("jpeg").decode(jpeg_payload(good[:scan] + second + good[scan:]), spec)


def webp_file(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "WEBP", **options)
    return file.getvalue()


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


def scaled(file: bytes) -> bytes:
    """The frame header asks for a picture twice as wide (RFC 6386, 9.1)."""
    return file[:27] + bytes([file[27] | 0x40]) + file[28:]


@pytest.mark.parametrize(
    "file",
    [
        webp_file((5000, 4000)),
        webp_file((24, 32)),
        webp_file((32, 24), lossless=True),
        webp_file((32, 24), mode="RGBA"),
        webp_file((32, 24), exif=b"Exif\0\0 anything"),
        animated(),
        scaled(webp_file((32, 24))),
        webp_file((32, 24))[:-3],
        webp_file((32, 24)) + b"more",
        b"RIFF",
    ],
    ids=["too large", "turned", "lossless", "alpha", "exif", "animated", "scaled", "cut", "more", "start"],
)
def test_a_webp_of_anything_else_is_refused_before_pixels(file: bytes) -> None:
    spec = TensorSpec(name="t", dtype="FP32", shape=(1, 3, 24, 32))
    assert peak_bytes_refusing("webp", jpeg_payload(file), spec) < MEBIBYTE


@pytest.mark.parametrize(
    "file",
    [webp_file((5000, 4000), lossless=True), webp_file((24, 32), lossless=True), webp_file((32, 24)),
     webp_file((32, 24), mode="RGBA", lossless=True), webp_file((32, 24), lossless=True)[:24]],
    ids=["too large", "turned", "lossy", "alpha", "cut"],
)  # fmt: skip
def test_a_lossless_webp_of_anything_else_is_refused_before_pixels(file: bytes) -> None:
    spec = TensorSpec(name="t", dtype="UINT8", shape=(1, 3, 24, 32))
    assert peak_bytes_refusing("lossless-webp", struct.pack("<I", len(file)) + file, spec) < MEBIBYTE


@given(at=st.integers(12, 400), value=st.integers(0, 255), kind=st.sampled_from(["webp", "lossless-webp"]))
@settings(max_examples=150, deadline=None)
def test_damage_inside_a_webp(at: int, value: int, kind: str) -> None:
    """Behind the header, where only the decoder can see it."""
    array = sample("UINT8", (1, 3, 24, 32))
    payload = bytearray(catalog.get(kind).encode(array))
    payload[at % len(payload)] = value
    decodes_or_refuses(kind, payload, TensorSpec(name="t", dtype="UINT8", shape=array.shape))


def test_an_unknown_dimension_cannot_be_decoded() -> None:
    for codec in catalog.CODECS.values():
        with pytest.raises(CorruptPayload, match="open"):
            codec.decode(b"\0" * 8, TensorSpec(name="t", dtype="FP32", shape=(None, 2)))


def test_a_picture_beyond_all_use_is_refused() -> None:
    spec = TensorSpec(name="t", dtype="UINT8", shape=(60000, 60000, 3))
    assert peak_bytes_refusing("jpeg", jpeg_payload(jpeg_file((8, 8))), spec) < MEBIBYTE
