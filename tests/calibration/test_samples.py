"""Samples and labels in every form that is promised, and what is said of those that are none."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from compression.tensor import TensorSpec
from hybrid.calibration.labels import read_labels
from hybrid.calibration.pixels import PRESETS, Pixels, load_image, parse_pixels
from hybrid.calibration.samples import chosen, feed_digest, open_samples
from hybrid.errors import BadMessage, DataUnfit, HybridError, NotFound, TensorMismatch
from hybrid.graph.shape_key import ShapeKey

IMAGE = TensorSpec(name="x", dtype="FP32", shape=(None, 3, 4, 6))
VOICE = (
    TensorSpec(name="input", dtype="FP32", shape=(None, 8)),
    TensorSpec(name="state", dtype="FP32", shape=(2, None, 4)),
    TensorSpec(name="sr", dtype="INT64", shape=()),
)


def test_rows_of_a_batch_are_samples(tmp_path):
    array = np.arange(5 * 72, dtype=np.float32).reshape(5, 3, 4, 6)
    np.save(tmp_path / "x.npy", array)
    samples = open_samples(tmp_path / "x.npy", [IMAGE])
    assert len(samples.names) == 5
    assert samples.feeds(3)["x"].shape == (1, 3, 4, 6)
    assert np.array_equal(samples.feeds(3)["x"][0], array[3])


def test_one_more_dimension_holds_samples_and_the_rest_is_the_same_for_all(tmp_path):
    state = np.random.default_rng(0).standard_normal((7, 2, 1, 4))
    np.savez(tmp_path / "v.npz", input=np.zeros((7, 1, 8)), state=state, sr=np.array(16000))
    samples = open_samples(tmp_path / "v.npz", VOICE)
    assert len(samples.names) == 7
    feeds = samples.feeds(6)
    assert {name: (array.shape, array.dtype) for name, array in feeds.items()} == {
        "input": ((1, 8), np.float32),
        "state": ((2, 1, 4), np.float32),
        "sr": ((), np.int64),
    }
    assert np.array_equal(feeds["state"], state[6].astype(np.float32))


def test_a_folder_of_requests(tmp_path):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=np.full((1, 3, 4, 6), number, np.float32))
    samples = open_samples(tmp_path, [IMAGE])
    assert list(samples.names) == ["0.npz", "1.npz", "2.npz"]
    assert samples.feeds(2)["x"].max() == 2


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros((1, 3, 4, 6))}, "no array 'x'"),
        ({"x": np.zeros((3, 4))}, "has 4 dimensions|where the input has 4"),
        ({"x": np.array(["a", "b"])}, "where the input has 4|holds"),
        ({"x": np.zeros((4, 3, 4, 6), np.int64)}, "the input takes float32"),
    ],
)
def test_arrays_that_are_not_the_inputs_are_named(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(TensorMismatch, match=said):
        open_samples(tmp_path / "x.npz", [IMAGE])


def test_numbers_of_samples_that_differ_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", input=np.zeros((7, 1, 8)), state=np.zeros((6, 2, 1, 4)), sr=np.array(16000))
    with pytest.raises(TensorMismatch, match="different numbers of samples"):
        open_samples(tmp_path / "v.npz", VOICE)


def test_whole_numbers_are_kept_exactly_or_refused(tmp_path):
    spec = TensorSpec(name="x", dtype="UINT8", shape=(1, 4))
    np.save(tmp_path / "good.npy", np.array([[0, 1, 2, 255]]))
    assert open_samples(tmp_path / "good.npy", [spec]).feeds(0)["x"].dtype == np.uint8
    np.save(tmp_path / "bad.npy", np.array([[0, 1, 2, 256]]))
    with pytest.raises(TensorMismatch, match="give it as the model wants it"):
        open_samples(tmp_path / "bad.npy", [spec])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no numpy at all"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadMessage, match=r"x\.npz"):
        open_samples(tmp_path / "x.npz", [IMAGE])


def test_pickled_objects_are_never_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadMessage):
        open_samples(tmp_path / "x.npy", [IMAGE])


def test_nothing_there(tmp_path):
    with pytest.raises(NotFound):
        open_samples(tmp_path / "nowhere", [IMAGE])
    with pytest.raises(BadMessage, match="neither"):
        open_samples(tmp_path, [IMAGE])


def picture(path, size=(12, 8), colour=(10, 128, 255)):
    Image.new("RGB", size, colour).save(path)
    return path


def test_images_need_a_word_on_their_pixels(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(BadMessage, match="--pixels unit, signed"):
        open_samples(tmp_path, [IMAGE])
    with pytest.raises(TensorMismatch, match=r"open sizes .* --shape 1x3x224x6"):
        open_samples(tmp_path, [replace(IMAGE, shape=(None, 3, None, 6))], pixels=PRESETS["unit"])
    one_by_one = open_samples(tmp_path, [IMAGE], pixels=PRESETS["unit"])
    assert one_by_one.feeds(0)["x"].shape == (1, 3, 4, 6), "where the batch alone is open, a request is one image"
    wanted = ShapeKey((("x", (1, 3, 4, 6)),))
    samples = open_samples(tmp_path, [IMAGE], pixels=PRESETS["unit"], wanted=wanted)
    found = samples.feeds(0)["x"]
    assert (found.shape, found.dtype) == ((1, 3, 4, 6), np.float32)
    assert found[0, :, 0, 0] == pytest.approx([10 / 255, 128 / 255, 1.0])


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("raw", [10, 128, 255]),
        ("signed", [10 / 127.5 - 1, 128 / 127.5 - 1, 1.0]),
        ("imagenet", [(10 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ('{"kind":"image","scale":2,"mean":[1],"std":[4],"channels":"bgr"}', [127.25, 63.75, 4.75]),
    ],
)
def test_pixels_become_what_was_said(tmp_path, said, wanted):
    found = load_image(picture(tmp_path / "a.png"), parse_pixels(said), IMAGE, (1, 3, 4, 6))
    assert found[0, :, 1, 1] == pytest.approx(wanted, abs=1e-4)


def test_layout_follows_from_the_shape_and_whole_numbers_are_rounded(tmp_path):
    spec = TensorSpec(name="x", dtype="UINT8", shape=(1, 4, 6, 3))
    found = load_image(picture(tmp_path / "a.png"), Pixels(), spec, (1, 4, 6, 3))
    assert found.dtype == np.uint8
    assert found[0, 0, 0].tolist() == [10, 128, 255]
    grey = TensorSpec(name="x", dtype="FP32", shape=(1, 1, 4, 6))
    assert load_image(tmp_path / "a.png", Pixels(), grey, (1, 1, 4, 6)).shape == (1, 1, 4, 6)


def test_cropping_keeps_the_middle_and_padding_the_whole(tmp_path):
    stripes = np.zeros((8, 32, 3), np.uint8)
    stripes[:, 8:24] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    spec = TensorSpec(name="x", dtype="FP32", shape=(1, 3, 8, 8))
    cropped = load_image(tmp_path / "a.png", Pixels(resize="crop"), spec, (1, 3, 8, 8))
    assert cropped.min() == cropped.max() == 200
    padded = load_image(tmp_path / "a.png", Pixels(resize="pad"), spec, (1, 3, 8, 8))
    assert padded[0, 0, 0, 4] > 150
    assert not padded[0, :, 2:].any()


@pytest.mark.parametrize("said", ["sepia", "{}x", '{"mean":[1,2]}', '{"std":[0]}', '{"kind":"sound"}'])
def test_a_preprocessing_that_is_none(said):
    with pytest.raises(HybridError):
        parse_pixels(said)


def test_an_image_that_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG cut off")
    with pytest.raises(BadMessage, match=r"a\.png"):
        load_image(tmp_path / "a.png", Pixels(), IMAGE, (1, 3, 4, 6))


NAMES = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/3.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "0\n0\n1\n\n1\n"),
        ("l.txt", "cat\ncat\ndog\n1\n"),
        ("l.csv", "file,label\ncats/1.png,cat\ndogs/1.png,dog\n2.png,0\n3.png,dog\n"),
        ("l.csv", "0\n0\ndog\n1\n"),
        ("l.csv", "label\n0\n0\n\n1\n1\n"),
        ("l.tsv", "cats/1.png\t0\ncats/2.png\t0\ndogs/1.png\t1\ndogs/3.png\tdog\n"),
    ],
)
def test_labels_in_each_form(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_labels(tmp_path / name, NAMES, ("cat", "dog")) == (0, 0, 1, 1)


def test_labels_as_an_array(tmp_path):
    np.save(tmp_path / "l.npy", np.array([0, 0, 1, 1]))
    assert read_labels(tmp_path / "l.npy", NAMES) == (0, 0, 1, 1)
    np.save(tmp_path / "f.npy", np.array([0.5, 0, 1, 1]))
    with pytest.raises(DataUnfit, match="whole numbers"):
        read_labels(tmp_path / "f.npy", NAMES)
    np.save(tmp_path / "rows.npy", np.eye(2, dtype=int)[[0, 0, 1, 1]])
    with pytest.raises(DataUnfit, match=r"shape 4x2 for 4 samples; .*argmax\(1\)"):
        read_labels(tmp_path / "rows.npy", NAMES)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.txt", "0\n1\n", "2 labels for 4 samples"),
        ("l.txt", "0\n1\nhorse\n1\n", "'horse' is no class number"),
        ("l.csv", "cats/1.png,0\ncats/2.png,0\ndogs/3.png,1\n1.png,1\n", "no row for 'dogs/1.png'"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataUnfit, match=said):
        read_labels(tmp_path / name, NAMES, ("cat", "dog"))


def test_a_choice_of_samples_is_seeded_and_draws_none_twice():
    assert chosen(5, 10, seed=0) == [0, 1, 2, 3, 4]
    first = chosen(1000, 50, seed=3)
    assert first == chosen(1000, 50, seed=3) == sorted(set(first))
    assert first != chosen(1000, 50, seed=4)


def test_the_digest_of_a_sample_sees_values_names_and_shapes():
    array = np.arange(6, dtype=np.float32)
    digests = {feed_digest(f) for f in ({"x": array}, {"y": array}, {"x": array.reshape(2, 3)}, {"x": array + 1})}
    assert len(digests) == 4
