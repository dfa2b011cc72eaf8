"""The codecs `jpeg`, `jpeg75`, `webp` and `webp75`: images as pictures of a fixed quality.

Design: the quality is part of the name, since a calibration belongs to a name: 90 unless it is said. Where a file is
decoded, its header was read before: dimensions, channels and coding must be what the declared shape asks for, so that a
small file can neither claim a huge picture nor hide work.
"""

import struct
from typing import Final, Protocol

import numpy as np

from compression.codecs import pixels, planes, raw
from compression.codecs.codec import Payload
from compression.errors import CorruptPayload, NotEncodable
from compression.tensor import NUMPY_OF, TensorSpec

_LENGTH: Final = struct.Struct("<I")


class PictureFormat(Protocol):
    """How a picture becomes a file and back."""

    @property
    def most_side(self) -> int:
        """Pixels of the widest or highest picture."""

    def compress(self, image: np.ndarray) -> bytes:
        """The file of a uint8 picture `(c, h, w)` of 1 or 3 channels.

        Raises:
            NotEncodable: this machine cannot write such files.
        """

    def check(self, file: bytes, where: planes.Layout, name: str) -> None:
        """Reads the header alone.

        Raises:
            CorruptPayload: it is not that of exactly one such picture.
        """

    def decompress(self, file: bytes, where: planes.Layout, name: str) -> np.ndarray:
        """The picture, uint8 `(c, h, w)`, of a file whose header was checked.

        Raises:
            CorruptPayload: it does not decode.
        """


class PictureCodec:
    """Images of 1 or 3 channels, `(n, c, h, w)` or `(n, h, w, c)`, with or without n.

    Args:
        name: how the wire names it.
        kind: the files' format.
    """

    lossy: Final = True

    def __init__(self, name: str, kind: PictureFormat) -> None:
        self.name: Final = name
        self._kind = kind

    def encode(self, array: np.ndarray) -> bytes:
        """Range of each channel, then length and file of each image.

        Raises:
            NotEncodable: not an image of 1 or 3 channels, a value that is not finite, or no such format here.
        """
        datatype, values = raw.canonical(array)
        where = pixels.image_layout(datatype, values.shape, self._kind.most_side)
        if where is None:
            raise NotEncodable(f"{self.name} carries images of 1 or 3 channels, not {datatype} {list(values.shape)}")
        ranges, pictures = pixels.to_pictures(values, where)
        return ranges + packed(self._kind, pictures)

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The images, mapped back to their channels' ranges."""
        shape = raw.known_shape(spec)
        where = pixels.image_layout(spec.dtype, shape, self._kind.most_side)
        if where is None:
            raise CorruptPayload(f"{spec.name}: {self.name} carries images, not {spec.dtype} {list(shape)}")
        ranges, rest = pixels.ranges_from(memoryview(payload), where, spec.name)
        files = files_of(self._kind, rest, where, spec.name)
        values = np.empty((where.n_images, where.n_channels, where.height, where.width), NUMPY_OF[spec.dtype])
        for out, file in zip(values, files, strict=True):
            picture = self._kind.decompress(file, where, spec.name)
            for channel, levels, (low, high) in zip(out, picture, ranges, strict=True):
                channel[:] = pixels.from_bytes(levels, low, high, spec.dtype)
        return planes.join_planes(values, where, shape)


def packed(kind: PictureFormat, pictures: np.ndarray) -> bytes:
    """Length and file of each picture, uint8 `(n, c, h, w)`."""
    pieces: list[bytes] = []
    for picture in pictures:
        file = kind.compress(picture)
        pieces += (_LENGTH.pack(len(file)), file)
    return b"".join(pieces)


def files_of(kind: PictureFormat, rest: memoryview, where: planes.Layout, name: str) -> list[bytes]:
    """The files of `packed`, their headers found right.

    Raises:
        CorruptPayload: not exactly one file an image, or the file of another picture.
    """
    files: list[bytes] = []
    for _ in range(where.n_images):
        length = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else 0
        if not length or length > len(rest) - _LENGTH.size:
            raise CorruptPayload(f"{name}: {len(rest)} bytes do not hold image {len(files)} of {where.n_images}")
        file = bytes(rest[_LENGTH.size : _LENGTH.size + length])
        kind.check(file, where, name)
        files.append(file)
        rest = rest[_LENGTH.size + length :]
    if len(rest):
        raise CorruptPayload(f"{name}: {len(rest)} bytes left over after {where.n_images} images")
    return files
