"""The splits that the model's artifact declares: which of them could be used for some shapes, through some gateway."""

import logging
from pathlib import Path

from hybrid.artifact.splits import PREFIX, SplitFiles, splits_of
from hybrid.calibration.permits import artifact_of
from hybrid.errors import UnknownCut
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.route.holding import Holding
from hybrid.schedule.options import Options

log = logging.getLogger("hybrid.session")


def splits_beside(model_path: Path | None, model_digest: str) -> tuple[SplitFiles, ...]:
    """The splits of the artifact that a model lies in; none where it lies in none that counts."""
    artifact = artifact_of(model_path) if model_path is not None else None
    if artifact is None or artifact.manifest.model_digest != model_digest:
        return ()
    return splits_of(artifact)


class Splits:
    """The splits of one session; used on the preparation thread only.

    Args:
        splits: of the model's artifact.
        options: the session's.
    """

    def __init__(self, splits: tuple[SplitFiles, ...], options: Options) -> None:
        wanted = options.codec if options.codec.startswith(PREFIX) else ""
        may_split = options.kind in ("auto", "split") and (wanted or options.codec == "auto")
        self._splits = [
            split
            for split in splits
            if may_split and wanted in ("", split.codec) and options.forced_cut in ("", split.cut)
        ]

    def at(self, prepared: Prepared | None, holding: Holding) -> list[tuple[Cut, SplitFiles]]:
        """The splits that both this device and a gateway have for the shapes of a graph, each with its cut."""
        if prepared is None:
            return []
        here = [split for split in self._splits if split.shape_key == prepared.shape_key.text]
        found = [(self._cut(prepared, split), split) for split in here if _is_held(holding, split)]
        return [(cut, split) for cut, split in found if cut is not None and cut.id in holding.tails]

    def _cut(self, prepared: Prepared, split: SplitFiles) -> Cut | None:
        try:
            cut = prepared.table.get(split.cut)
        except UnknownCut:
            log.info("split.unusable id=%s reason=this model has no cut %s here", split.id, split.cut)
            return None
        return cut if cut.kind == "interior" else None


def _is_held(holding: Holding, split: SplitFiles) -> bool:
    """Whether the gateway decodes what this split sends."""
    return split.digest in holding.splits if split.is_learned else split.carrier in {"none", *holding.codecs}
