"""Where the outbox lies, and what stands between it and the machine: the disk, SQLite, the seal, the calendar."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.disk import Disk, RealDisk
from edge_agent.outbox.blob_files import Open, Sealer
from edge_agent.outbox.database import Connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One folder of one machine, real or simulated.

    Attributes:
        folder: of the files.
        disk: on which it lies.
        connect: opens an SQLite file there; None is `sqlite3.connect`.
        vault: seals what lies there.
        wall_s: the calendar; it names files that are set aside, and decides nothing.
    """

    folder: Path
    disk: Disk = field(default_factory=RealDisk)
    connect: Connect | None = None
    vault: Sealer = field(default_factory=Open)
    wall_s: Callable[[], float] = time.time
