"""What an installation works with: the disk, the engines, where versions come from, whose word counts, who is told."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from edge_agent.disk import Disk
from edge_agent.install.fetching import Downloads, Files
from edge_agent.install.rehearsal import Rehearsal, Rehearse, runs_here
from edge_agent.install.rules import TrustKeys
from edge_agent.install.shelf import Shelf
from edge_agent.models.version import ModelHost
from hybrid.artifact.manifest import Variant
from hybrid.fleet.messages import Installed


async def _tell_nobody(installed: Installed) -> None:
    """Where reports go while the agent has no outbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallSettings:
    """Limits of installing.

    Attributes:
        reserve_bytes: room on the disk that models never take; the outbox and the system live there.
        watch_s: how often a trial is looked at.
        deferred_s: how long until a version that had no room is tried again.
        retry_first_s, retry_most_s: bounds of the random pauses after a broken link.
    """

    reserve_bytes: int = 64 << 20
    watch_s: float = 1.0
    deferred_s: float = 600.0
    retry_first_s: float = 1.0
    retry_most_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Handed to the installation of every model.

    Attributes:
        data: the agent's folder.
        disk: it lies on.
        host: runs models.
        files: where versions come from.
        trust: keys of the newest trust bundle; None in a fleet without a root.
        rng: for pauses.
        now_s: the wall clock, which may be wrong.
        rehearse: opens a version in a process of its own.
        report: is told of each phase; the state call tells it too, so it may refuse.
        has_engine: whether this machine can run a variant.
    """

    data: Path
    disk: Disk
    host: ModelHost
    files: Files
    trust: Callable[[], TrustKeys | None]
    rng: Random
    now_s: Callable[[], float]
    rehearse: Rehearse = field(default_factory=lambda: Rehearsal().play)
    report: Callable[[Installed], Awaitable[None]] = _tell_nobody
    has_engine: Callable[[Variant], bool] = runs_here
    settings: InstallSettings = field(default=InstallSettings())

    @property
    def shelf(self) -> Shelf:
        """Records and slots of the models."""
        return Shelf(self.disk, self.data, self.now_s)

    @property
    def downloads(self) -> Downloads:
        """Files on their way here."""
        return Downloads(self.disk, self.data / "downloads")

    def imported(self, artifact_digest: str) -> Path:
        """Where a version lies that was brought here without a network."""
        return self.data / "imports" / artifact_digest
