"""One installed version of a model, as the agent serves it, and how its runs went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from hybrid.fleet.messages import SampleRule

DEFAULT_PRIORITY = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A verified artifact, or a local model file, that may answer requests.

    Attributes:
        name: under which clients ask for it.
        version: for people; what identifies it are the digests.
        artifact_digest: SHA-256 of the manifest; empty for a local file that came without one.
        model_digest: SHA-256 of the model and its external data (DESIGN §3).
        path: the model file; its external data lie beside it, and nothing else may.
        folder: of the artifact; None for a local file.
        classes: labels of a classification output.
        priority: 0 to 9, higher first, against other models of this box.
        samples: what is kept of its inputs and outputs.
        variant: id of the artifact's variant that `path` is.
    """

    name: str
    version: str
    model_digest: str
    path: Path
    artifact_digest: str = ""
    folder: Path | None = None
    classes: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY
    samples: SampleRule = "off"
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalCopy:
    """A version with tensors of this box in place of its own: never a file, made again from what learning keeps.

    Attributes:
        version: whose files it shares.
        digest: names it beside every other model of this box; drawn, so that it says nothing of the tensors.
        tensors: by name.
    """

    version: ModelVersion
    digest: str
    tensors: Mapping[str, np.ndarray] = field(compare=False, repr=False)

    def is_of(self, version: ModelVersion) -> bool:
        """Whether this is what it was made of."""
        mine = self.version
        return (mine.artifact_digest, mine.variant, mine.path) == (
            version.artifact_digest, version.variant, version.path
        )  # fmt: skip


@dataclass(slots=True)
class Runs:
    """How the runs of an answering version went, since it began to answer.

    Attributes:
        n_good: answered.
        n_errors: failed by the engine or by us; requests that were wrong themselves, late or refused do not count.
        by_place: answered, by placement: `local`, `offload`, `split`.
        latest_s: the last 256 latencies in seconds, oldest first.
    """

    n_good: int = 0
    n_errors: int = 0
    by_place: dict[str, int] = field(default_factory=dict)
    latest_s: list[float] = field(default_factory=list)

    def quantile_s(self, share: float) -> float:
        """A quantile of the last latencies; 0 where there are none."""
        if not self.latest_s:
            return 0.0
        ordered = sorted(self.latest_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class ModelHost(Protocol):
    """What the installation of models asks of the part that runs them; every method is called on the event loop.

    Raises `HybridError`s only: `ModelError` where the file is at fault, `Overloaded` where there was no memory now.
    """

    async def open(self, version: ModelVersion) -> None:
        """Open a version beside the one that answers, and warm it up; it answers nobody yet."""
        ...

    async def run(
        self, version: ModelVersion, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs of an opened version, computed here, after all requests that wait: for golden inputs."""
        ...

    async def answer(self, version: ModelVersion) -> None:
        """From now on this version answers its name; requests that run end on the one before. Opens it if need be."""
        ...

    async def drop(self, name: str, artifact_digest: str = "") -> None:
        """Forget an opened version that does not answer; without a digest the name answers no more."""
        ...

    def runs(self, name: str) -> Runs:
        """Counts of the version that answers this name."""
        ...
