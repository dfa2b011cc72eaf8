"""Baseline JPEG files of uint8 pictures; no other kind of JPEG is decoded.

Design: the header of every file is read by a short walk over its markers before a decoder sees it: one baseline frame
of exactly the declared height, width and number of components, so that a small file can neither claim a huge picture
nor hide work in progressive scans. Colours are stored as YCbCr with halved chroma, as cameras do.
"""

import io
import struct
from typing import Final

import numpy as np

from compression.codecs import planes
from compression.errors import CorruptPayload

_MODES: Final = {1: "L", 3: "RGB"}
_MARKER: Final = struct.Struct(">H")
_FRAME: Final = struct.Struct(">BHHB")
_BASELINE: Final = 0xC0
_SCAN: Final = 0xDA
_ALLOWED: Final = frozenset({0xE0, 0xDB, 0xC4, 0xDD, _BASELINE})
"""Markers before the scan: JFIF, quantization tables, Huffman tables, restart interval, baseline frame."""


class Jpeg:
    """JPEG of one quality, 1 to 95."""

    most_side: Final = 65535

    def __init__(self, quality: int) -> None:
        self._quality = quality

    def compress(self, image: np.ndarray) -> bytes:
        """The file of a uint8 picture `(c, h, w)`."""
        from PIL import Image

        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self._quality)
        return file.getvalue()

    def check(self, file: bytes, where: planes.Layout, name: str) -> None:
        """Walks the markers up to the scan; there must be one baseline frame of the declared dimensions.

        Source: ITU-T T.81, annex B.

        Raises:
            CorruptPayload: there is not.
        """
        wanted = (8, where.height, where.width, where.n_channels)
        frames: list[tuple[int, ...]] = []
        at = 2 if file[:2] == b"\xff\xd8" else len(file)
        while at + 4 <= len(file) and file[at] == 0xFF:
            marker, length = file[at + 1], _MARKER.unpack_from(file, at + 2)[0]
            if marker == _SCAN:
                if frames != [wanted]:
                    raise CorruptPayload(f"{name}: a JPEG of (bits, height, width, channels) {frames}, wanted {wanted}")
                return
            if marker not in _ALLOWED or length < 2:
                raise CorruptPayload(f"{name}: a JPEG with marker 0x{marker:02x}; only baseline JFIF is taken")
            if marker == _BASELINE and at + 4 + _FRAME.size <= len(file):
                frames.append(_FRAME.unpack_from(file, at + 4))
            at += 2 + length
        raise CorruptPayload(f"{name}: {len(file)} bytes are no JPEG with a scan")

    def decompress(self, file: bytes, where: planes.Layout, name: str) -> np.ndarray:
        """Uint8 `(c, h, w)` of a file whose header was checked.

        Raises:
            CorruptPayload: it does not decode.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
                if image.size != (where.width, where.height) or image.mode != _MODES[where.n_channels]:
                    raise CorruptPayload(
                        f"{name}: a JPEG of {image.size} {image.mode} for {where.width} x {where.height}"
                    )
                pixels = np.asarray(image)
        except (CorruptPayload, MemoryError):
            raise
        except Exception as error:  # Pillow raises what it likes, DecompressionBombError among it
            raise CorruptPayload(f"{name}: a JPEG that does not decode ({error})") from error
        return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
