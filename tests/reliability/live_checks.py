"""What is looked at while a box works: P2, a whole version answers at every moment; P6, health tells the truth."""

from typing import TYPE_CHECKING

from hybrid.errors import DiskFull, HybridError, StorageError

if TYPE_CHECKING:
    from edge_agent.install.install import Install
    from edge_agent.outbox.outbox import Outbox
    from tests.reliability.box import Box

NEVER = ("golden differs", "does not open", "crashes")
"""Versions of these characters must not answer anybody."""


def check_answering(box: "Box", install: "Install") -> None:
    """After a start and from then on: whoever had a committed version once has one that answers."""
    assert box.host is not None
    for installed in install.installed():
        version = box.host.answering.get(installed.name)
        blocks = any(problem.blocks for problem in install.problems())
        if version is None:
            if box.has_committed and not box.is_tainted:
                box.history.breach("P2", f"{box.name}: no version answers, although one was committed: {installed}")
            if box.has_committed and not blocks:
                box.history.breach("P6", f"{box.name}: nothing answers and health says nothing of it: {installed}")
            continue
        character = box.known[version.artifact_digest].character
        if character in NEVER:
            box.history.breach("P2", f"{box.name}: version {version.version} answers, and it {character}")
        if installed.phase == "committed" and installed.artifact_digest == version.artifact_digest:
            box.has_committed = True


def check_refusal(box: "Box", outbox: "Outbox", error: HybridError) -> None:
    """A put that the disk refused: health must say so at once."""
    is_disk = isinstance(error, DiskFull | StorageError)
    if is_disk and not outbox.problems():
        box.history.breach("P6", f"{box.name}: a put was refused ({error.code}), and health says nothing of it")
