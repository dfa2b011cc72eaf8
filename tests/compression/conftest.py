"""Photographs for the codecs' tests."""

from importlib.metadata import files

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A photograph from scikit-image's wheel: uint8 `(300, 451, 3)`."""
    path = next(file for file in files("scikit-image") or [] if file.name == "chelsea.png")
    with Image.open(str(path.locate())) as image:
        return np.asarray(image.convert("RGB"))
