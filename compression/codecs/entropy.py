"""The lossless byte stage after any codec: zstd, with every size known and checked before memory is taken."""

import threading
from typing import TYPE_CHECKING, Final

from compression.codecs.codec import Payload
from compression.errors import CorruptPayload

if TYPE_CHECKING:
    import zstandard

_LEVEL: Final = 1
"""Measured on predicted image planes: level 3 takes twice the time and is larger on photographs."""

_MAX_WINDOW_BYTES: Final = 1 << 23
"""Level 1 writes windows of at most 512 KiB, or one segment of the content's size; RFC 8878 asks for 8 MiB."""


class _Contexts(threading.local):
    """One compressor and one decompressor a thread: zstandard's contexts must not be shared."""

    compressor: "zstandard.ZstdCompressor | None" = None
    decompressor: "zstandard.ZstdDecompressor | None" = None


_CONTEXTS: Final = _Contexts()


def squeeze(data: Payload) -> bytes:
    """One zstd frame that declares its content's size and carries a checksum."""
    import zstandard

    if _CONTEXTS.compressor is None:
        _CONTEXTS.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return _CONTEXTS.compressor.compress(data)


def expand(payload: Payload, n_bytes: int) -> bytes:
    """The `n_bytes` bytes that this frame holds.

    Raises:
        CorruptPayload: not one whole zstd frame, another size declared or found, a window beyond what is needed, or a
            checksum that does not match.
    """
    import zstandard

    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != n_bytes:
            seen = "no size" if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN else str(frame.content_size)
            raise CorruptPayload(f"a zstd frame declares {seen} bytes, {n_bytes} were expected")
        if frame.window_size > max(n_bytes, _MAX_WINDOW_BYTES) or frame.dict_id:
            raise CorruptPayload(
                f"a zstd frame of {n_bytes} bytes wants a window of {frame.window_size} or dictionary {frame.dict_id}"
            )
        if _CONTEXTS.decompressor is None:
            _CONTEXTS.decompressor = zstandard.ZstdDecompressor()
        data = _CONTEXTS.decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptPayload(f"{len(payload)} bytes are no sound zstd frame ({error})") from error
    if len(data) != n_bytes:
        raise CorruptPayload(f"a zstd frame holds {len(data)} bytes, {n_bytes} were expected")
    return data
