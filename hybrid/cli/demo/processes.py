"""The demo's processes: started with argument lists of ours, heard line by line, and gone when the demo is.

Design: each child leads a session of its own, so that Ctrl-C in the terminal reaches the demo alone, which then ends
its children in order; a device also ends by itself when its stdin does, should the demo be killed.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from hybrid.errors import HybridError

_END_S: Final = 5.0
_N_LINES: Final = 100_000
_TAIL_LINES: Final = 12


class DemoFailed(HybridError):
    """A process of the demo ended, or did not come up; the message holds its last words."""


class Child:
    """A process whose stdout is a queue of lines; its stderr is kept for the case that it fails."""

    def __init__(self, name: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.lines: queue.Queue[str | None] = queue.Queue(_N_LINES)
        self._last_words: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_words, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def line(self, timeout_s: float) -> str:
        """Its next line of stdout.

        Raises:
            DemoFailed: it ended, or said nothing for so long.
        """
        try:
            line = self.lines.get(timeout=timeout_s)
        except queue.Empty:
            raise DemoFailed(f"the {self.name} said nothing for {timeout_s:.0f} s{self._words()}") from None
        if line is None:
            raise DemoFailed(f"the {self.name} ended{self._words()}")
        return line

    def say(self, word: str) -> None:
        """Writes a line to its stdin; one that has ended is found out by what it no longer says."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(word + "\n")
                self._process.stdin.flush()
            except OSError:
                return

    def end(self) -> None:
        """Asks it to end, then makes it; its pipes are closed when this returns."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for reader in self._readers:
            reader.join(_END_S)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # a word that it no longer wanted to hear

    def _read_lines(self) -> None:
        for line in self._process.stdout or ():
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def _read_words(self) -> None:
        for line in self._process.stderr or ():
            self._last_words = [*self._last_words[1 - _TAIL_LINES :], line.rstrip("\n")]

    def _words(self) -> str:
        time.sleep(0.1)  # its last words may still be on the way
        return "; its last words:\n" + "\n".join(self._last_words) if self._last_words else ""


def run_command(*arguments: str, timeout_s: float = 60.0, environment: Mapping[str, str] | None = None) -> str:
    """Stdout of one `hybrid` command.

    Raises:
        DemoFailed: it failed or took too long.
    """
    shown = "hybrid " + " ".join(arguments[:2])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hybrid.cli.main", *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`{shown}` took longer than {timeout_s:.0f} s") from None
    if done.returncode:
        raise DemoFailed(f"`{shown}` ended with {done.returncode}:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
