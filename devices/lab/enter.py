"""A launcher: puts itself into a namespace and into control groups, then becomes the program that was asked for.

A program of its own, since a thread of a larger one cannot enter a user namespace, and code between fork and exec of a
program with threads can lock up. Standard library only; run as `python -S -E enter.py OPTIONS -- COMMAND…`.

Options: `--user FILE` and `--net FILE` are namespaces, `--group FILE` a control group's list of processes (may stand
several times).
"""

import ctypes
import os
import sys

_KINDS = {"--user": 0x10000000, "--net": 0x40000000}


def main(words: list[str]) -> None:
    """Enters, joins, becomes."""
    libc = ctypes.CDLL(None, use_errno=True)
    end = words.index("--")
    options = list(zip(words[0:end:2], words[1:end:2], strict=True))
    spaces = [(option, value, os.open(value, os.O_RDONLY)) for option, value in options if option in _KINDS]
    for option, value in options:
        if option == "--group":
            with open(value, "w", encoding="ascii") as group:  # noqa: PTH123 - pathlib doubles the time that this takes
                group.write(str(os.getpid()))
    for option, _, file in spaces:
        if libc.setns(file, _KINDS[option]) != 0:
            sys.exit(f"the emulated network is gone: {os.strerror(ctypes.get_errno())}")
    # The relay closes its doors before it looks who is inside: who entered and finds them closed may have been missed.
    for _, value, file in spaces:
        if not os.path.samestat(os.stat(value), os.fstat(file)):  # noqa: PTH116 - as above
            sys.exit("the emulated network is gone")
        os.close(file)
    command = words[end + 1 :]
    try:
        os.execvp(command[0], command)  # noqa: S606 - that is what it is for
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"the emulated machine is gone: {error}")
