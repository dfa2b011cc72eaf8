"""What a program and a gateway say about chunks of files, and the compressed form of an index."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

import msgspec

from hybrid.artifact.chunk_extents import Extent
from hybrid.artifact.chunks import MAX_INDEX_BYTES, put_numbers, take_numbers
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import BadMessage

MAX_HAVE: Final = 4
MAX_MODELS: Final = 8
MAX_RANGES: Final = 2048
MAX_RANGES_BYTES: Final = 16 << 20
"""Most bytes that one call may ask for."""
DIGEST_BYTES: Final = 8
_LEVEL: Final = 12
_WINDOW_LOG: Final = 26


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file, and the models that may lay tensors into it.

    Attributes:
        models: {digest of an ONNX file: the location by which it would name this one}; nothing for a model itself.
    """

    sha256: str
    models: dict[str, str] = {}


class IndexCall(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for the index of a file. `have`: files that the caller has, the most similar first, at most 4."""

    file: FileRef
    have: tuple[FileRef, ...] = ()


class IndexAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The index of a file, compressed.

    Attributes:
        body: a zstd frame.
        digest: first 8 bytes of the SHA-256 of what it holds.
        dictionary: the same of the index that it was compressed against, of a file that the caller has; empty: none.
    """

    body: bytes
    digest: bytes
    dictionary: bytes = b""


class RangesCall(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for parts of a file, one after the other. `ranges`: see `put_ranges`."""

    sha256: str
    ranges: bytes


def refs_of(files: Mapping[str, FileEntry]) -> dict[str, FileRef]:
    """How each file of an artifact is asked for, by its name."""
    onnx = [name for name in sorted(files) if name.endswith(".onnx")]
    return {name: FileRef(sha256=entry.sha256, models=_models(name, onnx, files)) for name, entry in files.items()}


def _models(name: str, onnx: Sequence[str], files: Mapping[str, FileEntry]) -> dict[str, str]:
    if name.endswith((".onnx", ".tflite")):
        return {}
    path = PurePosixPath(name)
    beside = [model for model in onnx if path.is_relative_to(PurePosixPath(model).parent)]
    return {
        files[model].sha256: path.relative_to(PurePosixPath(model).parent).as_posix() for model in beside[:MAX_MODELS]
    }


def digest_of(index: bytes) -> bytes:
    """By what an encoded index is known."""
    return hashlib.sha256(index).digest()[:DIGEST_BYTES]


def compress(index: bytes, dictionary: bytes = b"") -> bytes:
    """An encoded index, made small; against another one it is little more than the difference."""
    import zstandard

    settings = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=len(index), dict_size=len(dictionary), write_content_size=True
    )
    return zstandard.ZstdCompressor(compression_params=settings, dict_data=_raw(dictionary)).compress(index)


def decompress(body: bytes, dictionary: bytes = b"") -> bytes:
    """What `compress` was given.

    Raises:
        BadMessage: no such frame, or one that would become too large.
    """
    import zstandard

    try:
        n_bytes = zstandard.frame_content_size(body)
        if not 0 <= n_bytes <= MAX_INDEX_BYTES:
            raise BadMessage(f"the index of chunks says that it has {n_bytes} bytes; {MAX_INDEX_BYTES} are the most")
        reader = zstandard.ZstdDecompressor(dict_data=_raw(dictionary), max_window_size=1 << _WINDOW_LOG)
        return reader.decompress(body, max_output_size=MAX_INDEX_BYTES)
    except zstandard.ZstdError as exc:
        raise BadMessage(f"the index of chunks cannot be unpacked ({exc})") from exc


def _raw(dictionary: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202 (zstandard comes at its first use)
    import zstandard

    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None


def put_ranges(ranges: Sequence[Extent]) -> bytes:
    """Rising ranges as numbers: the gap since the one before, then the length."""
    out = bytearray()
    at = 0
    for offset, length in ranges:
        put_numbers(out, (offset - at, length))
        at = offset + length
    return bytes(out)


def take_ranges(data: bytes, size: int) -> list[Extent]:
    """What `put_ranges` was given, of a file of that size.

    Raises:
        BadMessage: cut off, beyond the file's end, or more than one call may ask for.
    """
    ranges: list[Extent] = []
    at = place = total_bytes = 0
    while place < len(data):
        (gap, length), place = take_numbers(data, place, 2)
        offset = at + gap
        at = offset + length
        total_bytes += length
        if length < 1 or at > size or total_bytes > MAX_RANGES_BYTES or len(ranges) >= MAX_RANGES:
            raise BadMessage(
                f"range {len(ranges)}, {length} bytes at {offset} of {size}, is refused: at most {MAX_RANGES} ranges "
                f"of {MAX_RANGES_BYTES} bytes together, inside the file, are given at once"
            )
        ranges.append((offset, length))
    return ranges
