"""What campaigns lean on: the registries of models and boxes, alarms, rollouts, and whom boxes believe."""

from collections.abc import Callable
from dataclasses import dataclass

from cloud_gateway.blobs import BlobStore
from cloud_gateway.fleet.intake.blobs import BlobShelf
from cloud_gateway.fleet.steering.desired import BoxDirectory
from cloud_gateway.fleet.steering.steering import Steering
from cloud_gateway.rounds.origin import Library


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What rounds lean on.

    Attributes:
        library: the registry of models.
        boxes: the registry of boxes.
        blobs: what boxes brought in pieces.
        raise_alarm: takes a kind, a box or "", and a text; blocks.
        lift_alarm: takes a kind and a box of an alarm whose cause is over; blocks.
        files: of that registry; None where it takes none.
        steering: begins rollouts; None where there are none.
        is_delegated: whether boxes believe the key with that id in what rounds learn.
        root_sha256: fingerprint of the fleet's root; None for a fleet without.
    """

    library: Library
    boxes: BoxDirectory
    blobs: BlobShelf
    raise_alarm: Callable[[str, str, str], None]
    files: BlobStore | None = None
    steering: Steering | None = None
    is_delegated: Callable[[str], bool] = lambda _key_id: True
    lift_alarm: Callable[[str, str], None] = lambda _kind, _box_id: None
    root_sha256: Callable[[], bytes | None] = lambda: None
