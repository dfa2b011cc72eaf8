"""How every command speaks: results on stdout, everything else on stderr, one JSON object when `--json` is asked for.

Design: a command calls `result` once with its data and the lines for people; the same call serves both readers, so the
two never tell different things. Nothing decorative is written where stderr is no terminal.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_PROGRESS_S = 5.0
"""Seconds between two progress lines where there is no terminal."""

WIDE: Final = 120
"""Columns of a terminal that has room for a long bar and the whole name of its unit."""


_quiet = False


def be_quiet(*, quiet: bool) -> None:
    """Whether notes and progress are kept back from now on (the `-q` of the root command)."""
    global _quiet
    _quiet = quiet


class Progress(Protocol):
    """A piece of long work that tells how far it is, in real units."""

    def advance(self, n: float) -> None:
        """Say that `n` more units are done."""
        ...

    def rename(self, label: str) -> None:
        """Say what is being done now."""
        ...

    def extend(self, total: float) -> None:
        """Say how many units there are after all."""
        ...


def encode(value: object) -> str:
    """`value` as JSON: dataclasses, structs and enums as they read, anything else (paths, times) as its text."""
    import msgspec

    return msgspec.json.encode(value, enc_hook=str).decode()


def result(data: object, text: str, *, json: bool) -> None:
    """Write a command's result to stdout.

    Args:
        data: what programs read: stands in `{"ok": true, "data": …, "error": null}`.
        text: what people read; several lines are fine, an empty text writes nothing.
        json: whether `--json` was given.
    """
    if json:
        print(encode({"ok": True, "data": data, "error": None}), flush=True)
    elif text:
        print(text, flush=True)


def event(data: object, text: str, *, json: bool) -> None:
    """Write one line of a stream to stdout: a JSON object a line with `json`, else the text."""
    print(encode(data) if json else text, flush=True)


def note(text: str) -> None:
    """Tell a person something on stderr that is not part of the result."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def decorated(stream: TextIO) -> bool:
    """Whether colours and bars may be written to this stream: a terminal that was not asked to stay plain."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Progress]:
    """A progress bar on stderr; plain lines every five seconds where stderr is no terminal.

    Args:
        label: what is being done, such as `uploading detector.onnx`.
        total: how many units there are.
        unit: the unit's name: `bytes` (shown as kB, MB, GB) or a plural noun.
    """
    if _quiet:
        yield _Silent()
    elif decorated(sys.stderr):
        with _bar(label, total, unit) as bar:
            yield bar
    else:
        yield _Lines(label, total, unit, write=note, now_s=time.monotonic)


class _Silent:
    def advance(self, n: float) -> None:
        """Nobody is listening."""

    def rename(self, label: str) -> None:
        """Nobody is listening."""

    def extend(self, total: float) -> None:
        """Nobody is listening."""


class _Lines:
    """Progress as plain lines, at most one every `PLAIN_PROGRESS_S`, and one at the end of work that took longer."""

    def __init__(
        self, label: str, total: float, unit: str, *, write: Callable[[str], None], now_s: Callable[[], float]
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._write, self._now_s = write, now_s
        self._done, self._said_s = 0.0, now_s()

    def advance(self, n: float) -> None:
        self._done += n
        if self._now_s() - self._said_s >= PLAIN_PROGRESS_S:
            self._said_s = self._now_s()
            self._write(f"{self._label}: {amount(self._done, self._total, self._unit)}")

    def rename(self, label: str) -> None:
        self._label = label

    def extend(self, total: float) -> None:
        self._total = total


@contextmanager
def _bar(label: str, total: float, unit: str, console: "Console | None" = None) -> Iterator[Progress]:
    """Where there is little room the label is cut, then the bar shortened; never the figures and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Label(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.description, no_wrap=True, overflow="ellipsis")

    console = console or Console(stderr=True)
    is_wide = console.width >= WIDE
    counter_type = DownloadColumn if unit == "bytes" else MofNCompleteColumn
    suffix = "" if unit == "bytes" else unit if is_wide else unit.partition(" ")[0]
    figures = (
        counter_type(table_column=Column(no_wrap=True)),
        TextColumn(suffix),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    with RichProgress(Label(), BarColumn(40 if is_wide else 12), *figures, console=console) as bars:
        task = bars.add_task(label, total=total)

        class Bar:
            def advance(self, n: float) -> None:
                bars.advance(task, n)

            def rename(self, label: str) -> None:
                bars.update(task, description=label)

            def extend(self, total: float) -> None:
                bars.update(task, total=total)

        yield Bar()


def amount(done: float, total: float, unit: str) -> str:
    """How far work is, in real units: `34.1 / 120.0 MB`, `12 / 14 devices`."""
    if unit != "bytes":
        return f"{done:g} / {total:g} {unit}"
    scale, name = next(
        (s, n) for s, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")) if total >= s or s == 1
    )
    return f"{done / scale:.1f} / {total / scale:.1f} {name}"


_STEPS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
