"""What is learned from, where not all samples fit into the memory for it."""

from pathlib import Path

import numpy as np

from edge_agent.learning.material import Material
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
