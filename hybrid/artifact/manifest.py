"""The manifest: what an artifact says about itself, parsed strictly and never written again."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import msgspec

from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.names import check_digest, check_distinct, check_relative, check_word
from hybrid.errors import BadMessage, TooLarge

SCHEMA: Final = 1
LATEST: Final = "latest"
"""What stands for the newest version where one is asked for; no version may be called so."""
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FILES: Final = 4096
MAX_VARIANTS: Final = 64
MAX_SPLITS: Final = 64
_MAX_INTEGER: Final = 1 << 53
_NULL: Final = msgspec.Raw(b"null")


ScoreKind = Literal["logits", "probabilities"]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file: SHA-256 in hex, size in bytes."""

    sha256: str
    size: int


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the model; the first of `files` is what the engine opens."""

    id: str
    engine: str
    precision: str
    files: tuple[str, ...]
    requires: dict[str, str] = {}
    feature_tensor: str | None = None
    trainable_files: tuple[str, ...] = ()


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs and the outputs they must give: {tensor: path of an .npy file}; tolerance {engine: max relative error}."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    tolerance: dict[str, float]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a cascade gave on samples that neither model was trained on; ratios from 0 to 1.

    `drop` is the accuracy lost against the large model alone, with its 95 % interval; `calibration_error` says how far
    the small model's confidence lies from its share of right answers.
    """

    n: int
    small_accuracy: float
    large_accuracy: float
    accuracy: float
    drop: float
    drop_low: float
    drop_high: float
    escalated_ratio: float
    calibration_error: float


class CascadeRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a small variant's answer stands in for the shipped (large) model's; see docs/cascade.md.

    Attributes:
        small: id of the variant that answers first; inputs and outputs are the shipped model's.
        output: the output whose scores, one row a sample, say how sure it is.
        kind: what these scores are.
        temperature: what they are divided by before the softmax.
        threshold: the least confidence at which its answer stands; 1 is never.
        max_accuracy_drop: what the threshold was chosen for.
        measured: what it gave.
    """

    small: str
    output: str
    kind: ScoreKind
    temperature: float
    threshold: float
    max_accuracy_drop: float
    measured: Measured | None = None


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """What runs on both sides of one cut in place of the cut's own parts; see docs/compress.md.

    Attributes:
        id: unique in the manifest; the codec that it makes is called `split:ID`.
        cut: id of the cut.
        shape_key: text of the shape key that it is for.
        head: ONNX from the model's inputs to the crossing tensors; None keeps the cut's own head.
        encoder: ONNX from the crossing tensor, float32, to `latent`, int8; with a decoder and a prior, or not at all.
        decoder: ONNX from `latent` to the crossing tensor.
        prior: tables of the entropy coder, JSON.
        files: all of the above.
        carrier: codec of what crosses where there is no encoder.
    """

    id: str
    cut: str
    shape_key: str
    files: tuple[str, ...]
    head: str | None = None
    encoder: str | None = None
    decoder: str | None = None
    prior: str | None = None
    carrier: str = "lossless"


class LineageStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of how the model came to be; `training`: see `hybrid.federated.lineage`."""

    step: str
    artifact_digest: str | None = None
    detail: str = ""
    training: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `manifest.json`; see docs/artifact.md. `pre` and `post` are the JSON as it came."""

    schema: int
    name: str
    version: str
    sequence: int
    model_digest: str
    files: dict[str, FileEntry]
    variants: tuple[Variant, ...]
    base: str | None = None
    classes: tuple[str, ...] | None = None
    pre: msgspec.Raw = _NULL
    post: msgspec.Raw = _NULL
    golden: Golden | None = None
    lineage: tuple[LineageStep, ...] = ()
    cascade: CascadeRule | msgspec.UnsetType = msgspec.UNSET
    splits: tuple[Split, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def model_file(self) -> str:
        """Path, inside the artifact, of the shipped model."""
        return self.variants[0].files[0]

    @property
    def model_files(self) -> tuple[HashedFile, ...]:
        """The shipped model and its external data, named relative to the model's folder."""
        return variant_files(self, self.variants[0])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def parse(data: bytes) -> Manifest:
    """The manifest that these bytes say, all cross references checked.

    Raises:
        BadMessage: not JSON of this schema, or it contradicts itself.
        TooLarge: more than 1 MiB.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise TooLarge(f"the manifest has {len(data)} bytes where {MAX_MANIFEST_BYTES} are allowed")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise BadMessage(f"the manifest does not follow schema {SCHEMA}: {exc}") from exc
    _check(manifest)
    return manifest


def canonical_bytes(manifest: Manifest) -> bytes:
    """The form in which this library writes a new manifest: sorted keys, no spaces, UTF-8."""
    _check(manifest)
    return msgspec.json.encode(manifest, order="sorted")


def artifact_digest(data: bytes) -> str:
    """SHA-256 of a manifest's exact bytes."""
    return hashlib.sha256(data).hexdigest()


