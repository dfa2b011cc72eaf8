"""What a learned version says of the campaign that it came of: which, and how boxes train what never leaves them."""

from typing import Any, Final

import msgspec

from hybrid.artifact.manifest import Manifest
from hybrid.federated.campaign import Training

ROUNDS_STEP: Final = "rounds"
"""How the lineage names what was learned; `rounds:CAMPAIGN` where the campaign is told."""


def rounds_step(campaign: str, base_digest: str, detail: str, training: Training | None) -> dict[str, Any]:
    """One step of the lineage, as the manifest's JSON has it.

    Args:
        campaign: its id; empty where it is not told.
        base_digest: artifact digest of what it began with.
        detail: rounds, boxes, epsilon; never who.
        training: of the boxes; told where layers stayed with them, so that others can fit such to this version.
    """
    step: dict[str, Any] = {
        "step": f"{ROUNDS_STEP}:{campaign}" if campaign else ROUNDS_STEP,
        "artifact_digest": base_digest,
        "detail": detail,
    }
    if training is not None and training.personal:
        step["training"] = msgspec.to_builtins(training)
    return step


def is_learned(manifest: Manifest) -> bool:
    """Whether a version was learned in rounds, and by no publisher since."""
    return bool(manifest.lineage) and manifest.lineage[-1].step.partition(":")[0] == ROUNDS_STEP


def learned_from(manifest: Manifest) -> frozenset[str]:
    """Artifact digests of the versions that one was learned from, the publisher's too; of a publisher's own none.

    `base` names the publisher's alone, also where a campaign began with what another one had learned.
    """
    found = {manifest.base}
    for step in reversed(manifest.lineage):
        if step.step.partition(":")[0] != ROUNDS_STEP:
            break
        found.add(step.artifact_digest)
    return frozenset(digest for digest in found if digest)


def campaign_of(manifest: Manifest) -> str:
    """The campaign that a version came of; empty for none."""
    return manifest.lineage[-1].step.partition(":")[2] if is_learned(manifest) else ""


def training_of(manifest: Manifest) -> Training | None:
    """How boxes fit layers of their own to a version; None where it says nothing of such, or nothing that is a plan."""
    said = manifest.lineage[-1].training if is_learned(manifest) else msgspec.UNSET
    try:
        found = None if said is msgspec.UNSET else msgspec.convert(said, Training)
    except (msgspec.MsgspecError, TypeError):
        return None
    return found if found is not None and found.personal else None
