"""Tables for people: aligned columns, or, where the terminal is too narrow for them, a block of lines for each row."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Final

_LEAST_COLUMNS: Final = 24
"""A narrower terminal is written to as if it were this wide."""


def columns() -> int | None:
    """How many characters a line may have: what COLUMNS says, else the terminal's width; None where there is none."""
    told = os.environ.get("COLUMNS", "")
    if not told.isdecimal() and not sys.stdout.isatty():
        return None
    return max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its headings.

    A column without a heading holds marks; in a block, a mark stands before the next cell.
    """
    room = columns()
    return _aligned(rows) if room is None or fits(rows) else _blocks(rows, room)


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal holds a table's aligned columns; also where there is none."""
    room = columns()
    return room is None or max(map(len, _aligned(rows))) <= room


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _blocks(rows: Sequence[Sequence[str]], room: int) -> list[str]:
    headings = rows[0]
    margin = min(max(map(len, headings)) + 2, room // 2)
    lines: list[str] = []
    for row in rows[1:]:
        lines += [""] if lines else []
        mark = ""
        for heading, cell in zip(headings, row, strict=True):
            if not heading:
                mark = f"{cell} " if cell else ""
            elif cell:
                lines += hanging(f"{heading:<{margin - 2}}  {mark}", cell, room, margin)
                mark = ""
    return lines


def hanging(label: str, text: str, room: int, margin: int) -> list[str]:
    """A label with a text beside it, wrapped; its further lines stand below one another, `margin` from the left."""
    wrapped = textwrap.wrap(
        text, room, initial_indent=label, subsequent_indent=" " * margin,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return wrapped or [label.rstrip()]


def wrapped(text: str) -> list[str]:
    """A text below a table, in lines that the terminal holds."""
    room = columns()
    return [text] if room is None else hanging("", text, room, 0)
