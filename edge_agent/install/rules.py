"""Who may change a box's models: publishers; rounds within what may learn; never backwards without a publisher.

Design: a fleet without a root has no keys to ask (`trust` None): its boxes install what the gateway assigns. Where
there is a root, nothing unsigned is ever looked into: the signature comes before the manifest is parsed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec

from hybrid.artifact.manifest import Manifest, artifact_digest, parse
from hybrid.artifact.signature import Signature, verify
from hybrid.errors import CorruptContent, Forbidden, VersionReplayed
from hybrid.fleet.rollback import Rollback

_OWN_FIELDS: Final = ("version", "sequence", "base", "lineage", "model_digest", "files")
"""What a `rounds` key may change in a manifest; `model_digest` follows from `files`, which have a rule of their own."""


class TrustKeys(Protocol):
    """Whose signatures count, by the newest trust bundle."""

    def trusted(self, role: Literal["publisher", "rounds"], /) -> Mapping[str, bytes]:
        """Key id -> raw public key."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """A manifest's exact bytes, and who vouches for them."""

    manifest: bytes
    signature: Signature | None

    @property
    def digest(self) -> str:
        """The artifact digest."""
        return artifact_digest(self.manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What was installed here before, as far as it decides about the next.

    Attributes:
        sequence: the highest that was ever committed; -1 for none.
        own: artifact digests to which this box may always return: its last good version, and those in its slots.
        bases: papers of publishers' versions that it holds.
        brought: papers of bases of which nothing else is here, for what was learned from them.
        published: the sequence that those may not fall below: of the newest publisher's version committed here.
    """

    sequence: int = -1
    own: frozenset[str] = frozenset()
    bases: tuple[Papers, ...] = ()
    brought: tuple[Papers, ...] = ()
    published: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """A version that may be installed.

    Attributes:
        signed_by: id of the key that counts; empty without a root.
        base: papers of the publisher's version that it was learned from; None where a publisher signed it.
    """

    manifest: Manifest
    signed_by: str
    base: Papers | None = None


def permit(
    papers: Papers, wanted_digest: str, name: str, *, past: Past, trust: TrustKeys | None, rollback: Rollback | None
) -> Permit:
    """Let a version in.

    Raises:
        CorruptContent: the manifest is not the assigned one, or the signature does not fit it.
        Forbidden: not signed, or by a key that is not trusted, or a `rounds` key that changed more than it may; with
            the field `base` where only that is not here.
        VersionReplayed: an older version than this box has had, and no publisher's word for it.
        BadMessage: a manifest that does not parse.
    """
    if papers.digest != wanted_digest:
        raise CorruptContent(
            f"the manifest of {name} has digest {papers.digest[:16]}…, {wanted_digest[:16]}… is assigned"
        )
    signed_by = ""
    is_rounds = False
    if trust is not None:
        publishers, rounds = trust.trusted("publisher"), trust.trusted("rounds")
        is_rounds = papers.signature is not None and papers.signature.key_id not in publishers
        signed_by = verify(
            papers.manifest, papers.signature, rounds if is_rounds else publishers, what=f"version of {name}"
        )
    manifest, base = parse(papers.manifest), None
    if manifest.name != name:
        raise CorruptContent(f"the manifest assigned as {name} is of {manifest.name}")
    if trust is not None:
        if is_rounds:
            base = check_learned(papers, (*past.bases, *past.brought), trust)
            if base not in past.bases:
                _check_brought(base, past)
        _check_sequence(manifest, papers.digest, past, rollback)
    return Permit(manifest=manifest, signed_by=signed_by, base=base)


def is_believed(signed_by: str, trust: TrustKeys | None) -> bool:
    """Whether the key that vouched for an installed version still counts."""
    return trust is None or signed_by in trust.trusted("publisher") or signed_by in trust.trusted("rounds")


def check_learned(papers: Papers, bases: tuple[Papers, ...], trust: TrustKeys) -> Papers:
    """The base of a version of a `rounds` key that differs from it in nothing but what may learn.

    Raises:
        Forbidden: what differs, or that the base is not a publisher's, or not here (the field `base` is its digest).
    """
    learned = parse(papers.manifest)
    base = next((held for held in bases if held.digest == learned.base), None)
    if base is None:
        raise Forbidden(
            f"{learned.name}:{learned.version} is signed by a rounds key, and its base {str(learned.base)[:16]} is "
            f"not here; assign the publisher's base first, or import it",
            base=learned.base or "",
        )
    verify(base.manifest, base.signature, trust.trusted("publisher"), what=f"base of {learned.name}:{learned.version}")
    differing = _differing(papers.manifest, base.manifest)
    if differing:
        raise Forbidden(
            f"{learned.name}:{learned.version} is signed by a rounds key, which may not change {differing}; "
            f"let a publisher sign it"
        )
    return base


def _check_brought(base: Papers, past: Past) -> None:
    """A base that was never committed here may be no older than what was: else learning would lead backwards."""
    manifest = parse(base.manifest)
    if manifest.sequence < past.published:
        raise VersionReplayed(
            f"its base {manifest.name}:{manifest.version} has sequence {manifest.sequence}, and this box has had "
            f"{past.published} of a publisher; learn from the newer one",
            sequence=manifest.sequence,
            had=past.published,
        )


def _differing(learned_bytes: bytes, base_bytes: bytes) -> str:
    """What differs beyond what may; compared as the JSON that was signed, so that no unknown field slips through."""
    learned, base = _fields(learned_bytes), _fields(base_bytes)
    for field in sorted(learned.keys() | base.keys()):
        if field not in _OWN_FIELDS and (field not in learned or field not in base or learned[field] != base[field]):
            return f"the field {field!r}"
    manifest = parse(base_bytes)
    may = {name for variant in manifest.variants for name in variant.trainable_files}
    may |= set(manifest.golden.outputs.values() if manifest.golden is not None else ())
    may -= set(manifest.golden.inputs.values() if manifest.golden is not None else ())
    for name in sorted(learned["files"].keys() | base["files"].keys()):
        if name not in learned["files"] or name not in base["files"]:
            return f"the list of files ({name!r})"
        if name not in may and learned["files"][name] != base["files"][name]:
            return f"the file {name!r}"
    return ""


def _fields(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data, type=dict[str, Any])


def _check_sequence(manifest: Manifest, digest: str, past: Past, rollback: Rollback | None) -> None:
    if manifest.sequence >= past.sequence or digest in past.own:
        return
    if rollback is not None and rollback.allows(manifest.name, digest, past.sequence):
        return
    raise VersionReplayed(
        f"{manifest.name}:{manifest.version} has sequence {manifest.sequence}, and this box has had {past.sequence}; "
        f"only a publisher's signed rollback leads back",
        sequence=manifest.sequence,
        had=past.sequence,
    )
