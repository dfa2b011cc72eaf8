"""A version in a slot as the host is handed it, its golden outputs compared, and a model as the gateway is told it."""

from pathlib import Path

from edge_agent.install.contents import read_papers
from edge_agent.install.golden import compare, golden_arrays, golden_of, tolerance_of
from edge_agent.install.means import Means
from edge_agent.install.records import MOST_DETAIL, Held, Slots
from edge_agent.install.rehearsal import chosen_variant
from edge_agent.install.shelf import on_disk
from edge_agent.models.version import DEFAULT_PRIORITY, ModelVersion, Runs
from hybrid.artifact.digest import digest_of_files
from hybrid.artifact.manifest import Manifest, parse, variant_files
from hybrid.errors import HybridError
from hybrid.fleet.messages import Assigned, Installed


def version_in(means: Means, folder: Path, held: Held, assigned: Assigned | None) -> tuple[ModelVersion, Manifest]:
    """What the host opens of a slot; reads small files."""
    manifest = parse(read_papers(means.disk, folder).manifest)
    variant = chosen_variant(manifest, means.has_engine)
    version = ModelVersion(
        name=manifest.name,
        version=manifest.version,
        model_digest=digest_of_files(variant_files(manifest, variant)),
        path=folder / variant.files[0],
        artifact_digest=held.artifact_digest,
        folder=folder,
        classes=manifest.classes or (),
        priority=assigned.priority if assigned is not None else DEFAULT_PRIORITY,
        samples=assigned.samples if assigned is not None else "keep",
        variant=variant.id,
    )
    return version, manifest


async def compare_golden(means: Means, version: ModelVersion, manifest: Manifest) -> None:
    """Run the golden inputs in the service.

    Raises:
        GoldenDiffers: other outputs than the golden ones.
        EngineFailed, ModelInvalid: they could not be run, or are no arrays.
    """
    golden = golden_of(manifest, version.variant)
    if golden is None or version.folder is None:
        return
    feeds = await on_disk(golden_arrays, means.disk.read, version.folder, golden.inputs)
    wanted = await on_disk(golden_arrays, means.disk.read, version.folder, golden.outputs)
    found = await means.host.run(version, feeds, list(wanted))
    engine = next(variant.engine for variant in manifest.variants if variant.id == version.variant)
    compare(found, wanted, tolerance_of(manifest, engine), f"{manifest.name}:{manifest.version}")


def told_of(slots: Slots, runs: Runs, trouble: HybridError | None) -> Installed:
    """How a model is, for the gateway; `runs` are those of the answering version in this life of the service."""
    held, wanted, failure = slots.answering, slots.wanted, slots.failure
    code, detail = ("", "") if trouble is None else (trouble.code, str(trouble)[:MOST_DETAIL])
    phase = slots.phase
    if slots.next is not None and wanted is not None:
        phase, code = "deferred", ""
        detail = f"{slots.next.version} waits until {wanted.version}, all that is here, has been through its trial"
        wanted = slots.next
    return Installed(
        name=slots.name,
        version=held.version if held is not None else wanted.version if wanted is not None else "",
        artifact_digest=held.artifact_digest if held is not None else "",
        wanted_digest=wanted.artifact_digest if wanted is not None and phase != "committed" else "",
        rollout=wanted.rollout if wanted is not None else "",
        phase=phase,
        code=failure.code if failure is not None else code,
        detail=failure.detail if failure is not None else detail,
        n_good=slots.n_good + runs.n_good,
        n_errors=slots.n_errors + runs.n_errors,
        n_crashes=slots.n_crashes,
        p50_s=runs.quantile_s(0.5),
        p95_s=runs.quantile_s(0.95),
        is_on_trial=slots.next is not None,
    )
