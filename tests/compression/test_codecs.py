"""Every codec: what it keeps, what it refuses, and that no bytes at all make it fail in an untyped way."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.codecs import catalog
from compression.errors import NotEncodable, UnknownCodec
from compression.tensor import BYTES, NUMPY_OF, TensorSpec, datatype_of

LOSSLESS = ("none", "lossless")
FLOATS = ("FP16", "FP32", "FP64")


def spec_of(array: np.ndarray) -> TensorSpec:
    return TensorSpec(name="t", dtype=datatype_of(array), shape=array.shape)


def bits(array: np.ndarray) -> object:
    return array.tolist() if array.dtype == object else array.tobytes()


def numeric_arrays() -> st.SearchStrategy[np.ndarray]:
    dtypes = st.sampled_from([dtype for name, dtype in NUMPY_OF.items() if name != BYTES])
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
    return dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))


@pytest.mark.parametrize("name", LOSSLESS)
@given(array=numeric_arrays())
@settings(max_examples=150, deadline=None)
def test_every_bit_comes_back(name: str, array: np.ndarray) -> None:
    codec = catalog.get(name)
    back = codec.decode(codec.encode(array), spec_of(array))
    assert bits(back) == bits(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.flags.c_contiguous
    assert back.flags.writeable


@pytest.mark.parametrize("name", LOSSLESS)
@given(elements=st.lists(st.binary(max_size=40), max_size=30))
@settings(max_examples=80, deadline=None)
def test_strings_come_back_as_bytes(name: str, elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    codec = catalog.get(name)
    assert codec.decode(codec.encode(array), spec_of(array)).tolist() == elements


@pytest.mark.parametrize("name", LOSSLESS)
def test_text_and_long_strings(name: str) -> None:
    codec = catalog.get(name)
    array = np.array([["straße", "日本"], ["", "x" * 100_000]])
    back = codec.decode(codec.encode(array), spec_of(array))
    assert back.shape == (2, 2)
    assert [element.decode() for element in back.reshape(-1)] == array.reshape(-1).tolist()


@pytest.mark.parametrize("name", LOSSLESS)
def test_odd_memory_comes_back_in_order(name: str) -> None:
    codec = catalog.get(name)
    plain = np.arange(2 * 3 * 40 * 50, dtype=np.float32).reshape(2, 3, 40, 50) % 251
    for odd in (plain.transpose(0, 2, 3, 1), plain[:, :, ::2, ::-1], np.asfortranarray(plain), plain.astype(">f4")):
        back = codec.decode(codec.encode(odd), spec_of(odd))
        np.testing.assert_array_equal(back, odd)
        assert back.dtype == np.dtype("<f4")


@given(seed=st.integers(0, 2**32 - 1), n_patterns=st.integers(1, 300), channels_last=st.booleans())
@settings(max_examples=60, deadline=None)
def test_palettes_keep_odd_bit_patterns(seed: int, n_patterns: int, channels_last: bool) -> None:
    """Any patterns at all: NaNs with payloads, both zeros, denormals, and patterns whose upper halves collide."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, n_patterns, dtype=np.uint32)
    patterns[: min(4, n_patterns)] = np.array([0x7FC00001, 0x80000000, 0, 0xFFFFFFFF], np.uint32)[:n_patterns]
    shape = (2, 20, 30, 3) if channels_last else (2, 3, 20, 30)
    array = rng.choice(patterns, shape).view(np.float32)
    codec = catalog.get("lossless")
    assert bits(codec.decode(codec.encode(array), spec_of(array))) == array.tobytes()


@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
def test_a_normalised_photo_shrinks_below_its_bytes(photo: np.ndarray, dtype: str) -> None:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    first = ((photo / 255 - mean) / deviation).astype(NUMPY_OF[dtype])
    codec = catalog.get("lossless")
    for array in (np.ascontiguousarray(first.transpose(2, 0, 1))[np.newaxis], first[np.newaxis]):
        payload = codec.encode(array)
        assert len(payload) < 0.62 * photo.size
        assert bits(codec.decode(payload, spec_of(array))) == bits(array)


def test_lossless_never_adds_more_than_a_byte() -> None:
    codec = catalog.get("lossless")
    rng = np.random.default_rng(3)
    for size in (0, 1, 15, 16, 17, 5000, 100_000):
        noise = np.frombuffer(rng.bytes(8 * size), np.int64)
        assert len(codec.encode(noise)) <= noise.nbytes + 1


def test_half_rounds_and_refuses_what_does_not_fit() -> None:
    codec = catalog.get("fp16")
    array = np.array([[1.0, -0.0, np.inf, -np.inf, np.nan, 1e-9, 65519.0]], np.float32)
    back = codec.decode(codec.encode(array), spec_of(array))
    np.testing.assert_array_equal(back, array.astype(np.float16).astype(np.float32))
    assert back.flags.writeable
    for too_large in (65520.0, -1e30):
        with pytest.raises(NotEncodable, match="65504"):
            codec.encode(np.array([np.inf, too_large], np.float32))
    with pytest.raises(NotEncodable):
        codec.encode(np.arange(3))


def test_an_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(UnknownCodec, match="lossless"):
        catalog.get("lossles")
    assert all(codec.name == name for name, codec in catalog.CODECS.items())
    assert [name for name, codec in catalog.CODECS.items() if codec.lossy] == [
        "fp16", "q8", "q8z", "q4", "q4z", "jpeg", "jpeg75", "webp", "webp75",
    ]  # fmt: skip


def test_strings_hold_bytes_or_text_only() -> None:
    for name in LOSSLESS:
        with pytest.raises(NotEncodable):
            catalog.get(name).encode(np.array([b"a", 3], object))


@pytest.mark.parametrize(
    "shape", [(5000, 3, 1, 1), (256, 1, 8, 8), (70, 3, 64, 64), (3, 9000, 2), (20000, 3, 1), (4, 4), (1, 1, 1, 9000)]
)
def test_odd_shapes_cost_no_more_than_their_bytes(shape: tuple[int, ...]) -> None:
    """Many small planes are coded as one: encoding takes time by bytes, not by planes."""
    array = (np.random.default_rng(1).integers(0, 256, shape) / 255).astype(np.float32)
    codec = catalog.get("lossless")
    started_s = time.thread_time()
    payload = codec.encode(array)
    assert time.thread_time() - started_s < 0.3
    assert bits(codec.decode(payload, spec_of(array))) == array.tobytes()
