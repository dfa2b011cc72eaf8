"""What steering a fleet leans on: the registry of boxes, the registry of models, alarms, the trust bundle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cloud_gateway.fleet.steering.desired import BoxDirectory


class Versions(Protocol):
    """The registry of models."""

    def resolve(self, name: str, version: str | None = None) -> "VersionView":
        """A version, the newest without one. Raises `NotFound`."""
        ...


class VersionView(Protocol):
    """What is asked of a version."""

    @property
    def version(self) -> str:
        """Its word."""
        ...

    @property
    def artifact_digest(self) -> str:
        """What names its bytes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What steering leans on.

    Attributes:
        boxes: the registry of boxes.
        versions: the registry of models.
        raise_alarm: takes a kind, a box or "", and a text; blocks.
        trust: sequence and signed bytes of the newest trust bundle, None where the fleet has no root.
    """

    boxes: BoxDirectory
    versions: Versions
    raise_alarm: Callable[[str, str, str], None]
    trust: Callable[[], tuple[int, bytes] | None]
