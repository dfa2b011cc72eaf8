"""What is known of a model before anything is measured for it: profiles of this machine and like ones, calibrations.

Design: everything here is a help, nothing a need. A store that cannot be read, a gateway that keeps no attachments, a
calibration that nobody trusted signed: each only means that the scout measures more, or offers less.
"""

import logging
import os
from pathlib import Path
from time import monotonic
from typing import Final

from hybrid.calibration.permits import CalibrationFinder
from hybrid.graph.shape_key import ShapeKey
from hybrid.profile.exchange import MOST_RATIO, fetch_priors, share
from hybrid.profile.record import Profile, Setting, Timing
from hybrid.profile.store import ProfileStore
from hybrid.transport.client import GatewayClient

log = logging.getLogger("hybrid.session")

VARIABLE: Final = "HYBRID_SHARE_PROFILES"
"""`0` keeps this machine's timings to itself, and asks for nobody's."""

ASK_AGAIN_S: Final = 300.0
"""A gateway is asked again after so long whether it has newer calibrations."""


class Knowledge:
    """Used on the preparation thread only.

    Args:
        store: where profiles are kept.
        setting: what seconds measured by this session hold for.
        model_digest: digest of the model.
        model_path: the model's file, None where it has none of its own.
    """

    def __init__(self, store: ProfileStore, setting: Setting, model_digest: str, model_path: Path | None) -> None:
        self._store = store
        self._setting = setting
        self._model_digest = model_digest
        self._finder = CalibrationFinder(model_path, model_digest)
        self._finder.look()
        self._profiles: dict[str, Profile] = {}
        self._asked_s: dict[tuple[str, str], float] = {}
        self._shared: dict[tuple[str, str], int] = {}
        self._shares = os.environ.get(VARIABLE, "1") != "0"

    # -- what a gateway knows

    def ask(self, client: GatewayClient, shape_key: ShapeKey) -> bool:
        """Asks a gateway, now and then, for calibrations and, once, for profiles of like machines; blocks.

        Returns:
            Whether a lossy codec may be used that might not before.
        """
        place = (client.url, shape_key.text)
        last_s = self._asked_s.get(place)
        if last_s is not None and monotonic() - last_s < ASK_AGAIN_S:
            return False
        self._asked_s[place] = monotonic()
        if last_s is None and self._shares and not self._profile(shape_key).heads:
            fetch_priors(client, self._store, self._model_digest, shape_key.text, self._setting)
            self._profiles.pop(shape_key.text, None)
        return self._finder.ask(client, shape_key.text)

    def share(self, client: GatewayClient, shape_key: ShapeKey) -> None:
        """Brings what was measured here to a gateway, where it is more than it was brought before; blocks."""
        own = self._store.own(self._model_digest, shape_key.text, self._setting)
        place = (client.url, shape_key.text)
        if self._shares and own.n_timings > self._shared.get(place, 0) and share(client, own):
            self._shared[place] = own.n_timings

    # -- seconds

    def local_s(self, shape_key: ShapeKey) -> float | None:
        """Profiled seconds of the whole model, where this machine measured them."""
        whole = self._profile(shape_key).whole
        return whole.low_s if whole is not None and not whole.is_prior else None

    def own_head(self, shape_key: ShapeKey, cut_id: str) -> Timing | None:
        """A head's timing, where this machine measured it."""
        timing = self._profile(shape_key).heads.get(cut_id)
        return timing if timing is not None and not timing.is_prior else None

    def expected_head_s(self, shape_key: ShapeKey, cut_id: str, local_s: float | None) -> float | None:
        """What a head is expected to take: measured here, else by like machines in this machine's seconds."""
        profile = self._profile(shape_key)
        timing = profile.heads.get(cut_id)
        if timing is None or not timing.is_prior or profile.whole is None or local_s is None:
            return timing.low_s if timing is not None else None
        ratio = local_s / profile.whole.low_s
        return timing.low_s * min(MOST_RATIO, max(1 / MOST_RATIO, ratio))

    def note_head(self, shape_key: ShapeKey, cut_id: str, timing: Timing) -> None:
        """Keeps what was measured."""
        self._store.put(self._model_digest, shape_key.text, self._setting, heads={cut_id: timing})
        self._profiles.pop(shape_key.text, None)

    def note_local(self, shape_key: ShapeKey, timing: Timing) -> None:
        """Keeps what was measured, unless this machine's seconds are known."""
        if self.local_s(shape_key) is None:
            self._store.put(self._model_digest, shape_key.text, self._setting, whole=timing)
            self._profiles.pop(shape_key.text, None)

    def _profile(self, shape_key: ShapeKey) -> Profile:
        known = self._profiles.get(shape_key.text)
        if known is None:
            known = self._store.find(self._model_digest, shape_key.text, self._setting)
            self._profiles[shape_key.text] = known
        return known

    # -- codecs

    def codecs(self, shape_key: ShapeKey, cut_id: str) -> tuple[str, ...]:
        """The lossy codecs that a trusted calibration knows at a cut (empty: the input cut)."""
        return self._finder.codecs(shape_key.text, cut_id)

    def drop(self, shape_key: ShapeKey, cut_id: str, codec: str, split: str = "") -> float | None:
        """The accuracy drop to count with, None where nobody trusted says; `split` is the digest of a split's codec."""
        return self._finder.drop(shape_key.text, cut_id, codec, split)

    def bytes_ratio(self, shape_key: ShapeKey, cut_id: str, codec: str, split: str = "") -> float:
        """Encoded over raw bytes, as the calibration's samples had them; 1 where none says."""
        permit = self._finder.permit(shape_key.text, cut_id, codec, split)
        return permit.cell.n_bytes / permit.cell.raw_bytes if permit is not None and permit.cell.raw_bytes else 1.0
