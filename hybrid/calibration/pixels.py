"""From an image file to a model's input: what a user or an artifact's `pre` says about size, channels and range."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from compression.tensor import NUMPY_OF, TensorSpec
from hybrid.errors import BadMessage, TensorMismatch

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
MAX_PIXELS: Final = 64 << 20


class Pixels(msgspec.Struct, frozen=True, kw_only=True):
    """How pixels become values: `(pixel · scale − mean) / std`, with pixels from 0 to 255.

    Attributes:
        kind: "image"; so says an artifact's `pre` that means this.
        scale: factor of a pixel.
        mean: taken off after scaling, one for all channels or one each.
        std: divided by at last, one for all channels or one each.
        channels: their order.
        layout: where the channels stand; None is what the input's shape says.
        resize: `stretch` to the input's size; `crop`: shorter side first, then the middle; `pad`: longer side first,
            then zeros (of the finished values) to the right and below.
        input: name of the input that takes the image, None where there is one.
    """

    kind: Literal["image"] = "image"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] | None = None
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    input: str | None = None


PRESETS: Final[dict[str, Pixels]] = {
    "raw": Pixels(),
    "unit": Pixels(scale=1 / 255),
    "signed": Pixels(mean=(127.5,), std=(127.5,)),
    "imagenet": Pixels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
"""Ranges that many models want: 0 to 255, 0 to 1, -1 to 1, and torchvision's normalisation of ImageNet."""


def parse_pixels(text: bytes | str) -> Pixels:
    """The preprocessing that a preset's name or a JSON object says.

    Raises:
        BadMessage: neither.
    """
    if isinstance(text, str) and text in PRESETS:
        return PRESETS[text]
    try:
        pixels = msgspec.json.decode(text, type=Pixels)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise BadMessage(
            f"the preprocessing is neither one of {', '.join(PRESETS)} nor an object like "
            f'{{"kind":"image","scale":0.0039,"mean":[0],"std":[1]}}: {exc}'
        ) from exc
    if any(len(values) not in (1, 3) for values in (pixels.mean, pixels.std)) or 0.0 in pixels.std:
        raise BadMessage("the preprocessing's mean and std have 1 or 3 values, and no std is 0")
    return pixels


def load_image(path: Path, pixels: Pixels, spec: TensorSpec, shape: Sequence[int]) -> np.ndarray:
    """One image as the input of these sizes wants it.

    Args:
        path: an image file; more than eight bits a channel are not read.
        pixels: the preprocessing.
        spec: the input's name and datatype.
        shape: its sizes: (1, c, h, w) or (1, h, w, c), or the same without the first one.

    Raises:
        BadMessage: no image that can be read.
        TensorMismatch: the input takes no image.
    """
    from PIL import Image, UnidentifiedImageError

    layout, channels, height, width = _form(spec, shape, pixels)
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadMessage(f"{path}: {opened.width} x {opened.height} pixels; at most {MAX_PIXELS} are read")
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError, ValueError) as exc:
        raise BadMessage(f"{path}: no image that can be read ({exc}); remove it, or convert it") from exc
    picture, kept_height, kept_width = _resized(image, height, width, pixels.resize)
    values: np.ndarray = picture.astype(np.float32).reshape(height, width, channels)
    if pixels.channels == "bgr":
        values = values[:, :, ::-1]
    values = (values * np.float32(pixels.scale) - np.asarray(pixels.mean, np.float32)) / np.asarray(
        pixels.std, np.float32
    )
    values[kept_height:], values[:, kept_width:] = 0, 0
    if layout == "nchw":
        values = values.transpose(2, 0, 1)
    dtype = NUMPY_OF[spec.dtype]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    return np.ascontiguousarray(values, dtype).reshape(tuple(shape))


def image_input(specs: Sequence[TensorSpec], pixels: Pixels) -> TensorSpec:
    """The input that takes the image: the named one, else the only one.

    Raises:
        TensorMismatch: there is no such input, or others have to be fed too.
    """
    if pixels.input is not None:
        found = next((spec for spec in specs if spec.name == pixels.input), None)
        if found is None:
            raise TensorMismatch(f"no input {pixels.input!r}; the model's are {', '.join(s.name for s in specs)}")
    if len(specs) != 1:
        raise TensorMismatch(
            f"the model has {len(specs)} inputs ({', '.join(s.name for s in specs)}); images feed one: give an .npz "
            "with all of them"
        )
    return specs[0]


def _form(spec: TensorSpec, shape: Sequence[int], pixels: Pixels) -> tuple[str, int, int, int]:
    """Layout, channels, height and width of an image input."""
    sizes = tuple(shape[1:]) if len(shape) == 4 and shape[0] == 1 else tuple(shape)
    if len(sizes) == 2:
        sizes = (1, *sizes)
    if len(sizes) == 3 and spec.dtype in NUMPY_OF:
        first, last = sizes[0] in (1, 3), sizes[2] in (1, 3)
        layout = pixels.layout or ("nchw" if first else "nhwc" if last else "")
        if layout == "nchw" and first:
            return layout, sizes[0], sizes[1], sizes[2]
        if layout == "nhwc" and last:
            return layout, sizes[2], sizes[0], sizes[1]
    raise TensorMismatch(
        f"input {spec.name!r} of shape {list(shape)} takes no image of 1 or 3 channels; give ready inputs as .npz"
    )


def _resized(image: "object", height: int, width: int, how: str) -> tuple[np.ndarray, int, int]:
    """Pixels of the wanted size, and how many rows and columns of them are picture."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    if how == "stretch":
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)), height, width
    ratios = width / image.width, height / image.height
    ratio = max(ratios) if how == "crop" else min(ratios)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    scaled = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    if how == "crop":
        top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
        top, left = max(0, top), max(0, left)
        scaled = scaled[top : top + height, left : left + width]
    kept_height, kept_width = min(height, scaled.shape[0]), min(width, scaled.shape[1])
    canvas = np.zeros((height, width, *scaled.shape[2:]), np.uint8)
    canvas[:kept_height, :kept_width] = scaled[:kept_height, :kept_width]
    return canvas, kept_height, kept_width
