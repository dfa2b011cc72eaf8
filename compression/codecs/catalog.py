"""The codecs that the wire can name."""

from typing import Final

from compression.codecs import webp
from compression.codecs.codec import Codec
from compression.codecs.half import HalfCodec
from compression.codecs.jpeg import Jpeg
from compression.codecs.lossless import LosslessCodec
from compression.codecs.lossless_picture import LosslessWebpCodec
from compression.codecs.picture import PictureCodec
from compression.codecs.quantized import QuantizedCodec
from compression.codecs.raw import RawCodec
from compression.errors import UnknownCodec

CODECS: Final[dict[str, Codec]] = {
    codec.name: codec
    for codec in (
        RawCodec(),
        LosslessCodec(),
        LosslessWebpCodec(),
        HalfCodec(),
        QuantizedCodec("q8", 256, squeezes=False),
        QuantizedCodec("q8z", 256, squeezes=True),
        QuantizedCodec("q4", 16, squeezes=False),
        QuantizedCodec("q4z", 16, squeezes=True),
        PictureCodec("jpeg", Jpeg(90)),
        PictureCodec("jpeg75", Jpeg(75)),
        PictureCodec("webp", webp.Webp(90)),
        PictureCodec("webp75", webp.Webp(75)),
    )
}
"""Every codec by its name on the wire."""


def get(name: str) -> Codec:
    """The codec of this name.

    Raises:
        UnknownCodec: the catalog holds none of this name.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise UnknownCodec(f"no codec is called {name!r}; known are {', '.join(CODECS)}") from None


def decodable() -> tuple[str, ...]:
    """Names of the codecs that work on this machine: all, but where Pillow was built without WebP."""
    there = webp.is_there()
    return tuple(name for name in CODECS if there or "webp" not in name)


def values_of(name: str) -> str:
    """The codec whose decoded values this one's are, bit for bit: what is measured of the one holds for the other.

    Raises:
        UnknownCodec: the catalog holds none of this name.
    """
    codec = get(name)
    return codec.name.removesuffix("z") if isinstance(codec, QuantizedCodec) else codec.name
