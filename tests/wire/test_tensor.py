"""Tensors: every datatype there and back, and every lie a typed error."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.tensor import NUMPY_OF, TensorSpec
from hybrid.errors import TensorMismatch
from hybrid.wire.tensor import Tensor

NUMBERS = sorted(set(NUMPY_OF) - {"BYTES"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@pytest.mark.parametrize("dtype", NUMBERS)
@given(data=st.data())
def test_numbers_come_back_bit_for_bit(dtype, data):
    array = data.draw(hnp.arrays(NUMPY_OF[dtype], SHAPES))
    back = Tensor.of("x", array).to_array()
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.c_contiguous
    assert back.flags.writeable


@given(elements=st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=20)), max_size=12))
def test_strings_come_back(elements):
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    back = Tensor.of("s", array).to_array()
    assert back.tolist() == [e.encode() if isinstance(e, str) else e for e in elements]


def test_string_scalars_and_matrices_keep_their_shape():
    assert Tensor.of("s", np.array("ü", dtype=object)).to_array().shape == ()
    matrix = Tensor.of("s", np.array([["a", "bb"], ["", "d"]]))
    assert matrix.spec.shape == (2, 2)
    assert matrix.to_array().tolist() == [[b"a", b"bb"], [b"", b"d"]]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=">i4").reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(24, dtype=np.int64)[::-2],
        np.float16([[np.nan, np.inf, -0.0, 6e-8]]),
    ],
    ids=["big-endian", "transposed", "strided", "nan-inf-denormal"],
)
def test_any_memory_layout_travels(array):
    back = Tensor.of("x", array).to_array()
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_contiguous_arrays_are_not_copied():
    array = np.zeros(1000, dtype=np.float32)
    tensor = Tensor.of("x", array)
    array[0] = 1.0
    assert tensor.to_array()[0] == 1.0


@pytest.mark.parametrize("codec", ["lossless", "fp16"])
def test_codecs_of_the_catalog_travel(codec):
    array = np.linspace(-1, 1, 3 * 16 * 16, dtype=np.float32).reshape(1, 3, 16, 16)
    tensor = Tensor.of("x", array, codec)
    assert tensor.codec == codec
    back = tensor.to_array()
    assert back.dtype == np.float32
    assert back.flags.writeable
    np.testing.assert_allclose(back, array, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "shape", "payload"),
    [
        ("FP32", (2, 2), bytes(15)),
        ("FP32", (2, 2), bytes(17)),
        ("FP32", (), b""),
        ("INT64", (0, 3), bytes(8)),
        ("UINT8", (2**31, 2**31), bytes(8)),
        ("UINT8", (-1,), b""),
        ("UINT8", (None,), b"a"),
        ("BF16", (1,), bytes(2)),
        ("BOOL", (2,), b"\x01\x02"),
        ("BYTES", (1,), b""),
        ("BYTES", (1,), struct.pack("<I", 3) + b"ab"),
        ("BYTES", (1,), struct.pack("<I", 2**31) + b"ab"),
        ("BYTES", (2,), struct.pack("<I", 4) + b"abcd"),
        ("BYTES", (1,), struct.pack("<I", 1) + b"abc"),
        ("BYTES", (2**62,), bytes(100)),
    ],
)
def test_bytes_that_contradict_the_declaration_are_refused(dtype, shape, payload):
    with pytest.raises(TensorMismatch):
        Tensor(spec=TensorSpec(name="x", dtype=dtype, shape=shape), payload=payload).to_array()


@pytest.mark.parametrize("codec", ["lossless", "fp16", "jpeg", "no-such-codec"])
@given(payload=st.binary(max_size=200))
def test_encoded_garbage_is_refused(codec, payload):
    spec = TensorSpec(name="x", dtype="FP32", shape=(1, 3, 17, 17))
    with pytest.raises(TensorMismatch):
        Tensor(spec=spec, codec=codec, payload=payload).to_array()


@pytest.mark.parametrize(
    "array", [np.array([1 + 2j]), np.array(["2020-01-01"], dtype="datetime64[D]"), np.array([1, "a"], dtype=object)]
)
def test_arrays_that_do_not_travel_are_refused(array):
    with pytest.raises(TensorMismatch):
        Tensor.of("x", array)
