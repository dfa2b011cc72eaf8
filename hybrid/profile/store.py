"""Profiles kept in the user's cache: found by what they hold for, added to by many processes at once.

Design: one small file a (model, shape key, setting), written whole and renamed into place, so that a reader never sees
half of one. Whatever cannot be read is no profile: it is measured anew. What came from other machines lies in a file of
its own beside it, so that own measurements and hearsay never mix on the disk.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hybrid.artifact.durable import try_lock, write_atomically
from hybrid.artifact.plain_file import read_plain
from hybrid.errors import HybridError
from hybrid.profile.record import MAX_PROFILE_BYTES, Profile, Setting, Timing, parse_profile, subject_of

_log = logging.getLogger("hybrid.profile")

_LOCK_PATIENCE_S: Final = 1.0
_LOCK_PAUSE_S: Final = 0.005
_MAX_FILES: Final = 256
"""Profiles of one model that are kept; the ones written longest ago leave."""


class ProfileStore:
    """Profiles below one folder; every method may be called from any thread and any process, and none raises.

    Args:
        folder: usually `cache_dir() / "profiles"`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model_digest: str, shape_key: str, setting: Setting) -> Profile:
        """What is known for exactly this; own timings before those of like machines; empty where nothing is known."""
        own = self.own(model_digest, shape_key, setting)
        shared = self._read(model_digest, shape_key, setting, is_shared=True)
        return shared.with_timings(whole=own.whole, heads=own.heads, tails=own.tails) if not shared.is_empty else own

    def own(self, model_digest: str, shape_key: str, setting: Setting) -> Profile:
        """Only what was measured on this machine."""
        return self._read(model_digest, shape_key, setting, is_shared=False)

    def put(
        self,
        model_digest: str,
        shape_key: str,
        setting: Setting,
        *,
        whole: Timing | None = None,
        heads: Mapping[str, Timing] = {},
        tails: Mapping[str, Timing] = {},
    ) -> None:
        """Adds own measurements; newer ones replace older ones. Unsound timings and priors are left out."""
        heads = {cut_id: timing for cut_id, timing in heads.items() if _is_own(timing)}
        tails = {cut_id: timing for cut_id, timing in tails.items() if _is_own(timing)}
        whole = whole if whole is not None and _is_own(whole) else None
        if whole is None and not heads and not tails:
            return
        try:
            with self._exclusive(model_digest):
                known = self.own(model_digest, shape_key, setting)
                self._write(known.with_timings(whole=whole, heads=heads, tails=tails), is_shared=False)
        except (HybridError, OSError) as exc:
            _log.warning("profile.not_kept model=%s error=%s", model_digest[:16], exc)

    def put_prior(self, profile: Profile) -> None:
        """Keeps what like machines measured, in place of what was kept of them before."""
        try:
            self._write(profile, is_shared=True)
        except (HybridError, OSError) as exc:
            _log.warning("profile.not_kept model=%s error=%s", profile.model_digest[:16], exc)

    def forget(self, model_digest: str, shape_key: str, setting: Setting) -> None:
        """Removes what is known for this, so that it is measured anew."""
        for is_shared in (False, True):
            with suppress(OSError):
                self.path(model_digest, shape_key, setting, is_shared=is_shared).unlink()

    def path(self, model_digest: str, shape_key: str, setting: Setting, *, is_shared: bool = False) -> Path:
        """The file of a profile."""
        suffix = ".shared.json" if is_shared else ".json"
        return self._folder / model_digest[:16] / (subject_of(shape_key, setting) + suffix)

    def _read(self, model_digest: str, shape_key: str, setting: Setting, *, is_shared: bool) -> Profile:
        empty = Profile(model_digest=model_digest, shape_key=shape_key, setting=setting)
        path = self.path(model_digest, shape_key, setting, is_shared=is_shared)
        try:
            found = parse_profile(read_plain(path, MAX_PROFILE_BYTES))
        except FileNotFoundError:
            return empty
        except (HybridError, OSError) as exc:
            _log.warning("profile.unreadable path=%s error=%s", path, exc)
            return empty
        is_it = (found.model_digest, found.shape_key, found.setting) == (model_digest, shape_key, setting)
        return found if is_it else empty

    def _write(self, profile: Profile, *, is_shared: bool) -> None:
        path = self.path(profile.model_digest, profile.shape_key, profile.setting, is_shared=is_shared)
        write_atomically(path, profile.content)
        files = sorted(path.parent.glob("*.json"), key=_age_s)
        for old in files[: max(0, len(files) - _MAX_FILES)]:
            old.unlink(missing_ok=True)

    @contextmanager
    def _exclusive(self, model_digest: str) -> Iterator[None]:
        """Alone among those who add to this model's profiles; who waited too long goes on, and may lose a timing."""
        folder = self._folder / model_digest[:16]
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            patient_until_s = time.monotonic() + _LOCK_PATIENCE_S
            while not try_lock(handle) and time.monotonic() < patient_until_s:
                time.sleep(_LOCK_PAUSE_S)
            yield
        finally:
            os.close(handle)


def _is_own(timing: Timing) -> bool:
    return timing.is_sound and not timing.is_prior


def _age_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
