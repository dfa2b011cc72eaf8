"""A whole network that learns over rounds: boxes beside the gateway's own desk, in the clear and masked, and home."""

import asyncio
import dataclasses
from contextlib import asynccontextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from cloud_gateway.rounds.commands.export import _written, export
from cloud_gateway.rounds.home import exports
from edge_agent.learning import offers
from hybrid.artifact.folder import Artifact, from_onnx
from hybrid.artifact.manifest import Manifest, parse
from hybrid.errors import Conflict, NotFound
from hybrid.federated.campaign import Aggregation, Privacy, Promotion, Training
from hybrid.fleet.sample import Sample, packed_arrays
from tests.federated.whole_making import NAME, digit_images, whole_artifact
from tests.learning.desk_lab import boxes_at_a_desk, completed
from tests.learning.lab import Box, at_work, made, version_of
from tests.rounds.lab import Lab, until

N_BOXES = 3
N_EACH = 150
TRAINING = Training(epochs=3, batch=16, learning_rate=0.1)


async def give(box: Box, x: np.ndarray, y: np.ndarray) -> None:
    """Labelled images into a box's shelf."""
    await box.samples._ready.wait()
    shelf, found = box.samples.shelf, []
    for image, right in zip(x, y, strict=True):
        packed, nothing = packed_arrays({"image": image[None]}, {})
        found.append(
            Sample(
                id=shelf.next_id(), model=NAME, model_digest=box.artifact.manifest.model_digest, variant="", made_s=0.0,
                label=str(right), inputs=packed, output=nothing,
            )
        )  # fmt: skip
    await asyncio.to_thread(shelf.put, found, (), 0.0)


@asynccontextmanager
async def fleet(folder: Path):
    """Three boxes with digits at a desk, and the digest of the gateway's evaluation set."""
    await asyncio.to_thread(import_module, "torch")  # in the thread that trains it would come after all else
    artifact = whole_artifact(folder / "made" / "eyes")
    x, y = digit_images()
    packed = BytesIO()
    np.savez(packed, image=x[-300:], labels=y[-300:])

    async def fill(box: Box, n: int) -> None:
        await give(box, *(some[n * N_EACH : (n + 1) * N_EACH] for some in (x, y)))

    async with boxes_at_a_desk(folder, artifact, N_BOXES, fill) as (lab, boxes):
        yield lab, boxes, lab.rounds.sets.put(packed.getvalue()).sha256


@pytest.mark.torch
@pytest.mark.parametrize(("secure", "rounds", "reached"), [(False, 6, 0.7), (True, 3, 0.4)], ids=["clear", "masked"])
async def test_a_network_learns_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool, rounds: int, reached: float
) -> None:
    """int8 up and down, averaged; masked the gateway sees sums alone."""
    hidden = {
        "privacy": Privacy(secure=True, clip=4.0), "aggregation": Aggregation(weights="uniform"), "over_selection": 1.0,
    } if secure else {}  # fmt: skip
    monkeypatch.setattr(exports, "PART_BYTES", 5000)
    async with fleet(tmp_path) as (lab, boxes, evaluation):
        campaign = await lab.create(
            evaluation, model=NAME, goal=N_BOXES, least=N_BOXES, rounds=rounds, seed=2, training=TRAINING,
            promotion=Promotion(policy="none" if secure else "candidate", cohort_evaluation=False), **hidden,
        )  # fmt: skip
        async with at_work(*(box.learning for box in boxes)):
            await completed(lab, campaign)
            view = await lab.shown(campaign)
            assert view.by_torch == ("Conv", "GlobalMaxPool", "MaxPool")
            accuracy = [view.base_accuracy, *(each.accuracy for each in view.rounds)]
            assert accuracy[0] < 0.2
            assert accuracy[-1] > reached
            assert sum(each.n_counted for each in view.rounds) == rounds * N_BOXES
            if not secure:
                await until(lambda: len(lab.registry.list_versions(NAME)) == 2)
                home = lab.registry.list_versions(NAME)[-1]
                manifest = parse(lab.registry.manifest_bytes(home.artifact_digest))
                assert manifest.base == lab.registry.list_versions(NAME)[0].artifact_digest
                base = parse(lab.registry.manifest_bytes(manifest.base))
                changed = {name for name, entry in manifest.files.items() if base.files[name] != entry}
                assert changed == {"head.bin", *manifest.golden.outputs.values()}
                await exported(lab, boxes[0].artifact, campaign, manifest, tmp_path / "learned.onnx")


async def exported(lab: Lab, base: Artifact, campaign: str, home: Manifest, out: Path) -> None:
    """The step as one file answers as the version that it became, and says how it came to be."""
    parts = [await lab.rounds.exports.part(campaign, None, 0)]
    while len(content := b"".join(part.content for part in parts)) < parts[0].n_bytes:
        parts.append(await lab.rounds.exports.part(campaign, parts[0].step, len(content)))
    assert len(parts) == 2
    n_bytes = _written(parts[0], content, base, out)
    assert n_bytes > parts[0].n_bytes
    golden = home.golden
    feeds, [wanted] = (
        [np.load(lab.registry.find_blob(home.files[name].sha256)) for name in names.values()]
        for names in (golden.inputs, golden.outputs)
    )
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"image": feeds[0]})[0] - wanted).max() <= 1e-4
    learned, left = from_onnx(out, NAME, "2").manifest.lineage
    assert (learned, left.step) == (home.lineage[-1], "export")
    assert learned.detail.startswith("learned rounds=6 boxes=3 secure=no epsilon=inf")
    for asked, said in ((7, "has steps 1 to 6, not 7"), (0, "has steps 1 to 6, not 0")):
        with pytest.raises(NotFound, match=said):
            await lab.rounds.exports.part(campaign, asked, 0)
    with pytest.raises(Conflict, match="there is a file already"):
        export(campaign, out)


async def test_a_box_without_torch_offers_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "find_spec", lambda _name: None)
    async with fleet(tmp_path) as (lab, boxes, evaluation):
        campaign = await lab.create(evaluation, model=NAME, goal=1, rounds=1, training=TRAINING)
        box = boxes[0]
        async with at_work(box.learning):
            await until(lambda: "torch" in box.learning.status().why_not)
            assert box.learning.status().why_not == (
                "net needs torch to learn (Conv, GlobalMaxPool, MaxPool): pip install 'hybrid-split[torch]'"
            )
            assert box.learning.status().n_given_up == 0
            assert box.learning.status().lacking == "", "once is enough"
            head, _ = made()
            box.answering.put(dataclasses.replace(version_of(head), name="head"))
            box.learning.wake()
            wanted = "there are no labelled samples of head on this box"
            await until(lambda: box.learning.status().why_not == wanted)
            assert box.learning.status().lacking.startswith("net needs torch to learn (Conv")
        assert (await lab.shown(campaign)).state == "running"
