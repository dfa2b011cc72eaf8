"""Models of a simulated box: opened from its simulated disk, looked at byte by byte, run without an engine."""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np

from edge_agent.models.version import ModelVersion, Runs
from hybrid.errors import EngineFailed, ModelInvalid, StorageError
from tests.reliability.history import History
from tests.reliability.publishing import Published, answer_of
from tests.reliability.simulated_disk import SimulatedDisk


class SimulatedHost:
    """A `ModelHost` that knows the true bytes of every version, and says when it is handed others.

    Attributes:
        answering: version that answers, by name.
    """

    def __init__(
        self, who: str, disk: SimulatedDisk, known: Mapping[str, Published], history: History, rng: Random
    ) -> None:
        self._who, self._disk, self._known, self._history, self._rng = who, disk, known, history, rng
        self._opened: dict[str, bytes] = {}
        self._runs: dict[str, Runs] = {}
        self.answering: dict[str, ModelVersion] = {}

    async def open(self, version: ModelVersion) -> None:
        await asyncio.sleep(self._rng.uniform(0.01, 0.5))
        self._opened[version.artifact_digest] = self._looked_at(version)

    async def run(
        self, version: ModelVersion, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        await asyncio.sleep(self._rng.uniform(0.001, 0.05))
        return {"y": answer_of(self._opened[version.artifact_digest])}

    async def answer(self, version: ModelVersion) -> None:
        if version.artifact_digest not in self._opened:
            await self.open(version)
        self.answering[version.name] = version
        self._runs[version.name] = Runs()
        self._history.add(self._who, "answers", name=version.name, version=version.version)

    async def drop(self, name: str, artifact_digest: str = "") -> None:
        if artifact_digest:
            self._opened.pop(artifact_digest, None)
        elif self.answering.pop(name, None):
            self._history.add(self._who, "answers no more", name=name)

    def runs(self, name: str) -> Runs:
        return self._runs.get(name, Runs())

    def request(self, name: str) -> None:
        """A client's request.

        Raises:
            EngineFailed: this version fails in use.
        """
        runs = self._runs[name]
        version = self.answering[name]
        if self._known[version.artifact_digest].character == "fails in use" and runs.n_good >= 3:
            runs.n_errors += 1
            raise EngineFailed("the engine refused")
        runs.n_good += 1
        runs.latest_s.append(0.01)

    def _looked_at(self, version: ModelVersion) -> bytes:
        """The model's bytes; a breach where they are not those that were signed."""
        true = self._known.get(version.artifact_digest)
        if true is None:
            self._history.breach("P2", f"{self._who} opens an artifact that nobody published: {version}")
            raise ModelInvalid("unknown")
        try:
            seen = self._disk.read(version.path)
        except OSError as exc:
            raise StorageError(f"{version.path}: {exc}") from exc
        if seen not in true.files.values():
            self._history.breach("P2", f"{self._who} opens {version.name} {version.version} with damaged bytes")
            raise ModelInvalid("damaged")
        if true.character == "does not open":
            raise ModelInvalid("this model does not open")
        return seen
