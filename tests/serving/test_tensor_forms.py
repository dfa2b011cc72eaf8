"""Tensors as JSON, as bytes and as classes: exact where they fit, refused where they do not."""

import gzip
import tracemalloc
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compression.tensor import BYTES, NUMPY_OF
from hybrid.errors import BadMessage, TensorMismatch, TooLarge
from hybrid.serving.rest.binary_tensor import array_of_bytes, bytes_of_array, text_array
from hybrid.serving.rest.body import Unpacker, unpack
from hybrid.serving.rest.classification import classify
from hybrid.serving.rest.json_tensor import array_of_json, list_of_array

NUMBERS = sorted(set(NUMPY_OF) - {BYTES})
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


@given(st.sampled_from(NUMBERS), st.data())
def test_bytes_and_back_are_the_same_tensor(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(NUMPY_OF[datatype], SHAPES))
    found = array_of_bytes("x", datatype, list(array.shape), memoryview(bytes(bytes_of_array(array, datatype))))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_strings_as_bytes_and_back(texts: list[bytes]) -> None:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    data = memoryview(bytes(bytes_of_array(array, BYTES)))
    try:
        expected = [text.decode() for text in texts]
    except UnicodeDecodeError:
        with pytest.raises(TensorMismatch, match="UTF-8"):
            array_of_bytes("x", BYTES, [len(texts)], data)
        return
    assert array_of_bytes("x", BYTES, [len(texts)], data).tolist() == expected


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.data())
def test_any_truncation_or_extension_of_strings_is_refused(texts: list[str], data: st.DataObject) -> None:
    array = np.array(texts, dtype=object)
    whole = bytes(bytes_of_array(array, BYTES))
    cut = data.draw(st.integers(0, len(whole) - 1))
    for broken in (whole[:cut], whole + b"x"):
        with pytest.raises(TensorMismatch):
            array_of_bytes("x", BYTES, [len(texts)], memoryview(broken))


