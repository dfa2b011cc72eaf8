"""How a program is started at one end of the emulated link: the launcher's command line."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

Side = Literal["device", "gateway"]

_ENTER: Final = Path(__file__).parent / "enter.py"


def launched(options: Sequence[str], argv: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The launcher's command line for `argv`, or `argv` itself where there is nothing to enter or join.

    Args:
        options: namespaces to enter, as `devices.lab.enter` takes them.
        argv: the program and its words.
        groups: control groups' lists of processes to join.
    """
    words = [*options, *(word for group in groups for word in ("--group", group))]
    return [sys.executable, "-S", "-E", str(_ENTER), *words, "--", *argv] if words else list(argv)
