"""What is learned from, where not all samples fit into the memory for it."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np

from edge_agent.learning.material import Material
from hybrid.federated.learning.body import Body
from hybrid.federated.learning.labels import is_held_out
from tests.learning.lab import Box, at_work, made
from tests.learning.nets import N_FEATURES

ROW_BYTES = 4 * N_FEATURES


async def test_the_newest_that_fit_and_a_share_for_evaluation(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(40)
        box.yielding.begin()
        material = Material(box.samples.shelf, box.yielding, most_bytes=10 * ROW_BYTES)
        (candidate,) = box.learning._offers.candidates()
        ids = await box.samples.labelled("net", 1000)
        n_held_out = sum(map(is_held_out, ids))
        assert n_held_out > 2
        assert len(material.examples(candidate, ids, held_out=False)) == 8
        assert len(material.examples(candidate, ids, held_out=True)) == 2, "training leaves room for evaluation"
        assert (material.n_left_out, material.n_unfit) == (40 - 10, 0)
        new = await box.fill(4, seed=6)
        ids = await box.samples.labelled("net", 1000)
        assert ids[:4] == new[::-1]
        found = material.examples(candidate, ids, held_out=False)
        newest = [one for one in ids if not is_held_out(one)][:8]
        assert not set(new).isdisjoint(newest)
        fresh = Material(box.samples.shelf, box.yielding, most_bytes=1 << 20)  # that never held others
        wanted = fresh.examples(candidate, newest, held_out=False)
        np.testing.assert_array_equal(list(found.features), list(wanted.features), "old samples leave for new ones")
        assert material.n_left_out == 44 - 10


async def test_what_cannot_be_learned_from_is_read_once(tmp_path: Path) -> None:
    """Until it is labelled anew, or the model names other classes."""
    artifact, desk = made()
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples):
        ids = [one for one in await box.fill(12) if not is_held_out(one)]
        for one in ids[:3]:
            await box.samples.label(one, "owl")
        box.yielding.begin()
        material, read = Material(box.samples.shelf, box.yielding, most_bytes=1 << 20), list[str]()
        shelf_read = box.samples.shelf.read
        box.samples.shelf.read = lambda one: read.append(one) or shelf_read(one)  # type: ignore[method-assign, func-returns-value]
        (candidate,) = box.learning._offers.candidates()
        for _ in range(2):
            assert len(material.examples(candidate, ids, held_out=False)) == len(ids) - 3
            assert (material.n_unfit, material.n_left_out) == (3, 0)
            assert "no class is called 'owl'" in material.why_unfit
        assert len(read) == len(ids)
        await box.samples.label(ids[0], 1)
        material.forget(ids[0])
        assert len(material.examples(candidate, ids, held_out=False)) == len(ids) - 2
        manifest = msgspec.structs.replace(candidate.manifest, classes=("cat", "dog", "owl"))
        named = dataclasses.replace(candidate, manifest=manifest)
        found = material.examples(named, ids, held_out=False)
        assert len(found) == len(ids)
        assert list(found.targets[1:3]) == [2, 2]


async def test_nothing_is_noted_of_samples_that_no_task_has_read(tmp_path: Path) -> None:
    """With labels that come by themselves and no round, what is noted of them would grow for ever."""
    artifact, desk = made()
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples):
        ids = await box.fill(12)
        box.yielding.begin()
        material = Material(box.samples.shelf, box.yielding, most_bytes=1 << 20)
        (candidate,) = box.learning._offers.candidates()
        material.examples(candidate, ids, held_out=False)
        for one in (*ids[:3], *(f"later-{n}" for n in range(50))):
            material.forget(one)
        assert material._relabelled == set(ids[:3])
        material.release()
        assert not material._relabelled, "nothing is left that could be out of date"


async def test_what_did_not_fit_beside_others_is_tried_again_without_them(tmp_path: Path) -> None:
    """The newest sample says the size of all others: once they have left memory another one may."""
    artifact, desk = made()
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples):
        ids = [one for one in await box.fill(12) if not is_held_out(one)]
        box.yielding.begin()
        material = Material(box.samples.shelf, box.yielding, most_bytes=1 << 20)
        run, widths = material._run, [2]

        def sized(body: Body, feeds: dict[str, np.ndarray]) -> np.ndarray:
            return np.tile(run(body, feeds), (1, widths.pop() if widths else 1))

        material._run = sized  # type: ignore[method-assign]
        (candidate,) = box.learning._offers.candidates()
        assert len(material.examples(candidate, ids, held_out=False)) == 1
        assert material.n_unfit == len(ids) - 1
        material.release()
        assert len(material.examples(candidate, ids, held_out=False)) == len(ids)
        assert material.n_unfit == 0
