"""Where updates wait for their round to close: small ones beside their rows, large ones in files."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloud_gateway.rounds.kept.commits import Commits
from cloud_gateway.rounds.kept.store import ReceivedRow, RoundStore
from hybrid.artifact.durable import write_atomically
from hybrid.errors import CorruptContent

UPDATES: Final = "updates"


class Spool:
    """The contents of updates.

    Attributes:
        store: the rows.
        commits: writes them.
        folder: of all campaigns.
    """

    def __init__(self, store: RoundStore, commits: Commits, folder: Path) -> None:
        self.store = store
        self.commits = commits
        self.folder = folder

    def path(self, campaign: str, step: int, box_id: str) -> Path:
        """Where a large content lies."""
        return self.folder / campaign / UPDATES / f"{step:08d}-{box_id}"

    def put(self, campaign: str, step: int, box_id: str, content: bytes) -> None:
        """Keep a large content; on the disk when this returns. Raises `DiskFull`, `StorageError`."""
        write_atomically(self.path(campaign, step, box_id), content)

    def contents(self, campaign: str, rows: Sequence[ReceivedRow]) -> Iterator[bytes]:
        """The contents of these updates, one in memory at a time; blocks.

        Raises:
            CorruptContent: one is gone, or is not what was accepted.
        """
        for row, content in zip(rows, self.store.contents([row.id for row in rows]), strict=True):
            found = content
            if not content and row.body.n_bytes:
                try:
                    found = self.path(campaign, row.step, row.box_id).read_bytes()
                except OSError as exc:
                    raise CorruptContent(
                        f"the update of box {row.box_id} for step {row.step} is gone from the disk"
                    ) from exc
            if hashlib.sha256(found).hexdigest() != row.body.sha256:
                raise CorruptContent(f"the disk has damaged the update of box {row.box_id} for step {row.step}")
            yield found

    def forget(self, campaign: str, rows: Sequence[ReceivedRow]) -> None:
        """Remove files whose round has closed."""
        for row in rows:
            with suppress(OSError):
                self.path(campaign, row.step, row.box_id).unlink(missing_ok=True)

    def forget_all(self, campaign: str) -> None:
        """Remove the files of a campaign that ended."""
        shutil.rmtree(self.folder / campaign / UPDATES, ignore_errors=True)
