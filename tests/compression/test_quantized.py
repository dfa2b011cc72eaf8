"""Levels per channel: stated error bounds on any floats, what is refused, and payloads that lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.codecs import affine, catalog
from compression.codecs.affine import Levels
from compression.codecs.quantized import QuantizedCodec
from compression.errors import CorruptPayload, NotEncodable, UnknownCodec
from compression.tensor import NUMPY_OF, TensorSpec, datatype_of

NAMES = ("q8", "q8z", "q4", "q4z")
N_LEVELS = {"q8": 256, "q8z": 256, "q4": 16, "q4z": 16}
ROUNDING = 2.0**-20
"""Of the largest value: products and quotients in float32."""


def codec_of(name: str) -> QuantizedCodec:
    codec = catalog.get(name)
    assert isinstance(codec, QuantizedCodec)
    return codec


def spec_of(array: np.ndarray) -> TensorSpec:
    return TensorSpec(name="t", dtype=datatype_of(array), shape=array.shape)


def back_of(name: str, array: np.ndarray) -> np.ndarray:
    return codec_of(name).decode(codec_of(name).encode(array), spec_of(array))


def bound_of(array: np.ndarray, n_levels: int) -> np.ndarray:
    """Half of the largest step that a channel may have: 6.5 % over its span, a 15th octave below the widest one."""
    axis = affine.channel_axis(array.shape)
    others = None if axis is None else tuple(at for at in range(array.ndim) if at != axis)
    wide = array.astype(np.float64)
    high = np.maximum(wide.max(axis=others, keepdims=True), 0)
    span = high - np.minimum(wide.min(axis=others, keepdims=True), 0)
    step = 1.065 / (n_levels - 1) * np.maximum(span, span.max() * 2.0**-15)
    return step / 2 + ROUNDING * np.abs(wide).max() + 2.0**-100


def float_arrays(largest: float = 1e30) -> st.SearchStrategy[np.ndarray]:
    def arrays(dtype: np.dtype) -> st.SearchStrategy[np.ndarray]:
        limit = float(np.float16(6e4)) if dtype.itemsize == 2 else largest
        limit = float(np.array(limit, dtype))
        elements = st.floats(-limit, limit, width=8 * dtype.itemsize)
        return hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=8), elements=elements)

    return st.sampled_from([NUMPY_OF[name] for name in ("FP16", "FP32", "FP64")]).flatmap(arrays)


@pytest.mark.parametrize("name", NAMES)
@given(array=float_arrays())
@settings(max_examples=150, deadline=None)
def test_every_value_comes_back_within_half_a_step(name: str, array: np.ndarray) -> None:
    back = back_of(name, array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.flags.writeable
    assert back.flags.c_contiguous
    if array.size:
        limit = bound_of(array, N_LEVELS[name])
        if array.dtype == np.float16:
            limit = limit + np.abs(array.astype(np.float64)) * 2.0**-10 + 2.0**-24
        assert (np.abs(back.astype(np.float64) - array.astype(np.float64)) <= limit).all()
        assert (back[array == 0] == 0).all()  # a ReLU's rest stays exactly 0


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-12, 12))
@settings(max_examples=40, deadline=None)
def test_channels_of_any_scale_keep_their_own_step(name: str, seed: int, scale: float) -> None:
    """A channel ten thousand times smaller than its neighbour is as exact as it would be alone."""
    rng = np.random.default_rng(seed)
    wide = (10.0 ** rng.uniform(-2, 2, (1, 5, 1, 1)) * 10.0**scale).astype(np.float32)
    array = rng.standard_normal((1, 5, 6, 7), dtype=np.float32) * wide
    apart = np.abs(back_of(name, array) - array).max(axis=(0, 2, 3))
    alone = [np.abs(back_of(name, array[:, [at]]) - array[:, [at]]).max() for at in range(5)]
    np.testing.assert_array_equal(apart, np.array(alone, np.float32))


@given(value=st.floats(-(2.0**99), 2.0**99, width=32))
@settings(max_examples=60, deadline=None)
def test_constant_tensors_come_back_nearly_exactly(value: float) -> None:
    """One value spans the range from 0: it lies within a 500th of itself, 0 and what is as good as 0 at 0."""
    array = np.full((1, 3, 4, 8), value, np.float32)
    for name in ("q8", "q8z"):
        assert np.abs(back_of(name, array) - array).max() <= max(abs(value) / 470, 2.0**-100)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused(name: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        for shape in ((1, 3, 8, 8), (64,), ()):
            array = np.zeros(shape, np.float32)
            array.reshape(-1)[array.size // 2] = bad
            with pytest.raises(NotEncodable, match="finite"):
                catalog.get(name).encode(array)
    with pytest.raises(NotEncodable, match="finite"):
        catalog.get(name).encode(np.array([1e200]))
    with pytest.raises(NotEncodable, match="finite"):
        catalog.get(name).encode(np.array([-2e38, 2e38], np.float32))
    for other in (np.arange(4), np.array([True]), np.array([b"a"], object), np.zeros(3, np.uint8)):
        with pytest.raises(NotEncodable, match="FP32"):
            catalog.get(name).encode(other)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((), None), ((70,), None), ((4, 0), None), ((1, 1280), None), ((32, 384), 1), ((1, 24, 56, 56), 1),
        ((2, 3, 4, 4, 4), 1), ((1, 56, 56, 24), 3), ((1, 32, 384), 2), ((1, 1280, 1, 1), None), ((1, 120, 1, 40), 1),
    ],
)  # fmt: skip
def test_the_axis_follows_from_the_shape(shape: tuple[int, ...], axis: int | None) -> None:
    assert affine.channel_axis(shape) == axis


@pytest.mark.parametrize("name", NAMES)
def test_any_axis_decodes(name: str) -> None:
    """The axis travels, so that another rule for choosing it needs no new codec."""
    rng = np.random.default_rng(2)
    levels = rng.integers(0, N_LEVELS[name], (3, 4, 5), dtype=np.uint8)
    for axis in (0, 1, 2, None):
        n_channels = 1 if axis is None else levels.shape[axis]
        scales = np.full(n_channels, 0.25, np.float32) * 2.0 ** np.arange(n_channels, dtype=np.float32)
        zeros = np.arange(n_channels, dtype=np.uint8)
        payload = codec_of(name).pack(Levels(levels=levels, scales=scales, zeros=zeros, axis=axis))
        found = codec_of(name).decode(payload, TensorSpec(name="t", dtype="FP32", shape=levels.shape))
        along = [-1 if at == axis else 1 for at in range(3)]
        wanted = (levels.astype(np.float32) - zeros.reshape(along)) * scales.reshape(along)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["q8", "q4"])
@given(array=float_arrays())
@settings(max_examples=60, deadline=None)
def test_the_entropy_stage_changes_no_value_and_adds_no_byte(name: str, array: np.ndarray) -> None:
    plain, squeezed = catalog.get(name).encode(array), catalog.get(f"{name}z").encode(array)
    assert len(squeezed) <= len(plain)
    spec = spec_of(array)
    np.testing.assert_array_equal(catalog.get(f"{name}z").decode(squeezed, spec), catalog.get(name).decode(plain, spec))
    np.testing.assert_array_equal(catalog.get(name).decode(squeezed, spec), catalog.get(name).decode(plain, spec))


def test_names_say_whose_values_they_carry() -> None:
    assert [catalog.values_of(name) for name in NAMES] == ["q8", "q8", "q4", "q4"]
    assert all(catalog.values_of(name) == name for name in catalog.CODECS if name not in NAMES)
    with pytest.raises(UnknownCodec):
        catalog.values_of("q2z")


def test_sizes_are_as_documented() -> None:
    array = np.random.default_rng(0).standard_normal((1, 24, 56, 56), dtype=np.float32)
    assert len(catalog.get("q8").encode(array)) == 4 + 2 * 24 + array.size
    assert len(catalog.get("q4").encode(array)) == 4 + 2 * 24 + array.size // 2
    assert len(catalog.get("q4").encode(array[:, :, :1, :33])) == 4 + 2 * 24 + (24 * 33 + 1) // 2
    assert len(catalog.get("q4z").encode(array)) < array.nbytes / 8


def payload_of(name: str, shape: tuple[int, ...] = (1, 3, 5, 5)) -> bytearray:
    return bytearray(catalog.get(name).encode(np.random.default_rng(1).standard_normal(shape).astype(np.float32)))


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_and_addition_is_refused(name: str) -> None:
    spec = TensorSpec(name="t", dtype="FP32", shape=(1, 3, 5, 5))
    payload = payload_of(name)
    for length in range(len(payload)):
        with pytest.raises(CorruptPayload):
            catalog.get(name).decode(payload[:length], spec)
    with pytest.raises(CorruptPayload):
        catalog.get(name).decode(payload + b"\0", spec)


@pytest.mark.parametrize(
    ("name", "at", "byte"),
    [
        ("q8", 0, 2), ("q8", 1, 4), ("q8", 1, 254), ("q8", 2, 0xFF), ("q8", 3, 0x0F), ("q8", 3, 0xFF),
        ("q4", 7, 16), ("q4", 7, 255), ("q4", -1, 0x10),
    ],
    ids=["form", "axis", "other axis", "code", "infinite", "beyond", "zero point", "zero point 255", "half byte"],
)  # fmt: skip
def test_lies_in_the_header_are_refused(name: str, at: int, byte: int) -> None:
    payload = payload_of(name)
    payload[at] = payload[at] | byte if at == -1 else byte
    if (at, byte) == (2, 0xFF):
        payload[3] = 0x0F  # together: the code of a NaN
    elif (at, byte) == (3, 0x0F):
        payload[2] = 0xF0
    with pytest.raises(CorruptPayload):
        catalog.get(name).decode(payload, TensorSpec(name="t", dtype="FP32", shape=(1, 3, 5, 5)))


def test_a_scale_below_every_number_is_refused() -> None:
    payload = payload_of("q8")
    payload[2:4] = b"\0\0"
    with pytest.raises(CorruptPayload, match="scale"):
        catalog.get("q8").decode(payload, TensorSpec(name="t", dtype="FP32", shape=(1, 3, 5, 5)))


@pytest.mark.parametrize("dtype", ["FP16", "FP32", "FP64"])
def test_the_largest_scale_saturates_and_never_overflows(dtype: str) -> None:
    payload = payload_of("q8")
    payload[2:4] = (0xFDF).to_bytes(2, "little")
    back = catalog.get("q8").decode(payload, TensorSpec(name="t", dtype=dtype, shape=(1, 3, 5, 5)))
    assert np.isfinite(back).all()


@pytest.mark.parametrize("name", NAMES)
def test_levels_from_elsewhere_with_a_scale_that_is_no_number_are_refused(name: str) -> None:
    levels = np.zeros((1, 2, 4, 4), np.uint8)
    for scales in ((np.nan, 1.0), (np.inf, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.3, 1.0), (1.0, 2.0**-40)):
        found = Levels(levels=levels, scales=np.array(scales, np.float32), zeros=np.zeros(2, np.uint8), axis=1)
        with pytest.raises(NotEncodable, match="finite"):
            codec_of(name).pack(found)
