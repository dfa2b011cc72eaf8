"""The artifact of a search: the original, the variants that won, golden files, calibrations and the report.

Design: everything is laid out in the journal's folder, beside the place where it belongs, verified there, and renamed
into it: an artifact is there whole or not at all. The report lies beside it too (`report/files.py`), so that it is
there also where nothing was won.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import onnxruntime

from devices.tflite_magic import engine_of
from hybrid.artifact.attachments import attach, attachment_of
from hybrid.artifact.digest import digest_of_files, hashed_files
from hybrid.artifact.durable import storing, sync_file, write_atomically
from hybrid.artifact.folder import Artifact, open_folder, place_folder, verify
from hybrid.artifact.golden_files import write_golden
from hybrid.artifact.lineage_note import noted_lineage
from hybrid.artifact.manifest import SCHEMA, FileEntry, Golden, LineageStep, Manifest, Variant, canonical_bytes
from hybrid.artifact.names import MANIFEST_NAME, check_word
from hybrid.artifact.trainable import HEAD_FILE
from hybrid.calibration.calibrate import WHOLE, as_attachment
from hybrid.calibration.record import Calibration, Cell
from hybrid.calibration.trial import opened
from hybrid.compress.job import Job
from hybrid.compress.judging import Judged
from hybrid.compress.material import Material
from hybrid.compress.report.report import Report
from hybrid.compress.splits.filing import laid_out
from hybrid.compress.splits.ways import ShippedWay
from hybrid.compress.uncompressed import Base
from hybrid.errors import Conflict, StorageError

GOLDEN_TOLERANCE: Final = 1e-3
"""Of the shipped model, float32, between versions of its engine."""


def check_place(job: Job) -> None:
    """Looks before any work whether the artifact can be written.

    Raises:
        Conflict: something is in its place.
        StorageError: no right to write there.
        BadMessage: a name that cannot be.
    """
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise Conflict(f"{job.out} is not empty; name a new folder with --out")
    above = next(path for path in job.out.absolute().parents if path.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{above}: no right to write there; name another --out", path=str(above))
    for word, what in ((job.name, "model name"), (job.version, "version")):
        if word:
            check_word(word, what)


@dataclass(frozen=True, slots=True)
class Shipment:
    """What goes beside the original: variants by id, the best first, and ways of dividing requests."""

    variants: Mapping[str, Judged]
    splits: Sequence[ShippedWay] = ()


def write_artifact(
    job: Job, base: Base, material: Material, shipment: Shipment, report: Report, *, work: Path
) -> Artifact:
    """The artifact, whole, at its place.

    Args:
        job: what was asked for.
        base: the uncompressed model.
        material: samples.
        shipment: what was won.
        report: attached.
        work: the journal's folder, beside the artifact's place.

    Raises:
        DiskFull, StorageError: nothing is left behind.
    """
    wanted_bytes = base.n_bytes + sum(each.n_bytes for each in shipment.variants.values())
    with storing(job.out, wanted_bytes):
        staging = Path(tempfile.mkdtemp(dir=work, prefix=".tmp-"))  # the journal sweeps what a kill leaves
        try:
            _laid_out(staging, job, base, material, shipment)
            artifact = open_folder(staging)
            verify(artifact)
            for calibration in _calibrations(base, material, job, shipment):
                attach(staging, as_attachment(calibration, job.sign))
            attach(staging, attachment_of(report.content))
            if job.out.is_dir():
                job.out.rmdir()
            place_folder(staging, job.out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return open_folder(job.out)


def _laid_out(folder: Path, job: Job, base: Base, material: Material, shipment: Shipment) -> None:
    entries: dict[str, FileEntry] = {}
    variants = [_put(folder, _Model("original", base.path, "native", base.head, base.head_file), entries)]
    variants += [
        _put(folder, _Model(variant, each.path, each.recipe.precision, each.feature_tensor), entries)
        for variant, each in shipment.variants.items()
    ]
    splits = laid_out(shipment.splits, folder, entries)
    golden, files = _golden(folder, base, material)
    entries |= files
    known = base.artifact.manifest if base.artifact is not None else None
    step = LineageStep(step="compress", artifact_digest=base.artifact.digest if base.artifact else None)
    manifest = Manifest(
        schema=SCHEMA,
        name=job.name or (known.name if known is not None else base.name),
        version=job.version or "1",
        sequence=known.sequence + 1 if known is not None else 1,
        model_digest=digest_of_files(hashed_files(folder / base.path.name)),
        files=entries,
        variants=tuple(variants),
        base=base.artifact.digest if base.artifact is not None else None,
        classes=known.classes if known is not None else None,
        pre=known.pre if known is not None else msgspec.Raw(b"null"),
        post=known.post if known is not None else msgspec.Raw(b"null"),
        golden=golden,
        splits=splits or msgspec.UNSET,
        lineage=(*_came_from(base), step),
    )
    write_atomically(folder / MANIFEST_NAME, canonical_bytes(manifest), is_shown=True)


def _came_from(base: Base) -> tuple[LineageStep, ...]:
    """How the model came to be, by its artifact or by what the bare file says."""
    if base.artifact is not None:
        return base.artifact.manifest.lineage
    return noted_lineage(base.path) if engine_of(base.path) == "onnxruntime" else ()


@dataclass(frozen=True, slots=True)
class _Model:
    """A model as it becomes a variant; `head` is what its trainable head stands on, if it has one apart."""

    id: str
    path: Path
    precision: str
    head: str
    head_file: str = HEAD_FILE


def _put(folder: Path, model: _Model, entries: dict[str, FileEntry]) -> Variant:
    """Copies a model and what lies beside it, the original to the top, others into a folder of their own."""
    names, below = [], "" if model.id == "original" else f"{model.id}/"
    for file in hashed_files(model.path):
        name = f"{below}{file.name}"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.path.parent / file.name, target)
        sync_file(target)
        entries[name] = FileEntry(sha256=file.sha256, size=file.size)
        names.append(name)
    return Variant(
        id=model.id,
        engine=engine_of(model.path),
        precision=model.precision,
        files=tuple(names),
        feature_tensor=model.head or None,
        trainable_files=(f"{below}{model.head_file}",) if model.head else (),
    )


def _golden(folder: Path, base: Base, material: Material) -> tuple[Golden, dict[str, FileEntry]]:
    """One sample and the shipped model's answer to it."""
    feeds = material.feeds[material.parts.judge[0]]
    session = opened(base.path)
    outputs = dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))
    engine = engine_of(base.path)
    return write_golden(folder, feeds, outputs, {engine: GOLDEN_TOLERANCE})


