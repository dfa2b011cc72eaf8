"""Shape keys: canonical text, stable ids, nonsense refused."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.errors import BadMessage
from hybrid.graph.shape_key import ShapeKey


def test_the_text_is_canonical_and_the_id_is_its_hash():
    key = ShapeKey.of({"sr": np.array(16000), "input": np.zeros((1, 576)), "état": np.zeros((2, 1, 128))})
    assert key.text == '{"input":[1,576],"sr":[],"état":[2,1,128]}'
    assert key.id == "63fd460db02712e2"


@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 2**40), max_size=5), max_size=5))
def test_the_text_spells_the_key(shapes):
    key = ShapeKey(tuple(sorted((name, tuple(shape)) for name, shape in shapes.items())))
    assert ShapeKey.parse(key.text) == key
    assert len(key.id) == 16


def test_lists_numbers_and_engine_values_have_shapes_too():
    from onnxruntime import OrtValue

    key = ShapeKey.of({"a": [[1, 2], [3, 4]], "b": 3.5, "c": OrtValue.ortvalue_from_numpy(np.zeros((2, 0)))})
    assert dict(key.shapes) == {"a": (2, 2), "b": (), "c": (2, 0)}


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", '{"x":',
        '{"x":1}', '{"x":[1.0]}', '{"x":[true]}', '{"x":[-1]}', '{"x":["1"]}', '{"x":[null]}',
        '{"x":[1],"x":[2]}', '{"x":[99999999999999]}', '{"x":{"y":[1]}}', "[" * 20_000, '{"x":' + "[" * 9000, "NaN",
        '{"x":[' + "1," * 70 + "1]}",
    ],
)  # fmt: skip
def test_nonsense_is_refused(text):
    with pytest.raises(BadMessage):
        ShapeKey.parse(text)


def test_what_requests_need_is_light_to_import():
    modules = "hybrid.graph.shape_key, hybrid.partition.cut, hybrid.partition.prepared"
    code = f"import sys, {modules}; print([m for m in ('onnx', 'onnxruntime', 'google.protobuf') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
