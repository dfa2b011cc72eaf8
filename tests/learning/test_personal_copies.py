"""What a composition of installed files and a box's own tensors is to the engine, and when there is none."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.learning.offers import Candidate
from edge_agent.learning.records import CampaignNote, Judged
from edge_agent.learning.store import MOST_CAMPAIGNS, LearningStore
from edge_agent.models.version import ModelVersion, PersonalCopy
from edge_agent.outbox.place import Place
from hybrid.artifact.manifest import CascadeRule
from hybrid.errors import NotFound
from hybrid.federated.learning.head import open_head
from tests.edge_agent.model_room import model_room
from tests.federated.lite_making import kept_artifact
from tests.learning.lab import Box, made, version_of
from tests.learning.nets import rows
from tests.learning.personal_lab import (
    asked,
    with_personal_head,
)


@pytest.mark.parametrize("form", ["onnx", "lite"])
async def test_every_engine_with_a_head_takes_them(form: str, tmp_path: Path) -> None:
    """Twice the head is twice the scores; the version beside stays what it is, and so does memory: one session."""
    artifact = kept_artifact() if form == "lite" else made()[0]
    manifest = artifact.manifest
    variant = next(one for one in manifest.variants if (one.engine == "tflite-head") == (form == "lite"))
    version = ModelVersion(
        name="net", version="1", model_digest="6" * 64, artifact_digest=artifact.digest, folder=artifact.folder,
        path=artifact.folder / variant.files[0], variant=variant.id, priority=7,
    )  # fmt: skip
    inputs = rows(1, 3)[0]
    async with model_room(tmp_path) as room:
        await room.host.answer(version)
        plain = await asked(room, inputs)
        head = open_head(artifact.folder, manifest, variant.id).arrays["head"]
        copy = PersonalCopy(version=version, digest="7" * 64, tensors={"head": head * np.float32(2)})
        await room.host.personalize(copy)
        room.compute.neighbourhood = lambda: pytest.fail("nobody else has these layers: nobody is asked")
        np.testing.assert_allclose(await asked(room, inputs), 2 * plain, rtol=1e-4, atol=1e-6)
        assert [key for key, _ in room.executor.sessions.sessions()] == [(copy.digest,)]
        assert room.answering.priority(copy.digest) == 7
        await room.host.answer(replace(version, priority=3))  # the assignment says another priority
        np.testing.assert_allclose(await asked(room, inputs), 2 * plain, rtol=1e-4, atol=1e-6)
        assert room.answering.priority(copy.digest) == 3
        room.compute.neighbourhood = lambda: None
        await room.host.plainly("net")
        np.testing.assert_array_equal(await asked(room, inputs), plain)
        with pytest.raises(NotFound):
            await room.host.personalize(replace(copy, version=replace(version, artifact_digest="8" * 64)))
        np.testing.assert_array_equal(await asked(room, inputs), plain)


async def test_the_small_one_of_a_cascade_stays_as_it_is(tmp_path: Path) -> None:
    artifact, desk = with_personal_head()
    async with model_room(tmp_path / "room") as room:
        part = Box(tmp_path / "box", artifact, desk, room=room).learning.personal
        assert part is not None
        rule = CascadeRule(
            small="original", output="scores", kind="logits", temperature=1.0, threshold=0.5, max_accuracy_drop=0.01
        )
        for manifest, why in (
            (artifact.manifest, ""),
            (msgspec.structs.replace(artifact.manifest, cascade=rule), "threshold"),
        ):
            one = Candidate(version=version_of(artifact), manifest=manifest, variant="original")
            assert why in part._obstacle(one)
            assert bool(why) == bool(part._obstacle(one))


def test_a_campaign_whose_layers_answer_is_forgotten_last(tmp_path: Path) -> None:
    _, desk = with_personal_head()
    store = LearningStore(Place(folder=tmp_path))
    store.open("gateway")
    judged = Judged(artifact_digest="a" * 64, version="1.r2-c0", variant="original", answers=True)
    for n in range(MOST_CAMPAIGNS + 8):
        note = CampaignNote(id=f"c{n}", terms=desk.terms, judged=judged if n == 0 else None)
        store.keep(note, {"personal": b"p" * 8, "view": b"v" * 8})
        store.end([note.id])
    assert len(store.notes) == MOST_CAMPAIGNS
    assert next(iter(store.notes)) == "c0"
    assert (store.vector("c0", "personal"), store.vector("c0", "view")) == (b"p" * 8, None)
    store.close()


@pytest.mark.parametrize("step", [3, -1])
def test_a_campaign_that_runs_outlasts_those_that_are_over(step: int, tmp_path: Path) -> None:
    """However many answer; but of one that this box has no view of it may never hear that it is over."""
    _, desk = with_personal_head()
    store = LearningStore(Place(folder=tmp_path))
    store.open("gateway")
    judged = Judged(artifact_digest="a" * 64, version="1.r2-c0", variant="original", answers=True)
    store.keep(CampaignNote(id="running", terms=desk.terms, step=step), {"residual": b"r" * 8})
    for n in range(MOST_CAMPAIGNS - 1):
        store.keep(CampaignNote(id=f"c{n}", terms=desk.terms, judged=judged), {"personal": b"p" * 8})
        store.end([f"c{n}"])
    store.keep(CampaignNote(id="new", terms=desk.terms, step=0), {})
    gone = "c0" if step >= 0 else "running"
    assert gone not in store.notes
    assert {"running", "c0", "new"} - {gone} <= set(store.notes)
    assert store.vector("running", "residual") == (b"r" * 8 if step >= 0 else None)
    store.close()