def _calibrations(base: Base, material: Material, job: Job, shipment: Shipment) -> list[Calibration]:
    """What sessions hold against their `max_accuracy_drop`: the judging part's word on variants and splits."""
    found = []
    for variant, each in shipment.variants.items():
        low, high = each.grade.interval
        cell = Cell(cut=WHOLE, codec="none", n=each.grade.n, drop=each.grade.drop, drop_low=low, drop_high=high)
        found.append(_calibration(base, material, job, variant, [cell]))
    if shipment.splits:
        found.append(_calibration(base, material, job, "original", [split.cell for split in shipment.splits]))
    return found


def _calibration(base: Base, material: Material, job: Job, variant: str, cells: Sequence[Cell]) -> Calibration:
    judge = material.judge
    return Calibration(
        model_digest=base.digest,
        variant=variant,
        shape_key=material.shape_key.text,
        metric=judge.metric,
        output=judge.outputs[0] if len(judge.outputs) == 1 else "",
        tolerance=judge.tolerance if judge.metric == "fidelity" else None,
        baseline=material.share_right(material.parts.judge) if judge.metric == "accuracy" else None,
        n_samples=len(material.parts.judge),
        data_digest=material.digest,
        seed=job.seed,
        engine=f"onnxruntime {onnxruntime.__version__}",
        made_s=time.time(),
        cells=tuple(cells),
    )
