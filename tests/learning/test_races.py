"""What changes on the loop between two looks of learning, or beside the thread that trains."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.learning.material import Material
from edge_agent.learning.offers import Candidate, Offers
from edge_agent.learning.records import Waiting
from edge_agent.learning.yielding import Yielding
from hybrid.federated.learning.labels import is_held_out
from hybrid.federated.messages import Offer, TaskAnswer, TaskCall
from hybrid.fleet.sample import Sample, packed_arrays
from tests.learning.lab import CAMPAIGN, Box, Desk, at_work, made, version_of
from tests.learning.nets import N_FEATURES, N_INPUTS, kept_artifact
from tests.rounds.lab import until


class Held(Desk):
    """Answers no poll."""

    async def task(self, call: TaskCall) -> TaskAnswer:
        self.asked.append(call)
        await asyncio.Event().wait()
        raise AssertionError


def holding(desk: Desk) -> Desk:
    desk.__class__ = Held
    return desk


@pytest.mark.parametrize("what", ["model", "labels"])
async def test_news_between_a_look_and_its_poll_are_told_at_once(what: str, tmp_path: Path, monkeypatch) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, holding(desk))
    look = Offers.look

    async def look_and_then(offers: Offers, candidates: list[Candidate]) -> tuple[Offer, ...]:
        found = await look(offers, candidates)
        monkeypatch.undo()
        if what == "model":
            box.answering.remove("net")
            box.learning.wake()
        else:
            for _ in range(8):
                await box.samples.put("d" * 64, "", {"x": np.zeros((1, 16), np.float32)}, {}, 1, model="net")
        return found

    monkeypatch.setattr(Offers, "look", look_and_then)
    async with at_work(box.outbox, box.samples):
        await box.fill(8)
        async with at_work(box.learning):
            if what == "model":
                await until(lambda: "no model on this box" in box.learning.status().why_not)
                assert not desk.asked
            else:
                told = [0]
                while len(told) < 16:
                    told = [not is_held_out(one) for one in await box.samples.labelled("net", 100)]
                await until(lambda: desk.asked and desk.asked[-1].offers[0].n_samples == sum(told))


async def test_learning_that_is_switched_off_before_it_begins_does_not_begin(tmp_path: Path, monkeypatch) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    samples = Offers.samples

    async def samples_and_then(offers: Offers, candidate: Candidate) -> Sequence[str]:
        monkeypatch.undo()
        box.mode = "off"
        box.learning.wake()
        return await samples(offers, candidate)

    monkeypatch.setattr(Offers, "samples", samples_and_then)
    async with at_work(box.outbox, box.samples):
        await box.fill(8)
        async with at_work(box.learning):
            await until(lambda: box.learning._tasks.n_given_up or box.learning.store.waiting is not None)
            assert box.learning.store.waiting is None


class Shelved:
    """A shelf of one sample, whose label changes while it is read."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.meanwhile: Callable[[], None] = lambda: None

    def read(self, sample_id: str) -> bytes:
        content = self.sample.encoded()
        self.meanwhile()
        return content


def test_a_label_that_changes_while_it_is_read_counts_in_the_next_task() -> None:
    artifact = kept_artifact(N_FEATURES)
    packed, nothing = packed_arrays({"x": np.zeros((1, N_INPUTS), np.float32)}, {})
    sample = Sample(
        id="000000000001", model="net", model_digest="d", variant="", made_s=0.0, label="1", inputs=packed,
        output=nothing,
    )  # fmt: skip
    shelf, yielding = Shelved(sample), Yielding()
    material = Material(shelf, yielding, most_bytes=1 << 20)  # type: ignore[arg-type]
    yielding.begin()
    candidate = Candidate(version=version_of(artifact), manifest=artifact.manifest, variant="original")

    def label_anew() -> None:
        shelf.sample = msgspec.structs.replace(sample, label="2")
        material.forget(sample.id)

    shelf.meanwhile = label_anew
    held_out = is_held_out(sample.id)
    assert list(material.examples(candidate, [sample.id], held_out=held_out).targets) == [1]
    assert list(material.examples(candidate, [sample.id], held_out=held_out).targets) == [2]


async def test_what_a_person_wants_forgotten_stays_so_when_an_update_is_settled_meanwhile(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    store = box.learning.store
    store.open("gateway")
    note = store.note(CAMPAIGN, desk.terms)
    waiting = Waiting(task="t", campaign=CAMPAIGN, step=0, form="float32", sha256="", n_bytes=4)
    store.keep(note, {}, (waiting, b"1234"))
    before = store.notes[CAMPAIGN]
    store.forget(CAMPAIGN)
    assert not store.settle_with_next("accepted", before)
    assert store.notes[CAMPAIGN].is_forgotten
    store.close()
