"""A profile: measured seconds of a model's heads and tails, and exactly what they hold for."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec
import numpy as np

from hybrid.artifact.paper import parse_paper
from hybrid.errors import BadMessage

SCHEMA: Final = 1
MAX_PROFILE_BYTES: Final = 64 << 10
MAX_TIMINGS: Final = 512
LONGEST_S: Final = 3600.0
"""A part that is said to take longer is nonsense: nobody waits an hour for an inference."""

SHORTEST_S: Final = 1e-7
_HELD_RATIO: Final = 2.0
"""A run that takes so many times the fastest one was held up."""

_COSTLY_RATIO: Final = 1.2
"""Holds that cost less than this all together are what the machine did besides."""

_MAX_SPREAD_RATIO: Final = 100.0
_MAX_RUNS: Final = 1 << 20
_MAX_TEXT: Final = 300


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds of one part, from several runs after a warm-up.

    Attributes:
        median_s: the median.
        low_s: the lower quartile: service time with little of what else the machine did; where runs were held up again
            and again, seconds of one run among others that follow one another. Planners take this one and learn the
            rest as the running ratio of measured to profiled.
        spread_ratio: half the distance between the quartiles, over the median.
        n_runs: how many runs.
        is_held: a quota of processor time held runs up again and again.
        is_prior: measured on another machine of the same class; own measurements replace it.
    """

    median_s: float
    low_s: float
    spread_ratio: float = 0.0
    n_runs: int = 1
    is_held: bool = False
    is_prior: bool = False

    @classmethod
    def of(cls, seconds: Sequence[float], *, has_quota: bool = False) -> "Timing":
        """The timing of these runs (at least one).

        Args:
            seconds: in the order in which the runs followed one another.
            has_quota: a quota of processor time binds this process, so that runs may be held up again and again.
        """
        # Of few runs the fastest one counts, not a mean of it and of one that was disturbed.
        low_s = float(np.quantile(seconds, 0.25, method="lower"))
        median_s, high_s = float(np.median(seconds)), float(np.quantile(seconds, 0.75, method="higher"))
        sustained_s = _sustained_s(seconds) if has_quota else None
        if sustained_s is not None:
            low_s, median_s = sustained_s, max(median_s, sustained_s)
        spread_ratio = (high_s - low_s) / (2 * median_s) if median_s else 0.0
        return cls(
            median_s=median_s,
            low_s=low_s,
            spread_ratio=max(0.0, spread_ratio),
            n_runs=len(seconds),
            is_held=sustained_s is not None,
        )

    @property
    def is_sound(self) -> bool:
        """Whether these are seconds that a machine could take."""
        return (
            SHORTEST_S <= self.low_s <= self.median_s <= LONGEST_S
            and 0 <= self.spread_ratio <= _MAX_SPREAD_RATIO
            and 1 <= self.n_runs <= _MAX_RUNS
        )


