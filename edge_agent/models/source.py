"""Which version answers which name: the model source of the agent."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from edge_agent.models.version import DEFAULT_PRIORITY, ModelVersion, PersonalCopy
from hybrid.artifact.folder import open_folder
from hybrid.artifact.splits import SplitFiles, splits_of
from hybrid.errors import HybridError, NotFound
from hybrid.serving.engines.served_model import ServedModel


class Answering:
    """The versions that answer; used from the event loop and, for looks, from threads.

    Who asks by name is answered with the name's personal copy, where there is one; who asks by digest (a device that
    computes a part itself, a gateway) with the version of that digest, as it was shipped.

    Attributes:
        on_change: told when another version answers a name, or none any more.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = _nobody
        self._versions: dict[str, ModelVersion] = {}
        self._copies: dict[str, PersonalCopy] = {}
        self._unwanted: set[str] = set()

    def put(self, version: ModelVersion) -> ModelVersion | None:
        """This version answers its name from now on; the one before, if there was one."""
        before, copy = self._versions.get(version.name), self._copies.get(version.name)
        self._versions = {**self._versions, version.name: version}
        if copy is not None and not copy.is_of(version):
            self.personalize(version.name, None)
        self.on_change()
        return before

    def remove(self, name: str) -> ModelVersion | None:
        """Nobody answers this name any more."""
        before = self._versions.get(name)
        self._versions = {known: version for known, version in self._versions.items() if known != name}
        self.personalize(name, None)
        self.on_change()
        return before

    def personalize(self, name: str, copy: PersonalCopy | None) -> None:
        """Answer a name with a copy from now on, or plainly; a copy of what does not answer is none."""
        version = self._versions.get(name)
        copies = {known: found for known, found in self._copies.items() if known != name}
        if copy is not None and version is not None and copy.is_of(version):
            copies[name] = copy
        self._copies = copies

    def personal(self, name: str) -> PersonalCopy | None:
        """What answers a name in its version's place; None where that does itself."""
        return self._copies.get(name)

    def is_plain(self, model_digest: str) -> bool:
        """Whether a name is answered with the model of that digest, as it was shipped."""
        return any(
            version.model_digest == model_digest and name not in self._copies
            for name, version in self._versions.items()
        )

    def copy_of(self, digest: str) -> PersonalCopy | None:
        """The copy that has this digest."""
        return next((copy for copy in self._copies.values() if copy.digest == digest), None)

    def named(self, name: str) -> ModelVersion | None:
        """The version that answers a name."""
        return self._versions.get(name)

    def of_digest(self, model_digest: str) -> ModelVersion | None:
        """The version with a model digest; of several the one of highest priority."""
        found = [version for version in self._versions.values() if version.model_digest == model_digest]
        return max(found, key=lambda version: version.priority, default=None)

    def splits(self, model_digest: str) -> tuple[SplitFiles, ...]:
        """The splits of all installed artifacts with that model; reads their manifests."""
        folders = {version.folder for version in self._versions.values() if version.model_digest == model_digest}
        found: dict[str, SplitFiles] = {}
        for folder in folders - {None}:
            assert folder is not None
            with suppress(HybridError):  # it is being replaced
                found |= {split.digest: split for split in splits_of(open_folder(folder))}
        return tuple(found.values())

    def priority(self, model_digest: str) -> int:
        """Of the model with that digest."""
        copy = self.copy_of(model_digest)
        version = self.of_digest(model_digest) if copy is None else self._versions.get(copy.version.name)
        return DEFAULT_PRIORITY if version is None else version.priority

    def versions(self) -> tuple[ModelVersion, ...]:
        """All that answer."""
        return tuple(self._versions.values())

    # -- ModelSource

    def find(self, name: str, version: str) -> ServedModel:
        """See `ModelSource`."""
        found = self._versions.get(name)
        if found is None or version not in ("", found.version):
            held = ", ".join(sorted(self._versions)) or "none"
            raise NotFound(f"no model {name!r} {version} is on this box; it has {held}")
        return served(found, self._copy(found))

    def find_digest(self, model_digest: str) -> ServedModel:
        """See `ModelSource`."""
        copy = self.copy_of(model_digest)
        if copy is not None:
            return served(copy.version, copy)
        found = self.of_digest(model_digest)
        if found is None:
            raise NotFound(f"no model with the digest {model_digest[:16]}… is on this box")
        return served(found)

    def models(self) -> Sequence[ServedModel]:
        """See `ModelSource`."""
        return [served(version, self._copy(version)) for version in self._versions.values()]

    def _copy(self, version: ModelVersion) -> PersonalCopy | None:
        """What answers in a version's place; threads may look while another version takes the name."""
        copy = self._copies.get(version.name)
        return copy if copy is not None and copy.is_of(version) else None

    def wanted(self, name: str) -> bool:
        """See `ModelSource`."""
        return name not in self._unwanted

    def want(self, name: str, *, loaded: bool) -> None:
        """See `ModelSource`; until the next start, for the assignment decides then."""
        self._unwanted.discard(name)
        if not loaded:
            self._unwanted.add(name)


def _nobody() -> None:
    """Nobody waits for models."""


def served(version: ModelVersion, copy: PersonalCopy | None = None) -> ServedModel:
    """The version, or its personal copy, as the serving floor sees it."""
    return ServedModel(
        name=version.name,
        version=version.version,
        model_digest=version.model_digest if copy is None else copy.digest,
        path=version.path,
        classes=version.classes,
        tensors={} if copy is None else copy.tensors,
    )
