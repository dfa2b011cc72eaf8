"""Reading text from a photo with a detector and a recogniser: what happens before, between and after the models.

Source: differentiable binarization (Liao et al., AAAI 2020) for the detector's map; greedy decoding of connectionist
temporal classification for the recogniser's. Threshold, unclip ratio and normalisation are those that PP-OCR uses.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from hybrid.cli.demo.components import regions

DETECTOR_SIZE: Final = (576, 288)
"""Width and height of the detector's input; multiples of 32."""

LINE_SIZE: Final = (896, 48)
"""Width and height of the recogniser's input: one shape for all lines, so that one plan serves them."""

_THRESHOLD: Final = 0.3
_MIN_SCORE: Final = 0.5
_UNCLIP_RATIO: Final = 1.6
_MIN_HEIGHT_RATIO: Final = 0.03
_GREY: Final = (127, 127, 127)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where a line of text stands, as ratios (0 to 1) of the photo's width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of text and how sure the recogniser is of it, 0 to 1."""

    text: str
    confidence: float


def detector_input(photo: Image.Image) -> np.ndarray:
    """The photo as the detector wants it: FP32 `(1, 3, 288, 576)`, -1 to 1."""
    return _normalised(photo.resize(DETECTOR_SIZE, Image.Resampling.BICUBIC))


def find_lines(chances: np.ndarray) -> list[Box]:
    """Lines of text from top to bottom; `chances` is the detector's output, uint8 `(1, 1, h, w)`, 0 to 255."""
    field = chances[0, 0].astype(np.float32) / 255
    height, width = field.shape
    boxes: list[Box] = []
    for region in regions(field > _THRESHOLD, field):
        tall, wide = region.bottom - region.top, region.right - region.left
        if region.mean < _MIN_SCORE or tall < _MIN_HEIGHT_RATIO * height or wide < tall:
            continue
        grow = tall * wide * _UNCLIP_RATIO / (2 * (tall + wide))
        boxes.append(
            Box(
                left=max(0.0, (region.left - grow) / width),
                top=max(0.0, (region.top - grow) / height),
                right=min(1.0, (region.right + grow) / width),
                bottom=min(1.0, (region.bottom + grow) / height),
            )
        )
    return sorted(boxes, key=lambda box: (box.top, box.left))


def line_input(photo: Image.Image, box: Box) -> np.ndarray:
    """One line as the recogniser wants it: FP32 `(1, 3, 48, 896)`, -1 to 1, grey to the right of the text."""
    width, height = photo.size
    crop = photo.crop(
        (int(box.left * width), int(box.top * height), int(box.right * width + 1), int(box.bottom * height + 1))
    )
    wide, tall = LINE_SIZE
    crop = crop.resize((min(wide, max(1, crop.width * tall // crop.height)), tall), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", LINE_SIZE, _GREY)
    canvas.paste(crop, (0, 0))
    return _normalised(canvas)


def read_line(best: np.ndarray, chances: np.ndarray, characters: str) -> Line:
    """Text of the best class at each step, `(1, t)`, and its chance, `(1, t)`: repeats and blanks (class 0) dropped.

    Args:
        best: index of the most likely class at each step.
        chances: its chance, 0 to 1.
        characters: what the classes 1, 2, … stand for, one a line; the class after the last is a space.
    """
    steps = best[0]
    kept = (steps != 0) & np.concatenate(([True], steps[1:] != steps[:-1]))
    names = ["", *characters.split("\n"), " "]
    text = "".join(names[step] if step < len(names) else "\ufffd" for step in steps[kept].tolist())
    return Line(text=text, confidence=float(chances[0][kept].mean()) if kept.any() else 0.0)


def _normalised(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[np.newaxis]
    return np.ascontiguousarray((pixels / 255 - 0.5) / 0.5, dtype=np.float32)