@given(st.sampled_from([name for name in NUMBERS if name != "FP16"]), st.booleans(), st.data())
def test_json_and_back_are_the_same_tensor(datatype: str, nested: bool, data: st.DataObject) -> None:
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    kind = NUMPY_OF[datatype]
    array = data.draw(
        arrays.arrays(kind, arrays.array_shapes(max_dims=3, max_side=4), elements=arrays.from_dtype(kind, **elements))
    )
    text = raw(array.tolist() if nested else list_of_array("x", datatype, array))
    found = array_of_json("x", datatype, list(array.shape), text)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == (array + 0 if datatype.startswith("FP") else array).tobytes() or (found == array).all()


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("INT32", [2], "[1, 2.5]"),
        ("INT32", [2], '["1", 2]'),
        ("UINT8", [1], "[256]"),
        ("UINT8", [1], "[-1]"),
        ("INT64", [1], "[9223372036854775808]"),
        ("INT64", [1], "[1" + "0" * 400 + "]"),
        ("FP32", [1], "[1e39]"),
        ("FP32", [1], "[true]"),
        ("FP64", [1], "[1e999]"),
        ("BOOL", [1], "[2]"),
        ("BOOL", [1], '["true"]'),
        ("BYTES", [1], "[3]"),
        ("FP32", [2, 2], "[[1, 2], [3]]"),
        ("FP32", [2, 2], "[[1, 2, 3], [4, 5, 6]]"),
        ("FP32", [4], "[[1, 2], [3, 4]]"),
        ("FP32", [2], "[1, null]"),
        ("FP32", [1], "5"),
        ("FP32", [1], '{"a": 1}'),
        ("FP32", [1], "[" * 40 + "1" + "]" * 40),
        ("FP16", [1], "[1]"),
    ],
)
def test_json_that_is_not_the_declared_tensor_is_refused(datatype: str, shape: list[int], text: str) -> None:
    with pytest.raises(TensorMismatch, match="'x'"):
        array_of_json("x", datatype, shape, msgspec.Raw(text.encode()))


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("FP32", [4], "[" + "0," * 2_000_000 + "0]"),
        ("FP32", [2, 2], "[[0,0],[0" + ",0" * 2_000_000 + "]]"),
        ("FP32", [1], "[[0]" + ",[]" * 2_000_000 + "]"),
        ("FP32", [0, 3], "[" + "0," * 2_000_000 + "0]"),
        ("FP32", [1 << 39], "[0, 0]"),
        ("BYTES", [4], "[" + '"a",' * 1_000_000 + '"a"]'),
        ("BYTES", [0], "[" + '"a",' * 1_000_000 + '"a"]'),
        ("BYTES", [4], "[" + '"\\\\",' * 1_000_000 + '"a"]'),
        ("BYTES", [1 << 39], '["a"]'),
    ],
)
def test_another_number_of_elements_is_refused_before_anything_is_built(
    datatype: str, shape: list[int], text: str
) -> None:
    data = msgspec.Raw(text.encode())
    tracemalloc.start()
    try:
        with pytest.raises(TensorMismatch, match="another number of elements"):
            array_of_json("x", datatype, shape, data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * len(text) + 100_000


@given(st.lists(st.text(st.sampled_from('a\\",[]'), max_size=4), max_size=6))
def test_punctuation_in_strings_counts_for_nothing(texts: list[str]) -> None:
    assert array_of_json("x", BYTES, [len(texts)], raw(texts)).tolist() == texts


def test_flat_and_scalar_forms() -> None:
    assert array_of_json("x", "FP32", [2, 0], raw([[], []])).shape == (2, 0)
    assert array_of_json("x", "INT8", [2, 2], raw([1, 2, 3, 4])).tolist() == [[1, 2], [3, 4]]
    assert array_of_json("x", "FP32", [], raw([1.5])).shape == ()
    assert array_of_json("x", "FP32", [0, 3], raw([])).shape == (0, 3)
    assert array_of_json("x", "BYTES", [1, 2], raw([["a", "é"]])).tolist() == [["a", "é"]]
    assert array_of_json("x", "BOOL", [2], raw([True, False])).tolist() == [True, False]


def test_what_has_no_json_form_says_what_to_ask_for() -> None:
    with pytest.raises(TensorMismatch, match="binary_data"):
        list_of_array("y", "FP16", np.zeros(1, np.float16))
    array = np.empty(1, object)
    array[0] = b"\xff"
    with pytest.raises(TensorMismatch, match="binary_data"):
        list_of_array("y", BYTES, array)
    with pytest.raises(TensorMismatch, match="UTF-8"):
        text_array("y", array)


def test_flags_of_any_byte_value_are_true_or_false() -> None:
    found = array_of_bytes("x", "BOOL", [3], memoryview(b"\x00\x01\x07"))
    assert found.tolist() == [False, True, True]
    assert found.tobytes() == b"\x00\x01\x01"


def test_an_unaligned_view_is_copied() -> None:
    data = memoryview(b"\x00" + np.arange(4, dtype="<f4").tobytes())[1:]
    found = array_of_bytes("x", "FP32", [4], data)
    assert found.flags.aligned
    assert found.tolist() == [0, 1, 2, 3]


def test_classes_best_first_with_labels_where_they_fit() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    found = classify("y", "FP32", scores, 2, ("cat", "dog", "owl"))
    assert found.tolist() == [[b"0.700000:1:dog", b"0.200000:2:owl"], [b"0.500000:0:cat", b"0.250000:1:dog"]]
    assert classify("y", "FP32", scores, 9, ("two", "labels")).tolist()[0] == [
        b"0.700000:1", b"0.200000:2", b"0.100000:0",
    ]  # fmt: skip
    for bad in ((scores, -1), (np.float32(1), 1), (scores[:0], 1)):
        with pytest.raises(TensorMismatch):
            classify("y", "FP32", np.asarray(bad[0]), bad[1], ())


@given(st.binary(max_size=500), st.sampled_from(["gzip", "deflate", "bare"]))
def test_packed_bodies_unpack(data: bytes, form: str) -> None:
    if form == "bare":
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(data) + packer.flush()
        if packed[0] & 0x0F == 8:  # looks like zlib's format: no reader could tell
            return
    else:
        packed = gzip.compress(data) if form == "gzip" else zlib.compress(data)
    assert unpack(packed, "gzip" if form == "gzip" else "deflate", 1000) == data


def test_a_bomb_costs_the_limit_and_no_more() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(TooLarge, match="1000000"):
        unpack(bomb, "gzip", 1_000_000)


@pytest.mark.parametrize("packed", [b"", b"plain", gzip.compress(b"abc")[:-3], gzip.compress(b"abc") + b"more"])
def test_broken_packing_is_refused(packed: bytes) -> None:
    with pytest.raises(BadMessage):
        unpack(packed, "gzip", 1000)


def test_a_bomb_is_unpacked_piece_by_piece() -> None:
    unpacker = Unpacker(gzip.compress(bytes(10_000_000)), "gzip", 10_000_000)
    sizes = []
    while piece := unpacker.next_piece(1_000_000):
        sizes.append(len(piece))
    assert sum(sizes) == 10_000_000
    assert max(sizes) <= 1_000_000
