"""What the outbox writes to the box's flash in an idle hour: telemetry every 30 s, with the gateway and without it.

The real outbox on a real ext4 file system on a loop device, whose own counter of written sectors is read: so journal
and metadata of the file system count as well. Its hour runs on a virtual clock: every wait is skipped, every write and
every sync is done. For comparison the same telemetry with 4 KiB pages, and the plain way: one row a second, committed.
"""

import argparse
import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import cast

from benchmarks.report import Bar, Record, publish
from edge_agent.outbox import database
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import IngestAnswer, IngestCall, OutcomesAnswer, OutcomesCall
from tests.reliability.virtual_loop import VirtualLoop

HOURS = 3
BODY_BYTES = 600
EVERY_S = 30.0
LIMIT_BYTES = 5_000_000
_SECTOR_BYTES = 512


class Taking:
    """A gateway that takes everything."""

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        """See `FleetCalls`."""
        return IngestAnswer(acked={item.stream: item.seq for item in call.items})

    async def outcomes(self, call: OutcomesCall) -> OutcomesAnswer:
        """See `FleetCalls`."""
        del call
        return OutcomesAnswer()


@contextmanager
def flash() -> Iterator[tuple[Path, Callable[[], int]]]:
    """A fresh ext4, and how many bytes were written to its device so far."""
    with tempfile.TemporaryDirectory() as folder:
        image, place = Path(folder) / "image", Path(folder) / "mounted"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        device = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            subprocess.run(["mount", device, str(place)], check=True)
            counter = Path("/sys/block") / Path(device).name / "stat"

            def written() -> int:
                os.sync()
                return int(counter.read_text().split()[6]) * _SECTOR_BYTES

            try:
                yield place, written
            finally:
                subprocess.run(["umount", str(place)], check=True)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


async def _idle(folder: Path, *, is_online: bool, hours: int, seed: int) -> None:
    rng = Random(seed)
    calls = cast("FleetCalls", Taking()) if is_online else None  # all that it is asked here
    outbox = Outbox(Place(folder=folder), calls=calls, rng=rng)
    running = asyncio.ensure_future(outbox.run())
    for _ in range(int(hours * 3600 / EVERY_S)):
        await asyncio.sleep(EVERY_S)
        await outbox.put("telemetry", rng.randbytes(BODY_BYTES))
    await asyncio.sleep(EVERY_S)
    running.cancel()
    await asyncio.wait((running,))


def outbox_hour(*, is_online: bool, page_bytes: int, seed: int) -> float:
    """Bytes that one idle hour writes."""
    pragmas = database._PRAGMAS  # noqa: SLF001 (what is compared)
    changed = tuple(f"page_size={page_bytes}" if text.startswith("page_size") else text for text in pragmas)
    setattr(database, "_PRAGMAS", changed)  # noqa: B010 (for this measurement alone)
    try:
        with flash() as (place, written):
            VirtualLoop(seed).run(_idle(place / "outbox", is_online=is_online, hours=1, seed=seed))
            before = written()  # making the files is no idling
            VirtualLoop(seed).run(_idle(place / "outbox", is_online=is_online, hours=HOURS, seed=seed + 1))
            return (written() - before) / HOURS
    finally:
        setattr(database, "_PRAGMAS", pragmas)  # noqa: B010


def plain_hour(seed: int, n_commits: int = 300) -> float:
    """Bytes of an hour of the plain way: a row of 200 bytes a second, each committed at synchronous=FULL."""
    rng = Random(seed)
    with flash() as (place, written):
        connection = sqlite3.connect(place / "plain.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, body BLOB)")
        before = written()
        for _ in range(n_commits):
            connection.execute("INSERT INTO row (body) VALUES (?)", (rng.randbytes(200),))
        connection.close()
        return (written() - before) * 3600 / n_commits


def main() -> int:
    """Measure; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    if os.geteuid() != 0:
        print("flash_wear needs root: it mounts a file system of its own", file=sys.stderr)
        return 1
    found = {
        "the outbox, online": outbox_hour(is_online=True, page_bytes=database.PAGE_BYTES, seed=seed),
        "the outbox, offline": outbox_hour(is_online=False, page_bytes=database.PAGE_BYTES, seed=seed),
        "the outbox with pages of 4 KiB, online": outbox_hour(is_online=True, page_bytes=4096, seed=seed),
        "one row of 200 bytes a second, each committed": plain_hour(seed),
    }
    rows: list[list[str | float]] = [[name, n_bytes / 1e6, n_bytes * 24 / 1e6] for name, n_bytes in found.items()]
    return publish(
        Record(
            name="flash_wear",
            claim="An idle box's outbox writes less than 5 MB an hour to its flash.",
            method=f"Telemetry of {BODY_BYTES} bytes every {EVERY_S:.0f} s for {HOURS} hours on a virtual clock, after "
            "a first hour that does not count; bytes by the block device's own counter, so with the journal and the "
            "metadata of ext4 (fresh, 256 MiB, default options).",
            seed=seed,
            columns=["what writes", "MB an hour", "MB a day"],
            rows=rows,
            bars=[
                Bar(name=name, measured=found[name], limit=LIMIT_BYTES, unit=" bytes an hour")
                for name in ("the outbox, online", "the outbox, offline")
            ],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