def _sustained_s(seconds: Sequence[float]) -> float | None:
    """Seconds a run where they follow one another and some are held up again and again; None where that is not so.

    A quota of processor time lets the first milliseconds of each of its periods run free and then stops everything, so
    that runs come in two kinds and neither tells what a run takes. From the end of one that was held up to the end of
    another, the share of all periods was used up and no more: the mean between the first and the last is right. A run
    that something else disturbed now and then is no such thing: the holds must be most of the runs, or be in the
    beginning, the middle and the end. (On a machine that others load, runs look alike: only a quota tells these apart.)
    """
    n, free_s = len(seconds), min(seconds)
    held = [at for at, taken_s in enumerate(seconds) if taken_s > _HELD_RATIO * free_s]
    is_everywhere = {3 * at // n for at in held} == {0, 1, 2}
    if len(held) < 2 or not (is_everywhere or 2 * len(held) > n):
        return None
    sustained_s = float(np.mean(seconds[held[0] + 1 : held[-1] + 1]))
    return sustained_s if sustained_s > _COSTLY_RATIO * free_s else None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What measured seconds hold for. A change in any of these makes another profile.

    Attributes:
        engine: name and version, and options that change its kernels.
        provider: execution providers in their order, joined with `+`.
        n_threads: threads inside one run; 0 is the engine's own choice.
        machine: class of the machine: see `devices.machine.machine_class`. No host name: like machines share profiles.
    """

    engine: str
    provider: str
    n_threads: int
    machine: str

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 over the canonical JSON of these fields."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one (model digest, shape key, setting); an attachment of kind `profile`.

    Attributes:
        shape_key: canonical text of the input shapes.
        whole: the whole model.
        heads: heads by cut id.
        tails: tails by cut id.
        made_s: seconds since 1970 when it was last added to.
    """

    model_digest: str
    shape_key: str
    setting: Setting
    kind: Literal["profile"] = "profile"
    schema: int = SCHEMA
    variant: str = "original"
    whole: Timing | None = None
    heads: dict[str, Timing] = {}
    tails: dict[str, Timing] = {}
    made_s: float = 0.0

    @property
    def subject(self) -> str:
        """What it is about beside model and variant, as a gateway files it: shape key and setting."""
        return subject_of(self.shape_key, self.setting)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is timed."""
        return self.whole is None and not self.heads and not self.tails

    @property
    def n_timings(self) -> int:
        """How many parts are timed."""
        return len(self.heads) + len(self.tails) + (self.whole is not None)

    @property
    def content(self) -> bytes:
        """Its exact JSON, as it is kept and sent."""
        return msgspec.json.encode(self, order="sorted")

    def with_timings(
        self, *, whole: Timing | None = None, heads: Mapping[str, Timing] = {}, tails: Mapping[str, Timing] = {}
    ) -> "Profile":
        """This profile with further timings; newer ones replace older ones, a prior replaces no own measurement."""
        return msgspec.structs.replace(
            self,
            whole=_better(self.whole, whole),
            heads=_merged(self.heads, heads),
            tails=_merged(self.tails, tails),
            made_s=time.time(),
        )


def subject_of(shape_key: str, setting: Setting) -> str:
    """`SHAPEID.SETTINGID`: 16 hex digits each."""
    return f"{shape_id(shape_key)}.{setting.id}"


def shape_id(shape_key: str) -> str:
    """The id of a shape key's canonical text: first 16 hex digits of its SHA-256."""
    return hashlib.sha256(shape_key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def parse_profile(content: bytes) -> Profile:
    """The profile that these bytes say, every number checked.

    Raises:
        BadMessage: no profile of this schema, or seconds that no machine takes.
        TooLarge: more than 64 KiB.
    """
    profile = parse_paper(content, Profile, "profile", schema=SCHEMA, most_bytes=MAX_PROFILE_BYTES)
    setting = profile.setting
    texts = (setting.engine, setting.provider, setting.machine)
    if any(not 0 < len(text) <= _MAX_TEXT for text in texts) or not 0 <= setting.n_threads <= 4096:
        raise BadMessage("the profile's engine, provider and machine must be named in at most 300 characters each")
    if profile.n_timings > MAX_TIMINGS or not all(_is_cut_id(cut) for cut in (*profile.heads, *profile.tails)):
        raise BadMessage(f"the profile names more than {MAX_TIMINGS} parts, or one that is no cut id")
    timings = (*profile.heads.values(), *profile.tails.values(), *([profile.whole] if profile.whole else []))
    wrong = next((timing for timing in timings if not timing.is_sound), None)
    if wrong is not None:
        raise BadMessage(
            f"the profile holds a part of {wrong.low_s:g} to {wrong.median_s:g} s (spread {wrong.spread_ratio:g}); "
            f"seconds from {SHORTEST_S:g} to {LONGEST_S:g} are wanted"
        )
    return profile


def _is_cut_id(text: str) -> bool:
    return len(text) == 16 and all(digit in "0123456789abcdef" for digit in text)


def _merged(known: Mapping[str, Timing], added: Mapping[str, Timing]) -> dict[str, Timing]:
    merged = dict(known)
    for cut_id, timing in added.items():
        better = _better(merged.get(cut_id), timing)
        if better is not None:
            merged[cut_id] = better
    return merged


def _better(known: Timing | None, added: Timing | None) -> Timing | None:
    if added is None or (known is not None and added.is_prior and not known.is_prior):
        return known
    return added
