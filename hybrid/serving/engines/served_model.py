"""A model as the serving floor sees it: which file it is, what goes in and what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from compression.tensor import TensorSpec

Tensors = Mapping[str, np.ndarray]
"""Values by the name of a model's initializer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of a model that a source holds.

    Attributes:
        name: the model's name in the repository.
        version: its version, a string such as "1".
        model_digest: SHA-256 of the model file and its external data (DESIGN §3), hexadecimal.
        path: the model file; its external data lie beside it.
        classes: labels of the classification output, empty where the artifact has none.
        tensors: in place of those that lie in files beside the model; `model_digest` then names the two together.
    """

    name: str
    version: str
    model_digest: str
    path: Path
    classes: tuple[str, ...] = ()
    tensors: Tensors = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSignature:
    """What an opened model takes and gives, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ModelSource(Protocol):
    """Where models come from: a registry, a folder, an agent's store."""

    def find(self, name: str, version: str) -> ServedModel:
        """The model of that name; version "" is the newest. Raises `NotFound`."""
        ...

    def find_digest(self, model_digest: str) -> ServedModel:
        """Any version with that model digest. Raises `NotFound`."""
        ...

    def models(self) -> Sequence[ServedModel]:
        """Every version held, oldest first within a name."""
        ...

    def wanted(self, name: str) -> bool:
        """Whether the model shall be loaded when the service starts."""
        ...

    def want(self, name: str, *, loaded: bool) -> None:
        """Remember whether the model shall be loaded after a restart."""
        ...
