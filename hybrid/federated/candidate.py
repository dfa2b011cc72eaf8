"""What was learned comes home: the trainable files of a new version, its golden outputs and its manifest.

Design: the base's manifest is edited as the JSON that it is, so that fields which this library does not know stay;
only what a `rounds` key may change is touched (edge_agent/install/rules.py). The engine takes the new head in memory,
so no body is copied. Golden outputs are those of the first variant. A variant whose trainable files were the very bytes
of the learned one's goes on sharing them; any other keeps its own. Signing and storing are the gateway's.
"""

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
import numpy as np

from devices.errors import DeviceError, OperatorUnsupported
from devices.onnx_engine import open_session
from devices.tflite_magic import is_headed, is_tflite
from hybrid.artifact.digest import digest_of_files
from hybrid.artifact.folder import Artifact
from hybrid.artifact.golden_files import npy
from hybrid.artifact.manifest import CascadeRule, FileEntry, Manifest, Variant, artifact_digest, parse, variant_files
from hybrid.errors import BadMessage, EngineFailed, GoldenDiffers, ModelInvalid, ModelUnsupported, TrainingDiverged
from hybrid.federated.campaign import Training
from hybrid.federated.learning.head import full_arrays, open_head, variant_of
from hybrid.federated.learning.program import Arrays
from hybrid.federated.lineage import is_learned, rounds_step

DEFAULT_TOLERANCE: Final = 1e-4
"""Of an output's largest value, where the manifest names none for the engine; as boxes have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version that was learned, not yet signed.

    Attributes:
        manifest: what it says.
        manifest_bytes: its exact bytes, to be signed.
        files: contents of the files that are not the base's, by path; all others are the base's, byte for byte.
        sharing: ids of the variants whose head this is, the learned one first.
        unmatched: ids of variants that do not give the golden outputs, since they keep their own head or never did:
            boxes that can run nothing else refuse this version and stay with the one that they have.
        unchecked: ids of variants that no engine here runs.
    """

    manifest: Manifest
    manifest_bytes: bytes
    files: Mapping[str, bytes]
    sharing: tuple[str, ...]
    unmatched: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The artifact digest."""
        return artifact_digest(self.manifest_bytes)


def candidate(
    base: Artifact,
    variant_id: str,
    learned: Arrays,
    *,
    version: str,
    sequence: int,
    campaign: str = "",
    detail: str = "",
    training: Training | None = None,
) -> Candidate:
    """The version of a base whose variant has learned; takes as long as its engine opens and runs once a variant.

    Args:
        base: the publisher's version, or one that was learned from it.
        variant_id: of the variant that learned.
        learned: its tensors by name; personal ones, which never left, stay as the base has them.
        version: of the new one.
        sequence: of the new one; higher than all that its boxes have.
        campaign, detail, training: for the lineage, see `rounds_step`.

    Raises:
        NotFound, ModelUntrainable, ModelInvalid: the variant is none that learns, or its files are not what they say.
        TensorMismatch: tensors that the head has not.
        TrainingDiverged: they are not finite.
        ModelUnsupported: the first variant learned too, and its engine is not here.
        GoldenDiffers: the learned variant gave the golden outputs, and no longer does: they are the first variant's,
            which keeps its own head.
        EngineFailed: the engine does not run the golden inputs.
        BadMessage: a version or sequence that cannot be.
    """
    head = open_head(base.folder, base.manifest, variant_id)
    arrays = full_arrays(head, learned)
    packed = head.packed(arrays)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise TrainingDiverged("the learned head holds numbers that are not finite; no version is made of it")
    files, sharing = _spread(base.manifest, variant_of(base.manifest, variant_id), packed)
    golden = _Golden(base, files, variant_id)
    golden.renew()
    files |= golden.files
    fields: dict[str, Any] = msgspec.json.decode(base.manifest_bytes)
    fields |= {"version": version, "sequence": sequence, "base": publisher_base(base)}
    for name, content in files.items():
        fields["files"][name] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    fields["lineage"] = [*fields.get("lineage", []), rounds_step(campaign, base.digest, detail, training)]
    fields["model_digest"] = _model_digest(base.manifest, fields["files"])
    manifest_bytes = msgspec.json.encode(fields, order="sorted")
    return Candidate(
        manifest=parse(manifest_bytes),
        manifest_bytes=manifest_bytes,
        files=files,
        sharing=sharing,
        unmatched=tuple(golden.unmatched),
        unchecked=tuple(golden.unchecked),
    )


def publisher_base(base: Artifact) -> str:
    """Digest of the publisher's version that a learned one names: the base itself, or what that was learned from.

    Raises:
        BadMessage: a learned version that names none.
    """
    if not is_learned(base.manifest):
        return base.digest
    if base.manifest.base is None:
        raise BadMessage(
            f"{base.manifest.name}:{base.manifest.version} was learned and names no base; take that itself"
        )
    return base.manifest.base


def _spread(
    manifest: Manifest, learned: Variant, packed: Mapping[str, bytes]
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The new contents by path, with the copies of variants that share the head, and these variants."""
    by_digest = {manifest.files[name].sha256: content for name, content in packed.items()}
    files, sharing = dict(packed), [learned.id]
    for variant in manifest.variants:
        digests = [manifest.files[name].sha256 for name in variant.trainable_files]
        if variant.id != learned.id and digests and set(digests) <= set(by_digest):
            sharing.append(variant.id)
            files |= {name: by_digest[digest] for name, digest in zip(variant.trainable_files, digests, strict=True)}
    return files, tuple(sharing)


def _model_digest(base: Manifest, files: Mapping[str, Mapping[str, Any]]) -> str:
    entries = {name: FileEntry(sha256=entry["sha256"], size=entry["size"]) for name, entry in files.items()}
    return digest_of_files(variant_files(msgspec.structs.replace(base, files=entries), base.variants[0]))