def variant_files(manifest: Manifest, variant: Variant) -> tuple[HashedFile, ...]:
    """The files of a variant, named relative to the folder of the one that its engine opens.

    Raises:
        BadMessage: a file lies outside that folder.
    """
    folder = PurePosixPath(variant.files[0]).parent
    try:
        return tuple(
            HashedFile(
                name=PurePosixPath(name).relative_to(folder).as_posix(),
                size=manifest.files[name].size,
                sha256=manifest.files[name].sha256,
            )
            for name in variant.files
        )
    except ValueError as exc:
        raise BadMessage(f"variant {variant.id!r} has a file outside the folder of {variant.files[0]!r}") from exc


def _check(manifest: Manifest) -> None:
    if manifest.schema != SCHEMA:
        raise BadMessage(f"the manifest is of schema {manifest.schema}, this version reads {SCHEMA}; upgrade hybrid")
    check_word(manifest.name)
    check_word(manifest.version, "version")
    if manifest.version == LATEST:
        raise BadMessage(f"version {LATEST!r} is refused: it stands for the newest one; choose another version")
    if not 0 <= manifest.sequence < _MAX_INTEGER:
        raise BadMessage(f"sequence {manifest.sequence} is refused: 0 to 2^53 - 1 is wanted")
    check_digest(manifest.model_digest)
    if manifest.base is not None:
        check_digest(manifest.base)
    if any(bytes(raw).lstrip()[:1] not in (b"{", b"n") for raw in (manifest.pre, manifest.post)):
        raise BadMessage("pre and post must each be an object or null")
    _check_files(manifest)
    _check_variants(manifest)
    _check_golden(manifest)
    _check_cascade(manifest)
    _check_splits(manifest)


def _check_splits(manifest: Manifest) -> None:
    splits = () if manifest.splits is msgspec.UNSET else manifest.splits
    if len(splits) > MAX_SPLITS or len({split.id for split in splits}) != len(splits):
        raise BadMessage(f"{len(splits)} splits: at most {MAX_SPLITS} with different ids are wanted")
    for split in splits:
        check_word(split.id, "split id")
        _check_listed(manifest, split.files, f"split {split.id!r}")
        coder = (split.encoder, split.decoder, split.prior)
        named = [name for name in (split.head, *coder) if name is not None]
        if set(named) != set(split.files) or len(named) != len(split.files) or not named:
            raise BadMessage(f"split {split.id!r}: files must be its head, encoder, decoder and prior, each once")
        if any(coder) and not all(coder):
            raise BadMessage(f"split {split.id!r}: encoder, decoder and prior belong together")
        check_word(split.carrier, "carrier")


def _check_cascade(manifest: Manifest) -> None:
    rule = manifest.cascade
    if rule is msgspec.UNSET:
        return
    if rule.small not in {variant.id for variant in manifest.variants[1:]}:
        raise BadMessage(f"cascade: small is {rule.small!r}; a variant beside the shipped one is wanted")
    if not 0.0 < rule.temperature < 1e6 or not 0.0 <= rule.threshold <= 1.0:
        raise BadMessage("cascade: a temperature above 0 and a threshold from 0 to 1 are wanted")


def _check_files(manifest: Manifest) -> None:
    if not 1 <= len(manifest.files) <= MAX_FILES:
        raise BadMessage(f"the manifest lists {len(manifest.files)} files where 1 to {MAX_FILES} are allowed")
    for name, entry in manifest.files.items():
        check_relative(name)
        check_digest(entry.sha256)
        if not 0 <= entry.size < _MAX_INTEGER:
            raise BadMessage(f"file {name!r} is said to have {entry.size} bytes")
    check_distinct(manifest.files)


def _check_variants(manifest: Manifest) -> None:
    variants = manifest.variants
    if not 1 <= len(variants) <= MAX_VARIANTS or len({variant.id for variant in variants}) != len(variants):
        raise BadMessage(f"{len(variants)} variants: 1 to {MAX_VARIANTS} with different ids are wanted")
    for variant in variants:
        check_word(variant.id, "variant id")
        _check_listed(manifest, variant.files, f"variant {variant.id!r}")
        if not variant.files or len(set(variant.files)) != len(variant.files):
            raise BadMessage(f"variant {variant.id!r} must list its files, each once")
        if not set(variant.trainable_files) <= set(variant.files):
            raise BadMessage(f"variant {variant.id!r}: trainable_files must be among its files")
        variant_files(manifest, variant)
    seen = digest_of_files(manifest.model_files)
    if seen != manifest.model_digest:
        raise BadMessage(f"model_digest is {manifest.model_digest}, but the first variant's files make {seen}")


def _check_golden(manifest: Manifest) -> None:
    if manifest.golden is not None:
        _check_listed(manifest, manifest.golden.inputs.values(), "golden inputs")
        _check_listed(manifest, manifest.golden.outputs.values(), "golden outputs")


def _check_listed(manifest: Manifest, names: Iterable[str], what: str) -> None:
    missing = [name for name in names if name not in manifest.files]
    if missing:
        raise BadMessage(f"{what} names {missing[0]!r}, which the manifest's files do not list")
