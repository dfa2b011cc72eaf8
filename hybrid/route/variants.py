"""A local variant: the same model in a lighter form on this device, at a calibrated drop in accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.route.engine import EngineRun
from hybrid.schedule.prospect import Prospect


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalVariant:
    """A variant of the artifact that is open on this device.

    Attributes:
        run: the engine's run; same inputs and outputs as the model's.
        prospect: placement `local`, the variant's id, its profiled seconds and calibrated drop.
    """

    run: EngineRun
    prospect: Prospect


def fastest(variants: Sequence[LocalVariant], local_s: float | None, max_accuracy_drop: float) -> LocalVariant | None:
    """The variant that the device answers with: permitted, and faster than the model itself; None for the model."""
    permitted = [
        variant
        for variant in variants
        if variant.prospect.accuracy_drop is not None
        and variant.prospect.accuracy_drop <= max_accuracy_drop
        and variant.prospect.head_s is not None
        and (local_s is None or variant.prospect.head_s < local_s)
    ]
    return min(permitted, key=lambda variant: variant.prospect.head_s or 0.0, default=None)