class _Golden:
    """Golden outputs of a base with some files replaced.

    Attributes:
        files: new contents of golden outputs; empty where they are what they were, or there are none.
        unmatched, unchecked: as `Candidate` has them.
    """

    def __init__(self, base: Artifact, changed: Mapping[str, bytes], learned: str) -> None:
        self._base, self._changed, self._learned = base, changed, learned
        self._wanted_before: dict[str, np.ndarray] = {}
        self.files: dict[str, bytes] = {}
        self.unmatched: list[str] = []
        self.unchecked: list[str] = []

    def renew(self) -> None:
        """Run the golden inputs through every variant that must give the golden outputs."""
        golden, manifest = self._base.manifest.golden, self._base.manifest
        if golden is None:
            return
        feeds = {tensor: self._array(name) for tensor, name in golden.inputs.items()}
        wanted = self._wanted_before = {tensor: self._array(name) for tensor, name in golden.outputs.items()}
        if set(self._changed) & set(manifest.variants[0].files):
            try:
                wanted = self._answer(manifest.variants[0], feeds, list(wanted), self._changed)
            except DeviceError as exc:
                raise ModelUnsupported(f"new golden outputs need the first variant's engine here: {exc}") from exc
            self.files = {golden.outputs[tensor]: npy(array) for tensor, array in wanted.items()}
        rule = manifest.cascade
        small = rule.small if isinstance(rule, CascadeRule) else ""
        for variant in manifest.variants:
            if variant.id != small:  # the golden outputs are the large one's
                self._compare(variant, feeds, wanted)

    def _compare(self, variant: Variant, feeds: Arrays, wanted: Arrays) -> None:
        golden = self._base.manifest.golden
        assert golden is not None
        tolerance = golden.tolerance.get(variant.engine, DEFAULT_TOLERANCE)
        try:
            apart = _distance_of(self._answer(variant, feeds, list(wanted), self._changed), wanted)
            if apart <= tolerance:
                return
            before = _distance_of(self._answer(variant, feeds, list(wanted), {}), self._wanted_before)
        except DeviceError:
            self.unchecked.append(variant.id)
            return
        if variant.id == self._learned and before <= tolerance:
            raise GoldenDiffers(
                f"variant {variant.id!r} has learned and differs now by {apart:.3g} from the golden outputs: they are "
                f"the first variant's, {self._base.manifest.variants[0].id!r}, which has its own head; let that one "
                "learn, or publish them as two models",
                tensor=next(iter(wanted), ""),
            )
        self.unmatched.append(variant.id)

    def _answer(
        self, variant: Variant, feeds: Arrays, names: list[str], changed: Mapping[str, bytes]
    ) -> dict[str, np.ndarray]:
        session = _opened(self._base, variant, changed)
        known = [port.name for port in session.get_outputs()]
        try:
            found = session.run([name for name in names if name in known], dict(feeds))
        except Exception as exc:
            said = "".join(str(exc).strip().splitlines()[:1])[:200]
            raise EngineFailed(f"variant {variant.id!r} does not run its golden inputs: {said}") from exc
        return {name: np.asarray(array) for name, array in zip((n for n in names if n in known), found, strict=True)}

    def _array(self, name: str) -> np.ndarray:
        try:
            content = self._base.path_of(name).read_bytes()
            found: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (OSError, ValueError, EOFError, TypeError, SyntaxError) as exc:
            raise ModelInvalid(f"golden file {name}: no array in .npy form ({exc})", path=name) from exc
        return found


def _opened(base: Artifact, variant: Variant, changed: Mapping[str, bytes]) -> Any:
    """An engine of a variant, with changed heads in place of those in its files; raises `DeviceError`."""
    path = base.path_of(variant.files[0])
    if is_headed(path):
        from hybrid.federated.learning.lite_session import LiteHeadSession

        return LiteHeadSession(path, 1, changed=_changed_arrays(variant, path, changed))
    if is_tflite(path):
        from devices.tflite_engine import TfliteSession

        return TfliteSession(path, 1)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    arrays = _changed_arrays(variant, path, changed)
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    if values:
        options.add_external_initializers(list(arrays), values)
    provider = variant.requires.get("provider", "CPUExecutionProvider")
    if provider not in ort.get_available_providers():
        raise OperatorUnsupported(f"variant {variant.id!r} needs {provider}, which is not here", path=str(path))
    return open_session(path, options, [provider])


def _changed_arrays(variant: Variant, path: Path, changed: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    from hybrid.federated.learning.graph_part import places
    from hybrid.graph.model_file import load_proto

    folder = PurePosixPath(variant.files[0]).parent
    beside = {
        PurePosixPath(name).relative_to(folder).as_posix(): changed[name] for name in variant.files if name in changed
    }
    if not beside:
        return {}
    return {
        place.name: np.frombuffer(beside[place.location], "<f4", place.length // 4, place.offset).reshape(place.shape)
        for place in places(load_proto(path), beside)
    }


def _distance_of(found: Arrays, wanted: Arrays) -> float:
    """The largest distance of an output; infinite where one is missing."""
    return max(
        (_distance(found[name], one) if name in found else math.inf for name, one in wanted.items()), default=0.0
    )


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """max |found - wanted| over max |wanted|, as boxes judge."""
    if found.shape != wanted.shape:
        return math.inf
    if wanted.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(found.astype(str), wanted.astype(str)) else math.inf
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    worst, largest = float(np.max(np.abs(a - b), initial=0.0)), float(np.max(np.abs(b), initial=0.0))
    if not worst:
        return 0.0
    return worst / largest if largest and np.isfinite(worst) else math.inf
