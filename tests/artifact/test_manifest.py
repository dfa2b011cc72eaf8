"""Manifests: what is written parses, what contradicts itself is refused, names are those of the allow-list."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.manifest import MAX_MANIFEST_BYTES, artifact_digest, canonical_bytes, parse
from hybrid.artifact.names import check_relative, check_word
from hybrid.errors import BadMessage, TooLarge

ENTRY = {"sha256": "0" * 64, "size": 10}
FILE = HashedFile(name="net.onnx", size=10, sha256="0" * 64)


def _fields(**changes):
    fields = {
        "schema": 1,
        "name": "net",
        "version": "1",
        "sequence": 1,
        "model_digest": digest_of_files([FILE]),
        "files": {"net.onnx": ENTRY, "labels.txt": ENTRY, "in.npy": ENTRY, "out.npy": ENTRY},
        "variants": [{"id": "original", "engine": "onnxruntime", "precision": "native", "files": ["net.onnx"]}],
    }
    return fields | changes


def _bytes(**changes):
    return json.dumps(_fields(**changes)).encode()


def test_every_field_of_the_design_is_there():
    full = _fields(
        base="1" * 64,
        classes=["cat", "dog"],
        pre={"scale": 0.1},
        post={"softmax": True},
        golden={"inputs": {"x": "in.npy"}, "outputs": {"y": "out.npy"}, "tolerance": {"onnxruntime": 1e-4}},
        lineage=[{"step": "push"}],
    )
    full["variants"][0] |= {"requires": {"provider": "x"}, "feature_tensor": "f", "trainable_files": ["net.onnx"]}
    manifest = parse(json.dumps(full).encode())
    assert manifest.classes == ("cat", "dog")
    assert json.loads(bytes(manifest.pre)) == {"scale": 0.1}
    assert json.loads(canonical_bytes(manifest))["pre"] == {"scale": 0.1}
    assert manifest.golden.tolerance == {"onnxruntime": 1e-4}
    assert parse(canonical_bytes(manifest)) == manifest
    assert set(manifest.__struct_fields__) == {
        "schema", "name", "version", "sequence", "model_digest", "base", "files", "variants", "classes", "pre", "post",
        "golden", "lineage", "cascade", "splits",
    }  # fmt: skip


def test_canonical_bytes_are_sorted_and_stable():
    manifest = parse(_bytes())
    data = canonical_bytes(manifest)
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    assert canonical_bytes(parse(data)) == data


def test_exact_bytes_make_the_artifact_digest_and_unknown_fields_are_ignored():
    spaced, tight = _bytes(invented_later=[1]), _bytes()
    assert parse(spaced) == parse(tight)
    assert artifact_digest(spaced) != artifact_digest(tight)


WRONG = {
    "schema": {"schema": 2},
    "name": {"name": "Net"},
    "version": {"version": "1/2"},
    "version latest": {"version": "latest"},
    "sequence": {"sequence": -1},
    "sequence type": {"sequence": "1"},
    "digest form": {"model_digest": "00"},
    "digest of other files": {"model_digest": "1" * 64},
    "base": {"base": "x"},
    "pre": {"pre": [1]},
    "no files": {"files": {}},
    "size": {"files": {"net.onnx": {"sha256": "0" * 64, "size": -1}}},
    "sha": {"files": {"net.onnx": {"sha256": "0" * 63 + "G", "size": 10}}},
    "case collision": {"files": {"net.onnx": ENTRY, "Net.onnx": ENTRY}},
    "file is a folder": {"files": {"net.onnx": ENTRY, "net.onnx/w": ENTRY}},
    "climbing file": {"files": {"net.onnx": ENTRY, "../x": ENTRY}},
    "no variants": {"variants": []},
    "variant without files": {"variants": [{"id": "a", "engine": "e", "precision": "p", "files": []}]},
    "unlisted file": {"variants": [{"id": "a", "engine": "e", "precision": "p", "files": ["other"]}]},
    "golden unlisted": {"golden": {"inputs": {"x": "none.npy"}, "outputs": {}, "tolerance": {}}},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_what_contradicts_itself_is_refused(changes):
    with pytest.raises(BadMessage):
        parse(_bytes(**changes))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 5000, b"[" * 100_000, _bytes()[:-1], _bytes() + b"x"]
)
def test_what_does_not_parse_is_refused(data):
    with pytest.raises(BadMessage):
        parse(data)


def test_a_large_manifest_is_refused_before_it_is_parsed():
    with pytest.raises(TooLarge):
        parse(b" " * (MAX_MANIFEST_BYTES + 1))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_a_typed_error(data):
    with pytest.raises(BadMessage):
        parse(data)


HOSTILE = [
    "", "../x", "/etc/passwd", "%2e%2e", "a\0b", "c:", "C:\\x", "‥", "．．", "a" * 65, "a" * 300, "file://x", "a/b",
    "a\\b", ".hidden", "-x", "_x", "A", "a b", "a\n", "é", "a..b", "con\u202e", "a?x", "a#x", "a&b", "a;b", "a'b",
]  # fmt: skip


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_names_are_refused(word):
    with pytest.raises(BadMessage):
        check_word(word)


@pytest.mark.parametrize("word", ["a", "0", "yolo-v8.1_n", "a" * 64])
def test_plain_names_are_taken(word):
    assert check_word(word) == word


HOSTILE_FILES = [
    "", ".", "..", "../x", "a/../x", "/x", "a//x", "x/", "./x", "a\0", "a\\b", "C:x", "c:/x", "．．/x", "a/‥/x", "a／b",
    "x" * 256, "a/" * 600 + "x", " x", "x ", "x.", "manifest.json", "MANIFEST.json", "manifest.sig", "attachments/x",
    "file://x", "a\x7f", "a\u0085b", "cafe\u0301", "a\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_hostile_file_names_are_refused(name):
    with pytest.raises(BadMessage):
        check_relative(name)


@pytest.mark.parametrize(
    "name", ["x", "model.onnx", "weights/part 1.bin", "模型.onnx", "café.bin", ".data", "a..b", "x" * 255]
)
def test_plain_file_names_are_taken(name):
    assert check_relative(name) == name
