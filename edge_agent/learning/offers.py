"""Which of the box's models could learn, and with how many samples: what the gateway is offered."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import numpy as np

from edge_agent.models.source import Answering
from edge_agent.models.version import ModelVersion
from hybrid.artifact.folder import open_folder
from hybrid.artifact.manifest import Manifest, Variant
from hybrid.errors import HybridError
from hybrid.federated.learning.labels import is_held_out
from hybrid.federated.learning.operators.call import INSTALL_TORCH
from hybrid.federated.learning.torch_needs import torch_operators
from hybrid.federated.lineage import learned_from
from hybrid.federated.messages import Offer, Terms

MOST_SAMPLES: Final = 20_000
FRESH_S: Final = 1.0
"""So long what was found is believed: steps of one task follow one another in milliseconds."""


Labelled = Callable[[str, int], Awaitable[Sequence[str]]]
"""Ids of so many labelled samples of a model at most, newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that answers here and has something that learns.

    Attributes:
        version: as it is installed.
        manifest: of it.
        variant: id of what answers.
    """

    version: ModelVersion
    manifest: Manifest
    variant: str

    def fits(self, terms: Terms) -> bool:
        """Whether a campaign is about exactly this, or about one that this one was learned from."""
        is_same = terms.artifact_digest in {self.version.artifact_digest, *learned_from(self.manifest)}
        return is_same and terms.model == self.version.name and terms.variant == self.variant


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """Labelled samples of a model: all, how many may be trained on, and when that was seen."""

    ids: Sequence[str]
    n_training: int
    at_s: float


class Offers:
    """Looks at what answers.

    Args:
        answering: which version answers which name.
        labelled: see `Labelled`.
        now_s: a clock that only runs forward.

    Attributes:
        why_none: why there is nothing to offer, in words.
        lacking: what models with something that learns lack here, in words; empty where nothing.
    """

    def __init__(
        self, answering: Answering, labelled: Labelled, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._answering, self._labelled = answering, labelled
        self._now_s = now_s
        self._manifests: dict[str, Manifest] = {}
        self._by_torch: dict[tuple[str, str], tuple[str, ...]] = {}
        self.lacking = ""
        self._seen: dict[str, _Seen] = {}
        self._n_changes = 0
        self._found: tuple[float, list[ModelVersion], Sequence[Candidate]] | None = None
        self.why_none = ""

    async def now(self) -> Sequence[Candidate]:
        """As `candidates`, without blocking; what was found within the last second stands while the same answers."""
        now_s, versions = self._now_s(), self._versions()
        if self._found is None or self._found[1] != versions or now_s - self._found[0] >= FRESH_S:
            self._found = (now_s, versions, await asyncio.to_thread(self.candidates))
        return self._found[2]

    def candidates(self) -> Sequence[Candidate]:
        """Models with something that learns; reads manifests that are new, which blocks for a file each."""
        found = []
        versions = self._versions()
        known = {one.artifact_digest for one in versions}
        self._manifests = {digest: one for digest, one in self._manifests.items() if digest in known}
        self._by_torch = {key: one for key, one in self._by_torch.items() if key[0] in known}
        lacking = ""
        for version in versions:
            manifest = self._manifest(version)
            variant = None if manifest is None else _variant(manifest, version)
            if manifest is not None and variant is not None and variant.trainable_files and variant.feature_tensor:
                operators = self._needs_torch(version, variant)
                if operators:
                    lacking = f"{version.name} needs torch to learn ({', '.join(operators)}): {INSTALL_TORCH}"
                    continue
                found.append(Candidate(version=version, manifest=manifest, variant=variant.id))
        self.lacking = lacking
        return found

    def named(self, terms: Terms) -> Candidate | None:
        """The model that a campaign is about; None where it does not answer here."""
        return next((one for one in self.candidates() if one.fits(terms)), None)

    async def look(self, candidates: Sequence[Candidate]) -> tuple[Offer, ...]:
        """What to offer now."""
        if not candidates:
            self.why_none = self.lacking or "no model on this box has a head that learns (`hybrid compress --head`)"
            return ()
        found = []
        for one in candidates:
            seen = await self._look(one.version.name)
            if seen.n_training:
                found.append(
                    Offer(
                        model=one.version.name,
                        artifact_digest=one.version.artifact_digest,
                        variant=one.variant,
                        n_samples=seen.n_training,
                    )
                )
        names = ", ".join(one.version.name for one in candidates)
        self.why_none = "" if found else f"there are no labelled samples of {names} on this box"
        return tuple(found)

    def in_use(self, candidate: Candidate) -> Mapping[str, np.ndarray]:
        """Personal layers that answer in place of the version's own, by tensor."""
        copy = self._answering.personal(candidate.version.name)
        return copy.tensors if copy is not None and copy.is_of(candidate.version) else {}

    async def samples(self, candidate: Candidate) -> Sequence[str]:
        """Ids of a model's labelled samples, newest first."""
        return (await self._look(candidate.version.name)).ids

    def relabelled(self) -> None:
        """There are other labelled samples than before."""
        self._n_changes += 1
        self._seen.clear()

    async def _look(self, model: str) -> "_Seen":
        """A model's samples, looked at within the last second."""
        now_s, seen, n_before = self._now_s(), self._seen.get(model), self._n_changes
        if seen is not None and now_s - seen.at_s < FRESH_S:
            return seen
        ids = await self._labelled(model, MOST_SAMPLES)
        n_training = await asyncio.to_thread(_n_training, ids)  # 40 ms of 20,000
        seen = _Seen(ids=ids, n_training=n_training, at_s=now_s)
        if self._n_changes == n_before:
            self._seen[model] = seen
        return seen

    def _versions(self) -> list[ModelVersion]:
        return [one for one in self._answering.versions() if one.folder is not None and one.artifact_digest]

    def _needs_torch(self, version: ModelVersion, variant: Variant) -> tuple[str, ...]:
        """Operators for which a model needs torch to learn, where none is here."""
        if version.folder is None or variant.engine != "onnxruntime" or find_spec("torch") is not None:
            return ()
        key = (version.artifact_digest, variant.id)
        if key not in self._by_torch:
            try:
                self._by_torch[key] = torch_operators(version.folder / variant.files[0], variant.feature_tensor or "")
            except (HybridError, OSError):  # it is being replaced
                return ()
        return self._by_torch[key]

    def _manifest(self, version: ModelVersion) -> Manifest | None:
        found = self._manifests.get(version.artifact_digest)
        if found is None and version.folder is not None:
            try:
                found = open_folder(version.folder).manifest
            except HybridError:  # it is being replaced
                return None
            self._manifests[version.artifact_digest] = found
        return found


def _n_training(ids: Sequence[str]) -> int:
    """How many of these samples may be trained on."""
    return sum(not is_held_out(one) for one in ids)


def _variant(manifest: Manifest, version: ModelVersion) -> Variant | None:
    if not version.variant:
        return manifest.variants[0]
    return next((one for one in manifest.variants if one.id == version.variant), None)
