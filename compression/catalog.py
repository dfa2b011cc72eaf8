"""The codecs that the wire can name."""

from typing import Final

from compression.codec import Codec
from compression.errors import UnknownCodec
from compression.half import HalfCodec
from compression.jpeg import JpegCodec
from compression.lossless import LosslessCodec
from compression.raw import RawCodec

CODECS: Final[dict[str, Codec]] = {
    codec.name: codec for codec in (RawCodec(), LosslessCodec(), HalfCodec(), JpegCodec())
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
