"""Samples to calibrate with: ready inputs in numpy's files, or folders of those, or folders of images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from compression.tensor import TensorSpec
from hybrid.calibration import arrays
from hybrid.calibration.pixels import SUFFIXES, Pixels, image_input, load_image
from hybrid.errors import BadMessage, NotFound, TensorMismatch
from hybrid.graph.shape_key import ShapeKey

Feeds = dict[str, np.ndarray]


class Samples(Protocol):
    """Requests to calibrate with."""

    @property
    def names(self) -> Sequence[str]:
        """One name a sample: its file below the folder, or its number."""
        ...

    def feeds(self, index: int) -> Feeds:
        """The inputs of one request.

        Raises:
            BadMessage, TensorMismatch: a file that cannot be read, or arrays that are not the model's inputs.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    folder: Path
    files: Sequence[Path]
    spec: TensorSpec
    pixels: Pixels
    shape: tuple[int, ...]

    @property
    def names(self) -> Sequence[str]:
        return [file.relative_to(self.folder).as_posix() for file in self.files]

    def feeds(self, index: int) -> Feeds:
        return {self.spec.name: load_image(self.files[index], self.pixels, self.spec, self.shape)}


def open_samples(
    path: Path, inputs: Sequence[TensorSpec], *, pixels: Pixels | None = None, wanted: ShapeKey | None = None
) -> Samples:
    """What a path holds.

    Args:
        path: an .npz file with one array an input, an .npy file for a model with one input (see `arrays.stacked`), or a
            folder with one such file a sample, or of images.
        inputs: the model's inputs, open sizes None.
        pixels: how images become inputs; None where nobody said.
        wanted: sizes for images; None takes the model's own where they are all fixed.

    Raises:
        NotFound: nothing there.
        BadMessage: nothing that can be used, or images and nobody said how their pixels become inputs.
        TensorMismatch: arrays that are not the model's inputs.
    """
    if path.is_file():
        return arrays.stacked(path, inputs)
    if not path.is_dir():
        raise NotFound(
            f"{path}: no such file or folder; give an .npz, an .npy, or a folder of these or of images",
            advice="Check the path of --data.",
        )
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    ready = [file for file in files if file.suffix.lower() in arrays.SUFFIXES]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if ready:
        return arrays.FileSamples(folder=path, files=ready, inputs=inputs)
    if not images:
        raise BadMessage(f"{path}: neither .npz, .npy nor images in it ({', '.join(sorted(SUFFIXES))})")
    if pixels is None:
        raise BadMessage(
            f"{path} holds images, and nobody said how their pixels become inputs: give --pixels unit, signed, "
            "imagenet or raw, or a JSON object (docs/calibration.md)"
        )
    spec = image_input(inputs, pixels)
    return _Images(folder=path, files=images, spec=spec, pixels=pixels, shape=_image_shape(spec, wanted))


def chosen(n_samples: int, most: int, seed: int) -> list[int]:
    """Which samples are used: all, or so many drawn without putting back, in their order."""
    if n_samples <= most:
        return list(range(n_samples))
    drawn = np.random.default_rng(seed).choice(n_samples, most, replace=False)
    return sorted(int(index) for index in drawn)


def feed_digest(feeds: Feeds) -> bytes:
    """SHA-256 of one request as the model gets it."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        array = feeds[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        is_text = array.dtype == object
        digest.update(repr(array.tolist()).encode() if is_text else np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _image_shape(spec: TensorSpec, wanted: ShapeKey | None) -> tuple[int, ...]:
    given = dict(wanted.shapes).get(spec.name) if wanted is not None else None
    own = (1 if spec.shape[0] is None else spec.shape[0], *spec.shape[1:])  # a request is one image
    shape = given or tuple(size for size in own if size is not None)
    if len(shape) != len(spec.shape):
        example = "x".join(str(224 if size is None else size) for size in own)
        raise TensorMismatch(
            f"input {spec.name!r} has open sizes {['?' if size is None else size for size in spec.shape]}; say which "
            f"with --shape, such as --shape {example}"
        )
    return shape
