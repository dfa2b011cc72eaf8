"""Small files that others may have laid where they are read: never waited for, never larger than they may be."""

import os
import stat
from pathlib import Path

from hybrid.errors import BadMessage, TooLarge


def read_plain(path: Path, most_bytes: int) -> bytes:
    """The content of a plain file; a large one is not read to find out that it is none.

    Raises:
        FileNotFoundError, OSError: it is not there, or cannot be read.
        BadMessage: a pipe, a folder, a device: reading it might never end.
        TooLarge: more bytes than that.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadMessage(f"{path}: no plain file; remove it, or put a file there")
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise TooLarge(f"{path}: more than the {most_bytes} bytes that are allowed; remove it")
    return data
