"""Images as picture files: what is kept, what it takes, and that lossless means every bit."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compression.codecs import catalog, pixels, webp
from compression.codecs.lossless_picture import LosslessWebpCodec
from compression.errors import NotEncodable
from compression.tensor import NUMPY_OF, TensorSpec, datatype_of

FLOATS = ("FP16", "FP32", "FP64")
LOSSY = ("jpeg", "jpeg75", "webp", "webp75")
NORMALISATIONS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "bytes": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


def spec_of(array: np.ndarray) -> TensorSpec:
    return TensorSpec(name="t", dtype=datatype_of(array), shape=array.shape)


def normalised(photo: np.ndarray, how: str, dtype: str = "FP32") -> np.ndarray:
    mean, deviation = NORMALISATIONS[how]
    values = ((photo / 255 - np.array(mean)) / np.array(deviation)).astype(NUMPY_OF[dtype])
    return np.ascontiguousarray(values.transpose(2, 0, 1))[np.newaxis]


@pytest.mark.parametrize("dtype", [*FLOATS, "UINT8"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LOSSY)
def test_the_picture_is_kept(photo: np.ndarray, dtype: str, channels: int, channels_last: bool, name: str) -> None:
    image = photo[:120, :160, :channels].astype(NUMPY_OF[dtype])
    image = image if dtype == "UINT8" else (image / 255 - np.array(0.45, image.dtype)) / np.array(0.22, image.dtype)
    image = image if channels_last else np.ascontiguousarray(image.transpose(2, 0, 1))
    array = np.stack([image, image[..., ::-1]])
    codec = catalog.get(name)
    payload = codec.encode(array)
    back = codec.decode(payload, spec_of(array))
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert len(payload) < array.size / 2
    spread = float(array.max()) - float(array.min())
    assert np.abs(back.astype(float) - array.astype(float)).mean() < 0.04 * spread


@pytest.mark.parametrize("name", LOSSY)
def test_flat_is_taken_and_what_is_no_picture_refused(name: str) -> None:
    codec = catalog.get(name)
    flat = np.full((1, 3, 16, 16), 0.25, np.float32)
    np.testing.assert_allclose(codec.decode(codec.encode(flat), spec_of(flat)), flat)
    for array in (np.zeros((1, 2, 8, 8), np.float32), np.zeros((8, 8), np.uint8), np.zeros((1, 3, 0, 8), np.uint8),
                  np.zeros((1, 3, 8, 8), np.int32), np.full((1, 3, 8, 8), np.nan, np.float32)):  # fmt: skip
        with pytest.raises(NotEncodable):
            codec.encode(array)


@pytest.mark.parametrize("how", list(NORMALISATIONS))
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_grid_of_a_normalised_photo_is_found(photo: np.ndarray, how: str, dtype: str) -> None:
    """255 times the step of the normalisation, although the photo has neither black nor white."""
    mean, deviation = NORMALISATIONS[how]
    image = normalised(np.clip(photo, 20, 220), how, dtype)
    for channel, one_mean, one_deviation in zip(image[0], mean, deviation, strict=True):
        low, high = pixels.range_of(channel)
        pixel = int(np.clip(photo, 20, 220).min())
        assert high - low == pytest.approx(1 / one_deviation, rel=1e-3 if dtype == "FP16" else 1e-5)
        assert low == pytest.approx((max(20, pixel) / 255 - one_mean) / one_deviation, abs=0.2 / one_deviation)


def test_the_picture_is_the_photograph_again(photo: np.ndarray) -> None:
    """A normalised photo becomes the very file that the photo itself becomes, where black and white are in it."""
    photo = photo.copy()
    photo[0, 0], photo[0, 1] = 0, 255
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=90)
    for how in NORMALISATIONS:
        payload = catalog.get("jpeg").encode(normalised(photo, how))
        assert payload[3 * 16 + 4 :] == file.getvalue()


def test_values_on_no_grid_are_stretched() -> None:
    noise = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    few = np.random.default_rng(0).integers(0, 5, (40, 50)).astype(np.float32)
    for channel in (noise, few, np.zeros((4, 4), np.float32)):
        assert pixels.range_of(channel) == (channel.min(), channel.max())


def test_webp_takes_fewer_bytes_than_jpeg(photo: np.ndarray) -> None:
    image = normalised(photo, "ImageNet")
    sizes = {name: len(catalog.get(name).encode(image)) for name in LOSSY}
    errors = {
        name: np.abs(catalog.get(name).decode(catalog.get(name).encode(image), spec_of(image)) - image).mean()
        for name in LOSSY
    }
    assert sizes["webp"] < 0.95 * sizes["jpeg"]
    assert sizes["webp75"] < 0.95 * sizes["jpeg75"] < 0.75 * sizes["jpeg"]
    assert errors["webp"] < 1.1 * errors["jpeg"]


@pytest.mark.parametrize("dtype", ["FP16", "FP32", "UINT8"])
@pytest.mark.parametrize(("channels", "channels_last"), [(1, False), (1, True), (3, False), (3, True)])
def test_every_bit_of_a_lossless_picture_comes_back(
    photo: np.ndarray, dtype: str, channels: int, channels_last: bool
) -> None:
    image = photo[:121, :163, :channels]
    image = image if dtype == "UINT8" else ((image / 255 - 0.45) / 0.22).astype(NUMPY_OF[dtype])
    image = image if channels_last else np.ascontiguousarray(image.transpose(2, 0, 1))
    array = np.stack([image, image[..., ::-1]])
    codec = catalog.get("lossless-webp")
    payload = codec.encode(array)
    back = codec.decode(payload, spec_of(array))
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    assert len(codec.encode(array[0])) < len(catalog.get("lossless").encode(array[0]))


@given(seed=st.integers(0, 2**32 - 1), n_patterns=st.integers(1, 256), channels=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_lossless_pictures_of_odd_bit_patterns(seed: int, n_patterns: int, channels: int) -> None:
    """NaNs with payloads and both zeros stay what they are."""
    rng = np.random.default_rng(seed)
    patterns = (np.arange(n_patterns, dtype=np.uint32) + (0x7FC0 if seed % 2 else 0)) << 16
    patterns[0] |= 0x80000000 if seed % 3 else 0
    array = rng.choice(patterns, (1, channels, 20, 30)).view(np.float32)
    codec = catalog.get("lossless-webp")
    try:
        payload = codec.encode(array)
    except NotEncodable:
        return  # two patterns that share their upper half
    assert codec.decode(payload, spec_of(array)).tobytes() == array.tobytes()


def test_what_was_never_bytes_is_no_lossless_picture(photo: np.ndarray) -> None:
    codec = catalog.get("lossless-webp")
    assert isinstance(codec, LosslessWebpCodec)
    noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    for array in (noise.astype(np.float32), noise, np.zeros((1, 4, 8, 8), np.uint8), np.zeros((8, 8), np.uint8)):
        assert not codec.carries(array)
        with pytest.raises(NotEncodable):
            codec.encode(array)
    assert not codec.carries(np.array([b"text"], object))
    assert all(codec.carries(normalised(photo, how)) for how in NORMALISATIONS)
    assert codec.carries(photo)


def test_a_machine_without_webp_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalog.decodable() == tuple(catalog.CODECS)
    monkeypatch.setattr(webp, "is_there", lambda: False)
    assert not [name for name in catalog.decodable() if "webp" in name]
    assert {"jpeg", "lossless", "q8z"} <= set(catalog.decodable())
    for name in ("webp", "webp75", "lossless-webp"):
        with pytest.raises(NotEncodable, match="Pillow"):
            catalog.get(name).encode(np.zeros((1, 3, 8, 8), np.uint8))
