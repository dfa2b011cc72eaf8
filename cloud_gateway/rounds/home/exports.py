"""A step as it leaves the gateway to become a model file elsewhere: its weights in parts, and how they came to be."""

import asyncio
import hashlib
from typing import Final

from cloud_gateway.rounds.campaigns import Campaigns
from cloud_gateway.rounds.home.statements import statement_of
from cloud_gateway.rounds.kept.recovery import STEPS
from cloud_gateway.rounds.kept.steps import Steps
from cloud_gateway.rounds.kept.store import RoundStore
from cloud_gateway.rounds.messages import LearnedPart
from cloud_gateway.rounds.origin import Library
from hybrid.artifact.manifest import LineageStep, parse
from hybrid.errors import BadMessage, Conflict, NotFound
from hybrid.federated.lineage import ROUNDS_STEP

PART_BYTES: Final = 8 << 20
"""Of weights in one answer; in JSON a third more."""

EXPORT_STEP: Final = "export"
"""How the lineage names that a step left as a file: what follows is a publisher's own version."""


class Exports:
    """Gives steps out."""

    def __init__(self, library: Library, store: RoundStore, campaigns: Campaigns) -> None:
        self._library, self._store, self._campaigns = library, store, campaigns

    async def part(self, campaign: str, step: int | None, first: int) -> LearnedPart:
        """A part of a step's weights, from byte `first` on.

        Raises:
            NotFound: no such campaign or step, or its base is gone. Conflict: the campaign was lost.
            BadMessage: `first` lies behind the end.
        """
        return await asyncio.to_thread(self._part, campaign, step, first)

    def _part(self, campaign: str, step: int | None, first: int) -> LearnedPart:
        row = self._campaigns.row(campaign)
        if row.layout is None or row.state == "lost":
            raise Conflict(f"campaign {row.id} is {row.state}; nothing can come of it")
        step = row.step if step is None else step
        if not 1 <= step <= row.step:
            has = f"steps 1 to {row.step}, not {step}" if row.step else "made no step yet: no round of it has closed"
            raise NotFound(f"campaign {row.id} has {has}", advice=f"hybrid rounds show {row.id} tells how it stands.")
        weights = Steps(self._campaigns.folder(row.id) / STEPS, row.layout, row.order.coding).read(step).weights
        if not 0 <= first < len(weights):
            raise BadMessage(f"byte {first} of {len(weights)} was asked for")
        try:
            base = parse(self._library.manifest_bytes(row.base_digest))
        except FileNotFoundError as exc:
            raise NotFound(f"the base {row.base_digest[:16]}… is not on this gateway any more") from exc
        detail = statement_of(self._store, row, step, base.lineage).detail()
        learned = LineageStep(step=f"{ROUNDS_STEP}:{row.id}", artifact_digest=row.base_digest, detail=detail)
        left = LineageStep(step=EXPORT_STEP, detail=f"{row.order.model}:{row.order.version} step={step}")
        return LearnedPart(
            campaign=row.id,
            step=step,
            model=row.order.model,
            version=row.order.version,
            variant=row.order.variant,
            base_digest=row.base_digest,
            layout=row.layout,
            lineage=(*base.lineage, learned, left),
            sha256=hashlib.sha256(weights).hexdigest(),
            n_bytes=len(weights),
            first=first,
            content=weights[first : first + PART_BYTES],
        )
