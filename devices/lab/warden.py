"""The process that watches over a lab: what the lab leaves behind when its maker is killed without a word, it ends.

It is started by `devices.lab.lab` as a program of its own, sleeps until its parent has gone, and then ends the lab's
programs (whatever they started, wherever they moved to: they carry the lab's mark in their environment), removes its
control groups and its folder. A lab that is closed in order needs none of that and kills its warden. Linux only.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

MARK_VARIABLE: Final = "HYBRID_LAB"
"""The environment variable that tells a lab's programs which lab they are in."""

_ROOT: Final = Path(__file__).parent.parent.parent
_START: Final = "import sys; sys.path.insert(0, sys.argv[1]); from devices.lab.warden import main; main(sys.argv[2:])"
_LOOK_S, _DYING_S, _EVICTION_S = 0.2, 0.01, 10.0


def started(mark: str, folder: Path, groups: Sequence[str]) -> "subprocess.Popen[Any] | None":
    """A warden of this process's lab; None where processes cannot be looked at.

    Args:
        mark: of the lab's programs.
        folder: removed with the lab.
        groups: lists of processes of its control groups; groups of dead owners beside them are removed.
    """
    if sys.platform != "linux":
        return None
    places = sorted({str(Path(group).parent.parent) for group in groups})
    return subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _START, str(_ROOT), str(os.getpid()), mark, str(folder), *places],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def dismissed(warden: "subprocess.Popen[Any] | None") -> None:
    """Ends a warden that has nothing to do any more."""
    if warden is not None:
        warden.kill()
        warden.wait()


def main(words: list[str]) -> None:
    """Waits for the maker's end, then cleans up."""
    maker, mark, folder, *places = words
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the lab, not before it
    _wait(int(maker))
    _end_all(f"{MARK_VARIABLE}={mark}".encode())
    shutil.rmtree(folder, ignore_errors=True)
    from devices.cpu_quota import remove_stale

    for place in places:
        remove_stale(Path(place))


def _wait(pid: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # an old kernel, or it ended before this began
        select.select([os.pidfd_open(pid)], [], [])
    while os.getppid() == pid:
        time.sleep(_LOOK_S)


def _end_all(mark: bytes) -> None:
    """Kills every process with that variable, until a look finds none: they start others meanwhile."""
    end_s = time.monotonic() + _EVICTION_S
    while (found := _marked(mark)) and time.monotonic() < end_s:
        for pid in found:
            with contextlib.suppress(OSError):  # gone meanwhile
                os.kill(pid, signal.SIGKILL)
        time.sleep(_DYING_S)


def _marked(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
