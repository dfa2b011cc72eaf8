"""Profiles shared through a gateway: a new device begins with what machines of its class have measured.

Design: what others say is a prior. It ranks cuts before anything is timed here, never replaces a measurement, is taken
part by part as the median over those who measured (so that one who lies or was busy counts little), and is left out
where it contradicts itself or this machine.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final

from hybrid.artifact.attachments import attachment_of
from hybrid.errors import HybridError
from hybrid.profile.record import Profile, Setting, Timing, parse_profile, subject_of
from hybrid.profile.store import ProfileStore
from hybrid.transport.attachment_calls import find_attachments, put_attachment
from hybrid.transport.client import GatewayClient

_log = logging.getLogger("hybrid.profile")

MOST_RATIO: Final = 4.0
"""A prior whose whole model is so many times faster or slower than it is here is about another machine."""

_PART_RATIO: Final = 1.5
_PART_S: Final = 0.005
"""A head or tail cannot take longer than the whole model by more than this share and this much."""


def share(client: GatewayClient, profile: Profile) -> bool:
    """Brings this machine's own timings to a gateway that holds the model; blocks, never raises; whether it did."""
    own = own_timings(profile)
    if own.is_empty:
        return False
    try:
        put_attachment(client, attachment_of(own.content))
    except HybridError as exc:
        _log.info("profile.not_shared url=%s error=%s", client.url, exc.code)
        return False
    return True


def fetch_priors(
    client: GatewayClient, store: ProfileStore, model_digest: str, shape_key: str, setting: Setting
) -> bool:
    """Keeps what like machines measured, beside what is known here; blocks, never raises; whether there was any."""
    found = priors(client, model_digest, shape_key, setting)
    if found is None:
        return False
    fitting = fitted(found, store.own(model_digest, shape_key, setting))
    if fitting is None or fitting.is_empty:
        return False
    store.put_prior(fitting)
    return True


def priors(client: GatewayClient, model_digest: str, shape_key: str, setting: Setting) -> Profile | None:
    """What like machines measured, as one profile of priors; None where a gateway has nothing; blocks, never raises."""
    try:
        attachments = find_attachments(client, model_digest, "profile", subject=subject_of(shape_key, setting))
    except HybridError as exc:
        _log.info("profile.not_asked url=%s error=%s", client.url, exc.code)
        return None
    found = []
    for attachment in attachments:
        try:
            profile = parse_profile(attachment.content)
        except HybridError as exc:
            _log.warning("profile.refused url=%s reason=%s", client.url, exc)
            continue
        if (profile.model_digest, profile.shape_key, profile.setting) == (model_digest, shape_key, setting):
            found.append(own_timings(profile))
    return blended(found) if found else None


def own_timings(profile: Profile) -> Profile:
    """The profile without priors: only what its machine measured itself."""
    empty = Profile(model_digest=profile.model_digest, shape_key=profile.shape_key, setting=profile.setting)
    whole = profile.whole if profile.whole is not None and not profile.whole.is_prior else None
    return empty.with_timings(whole=whole, heads=_own(profile.heads), tails=_own(profile.tails))


def blended(profiles: Sequence[Profile]) -> Profile:
    """One profile of priors: for each part the median over those who measured it; contradicting parts are left out."""
    first = profiles[0]
    whole = _median([profile.whole for profile in profiles if profile.whole is not None])
    empty = Profile(model_digest=first.model_digest, shape_key=first.shape_key, setting=first.setting)
    return empty.with_timings(
        whole=whole,
        heads=_medians([profile.heads for profile in profiles], whole),
        tails=_medians([profile.tails for profile in profiles], whole),
    )


def fitted(prior: Profile, own: Profile) -> Profile | None:
    """A prior in this machine's seconds, by the whole model where both know it; None where it is about another one."""
    if own.whole is None or prior.whole is None:
        return prior
    ratio = own.whole.low_s / prior.whole.low_s
    if not 1 / MOST_RATIO <= ratio <= MOST_RATIO:
        _log.info("profile.not_alike model=%s ratio=%.2f", prior.model_digest[:16], ratio)
        return None
    empty = Profile(model_digest=prior.model_digest, shape_key=prior.shape_key, setting=prior.setting)
    return empty.with_timings(
        whole=_scaled(prior.whole, ratio),
        heads={cut_id: _scaled(timing, ratio) for cut_id, timing in prior.heads.items()},
        tails={cut_id: _scaled(timing, ratio) for cut_id, timing in prior.tails.items()},
    )


def _own(timings: Mapping[str, Timing]) -> dict[str, Timing]:
    return {cut_id: timing for cut_id, timing in timings.items() if not timing.is_prior}


def _medians(parts: Iterable[Mapping[str, Timing]], whole: Timing | None) -> dict[str, Timing]:
    gathered: dict[str, list[Timing]] = {}
    for timings in parts:
        for cut_id, timing in timings.items():
            gathered.setdefault(cut_id, []).append(timing)
    found = {cut_id: _median(timings) for cut_id, timings in gathered.items()}
    return {cut_id: timing for cut_id, timing in found.items() if timing is not None and _is_part(timing, whole)}


def _is_part(timing: Timing, whole: Timing | None) -> bool:
    return whole is None or timing.low_s <= _PART_RATIO * whole.median_s + _PART_S


def _median(timings: Sequence[Timing]) -> Timing | None:
    if not timings:
        return None
    low_s = median(timing.low_s for timing in timings)
    return Timing(
        median_s=max(low_s, median(timing.median_s for timing in timings)),
        low_s=low_s,
        spread_ratio=median(timing.spread_ratio for timing in timings),
        n_runs=min(timing.n_runs for timing in timings),
        is_prior=True,
    )


def _scaled(timing: Timing, ratio: float) -> Timing:
    return Timing(
        median_s=timing.median_s * ratio,
        low_s=timing.low_s * ratio,
        spread_ratio=timing.spread_ratio,
        n_runs=timing.n_runs,
        is_prior=True,
    )
