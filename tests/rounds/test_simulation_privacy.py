"""What one box can change of a private round, whatever it sends: the gateway's own closing, with and without it."""

import asyncio

import numpy as np
import pytest

from cloud_gateway.rounds.course.next_step import Chosen, next_step
from cloud_gateway.rounds.home.statements import _cost
from cloud_gateway.rounds.kept.steps import StepFile, Steps, as_bytes, as_vector
from cloud_gateway.rounds.kept.store import Received, ReceivedRow
from cloud_gateway.rounds.messages import PromoteWish
from hybrid.artifact.manifest import parse
from hybrid.federated.campaign import Aggregation, Campaign, Coding, Privacy, Promotion
from hybrid.federated.coding.catalog import form
from hybrid.federated.layout import Layout
from hybrid.federated.privacy.statement import read
from tests.rounds.lab import Box, Lab, running, until

LAYOUT = Layout(names=("w", "b"), shapes=((30, 20), (20,)))
GOAL, CLIP = 8, 0.7
SECRET = bytes(range(32))


def closed(folder, vectors, *, adaptive=False, up="int8", staleness=0, bits=None):
    """The step that a round of these updates makes, and the next clip norm; the noise is always the same."""
    privacy = Privacy(noise=1.5, clip=CLIP, is_adaptive=adaptive)
    order = Campaign(
        model="m", version="1", variant="v", goal=GOAL, privacy=privacy,
        coding=Coding(up=up, down="float32", share=0.2),
        aggregation=Aggregation(weights="uniform", max_staleness=5),
    )  # fmt: skip
    steps = Steps(folder, LAYOUT, order.coding)
    steps.adopt(steps.write(StepFile(step=0, weights=as_bytes(np.zeros(LAYOUT.n_elements, np.float32)), clip=CLIP)))
    kind = form(up, order.coding.share)
    contents = [kind.encode(vector, LAYOUT, np.random.default_rng(at)).content for at, vector in enumerate(vectors)]
    rows = [
        ReceivedRow(
            id=at, step=0, box_id=f"box-{at}", round=1, outcome="chosen",
            body=Received(sha256="", n_bytes=0, n_samples=10**6 * at + 1, staleness=staleness,
                          bit=0 if bits is None else bits[at]),
        )
        for at in range(len(vectors))
    ]  # fmt: skip
    made = next_step(steps, steps.newest, Chosen(
        order=order, layout=LAYOUT, update_layout=LAYOUT, up=kind, clip=CLIP, noise=SECRET, rows=rows,
        contents=lambda: iter(contents), n_boxes=len(rows),
    ))  # fmt: skip
    return as_vector(made.weights), made.clip


def crowd(n_boxes, seed=0):
    return list(np.random.default_rng(seed).normal(scale=0.02, size=(n_boxes, LAYOUT.n_elements)).astype(np.float32))


@pytest.mark.parametrize("up", ["float32", "int8", "int4", "top-k"])
@pytest.mark.parametrize("length", [0.0, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("staleness", [0, 3])
def test_a_box_moves_the_step_by_no_more_than_its_bound_over_the_goal(tmp_path, up, length, staleness):
    vectors = crowd(5)
    vectors[2] = (vectors[2] / np.linalg.norm(vectors[2]) * length).astype(np.float32)
    without = [*vectors]
    without[2] = np.zeros(LAYOUT.n_elements, np.float32)
    with_it, _ = closed(tmp_path / "a", vectors, up=up, staleness=staleness)
    zeroed, _ = closed(tmp_path / "b", without, up=up, staleness=staleness)
    assert np.linalg.norm(with_it.astype(np.float64) - zeroed) <= CLIP / GOAL * (1.0 + 1e-4)


def test_a_box_that_drops_out_raises_nothing(tmp_path):
    """With three of eight the noise of the step is what it is with eight."""
    quiet = [np.zeros(LAYOUT.n_elements, np.float32)] * 8
    few, _ = closed(tmp_path / "a", quiet[:3])
    many, _ = closed(tmp_path / "b", quiet)
    assert np.array_equal(few, many)
    assert np.std(many) == pytest.approx(1.5 * CLIP / GOAL, rel=0.1)


def test_numbers_of_samples_weigh_nothing(tmp_path):
    """The rows above tell absurd ones; each box counts alike."""
    vectors = [np.full(LAYOUT.n_elements, 0.01, np.float32), np.zeros(LAYOUT.n_elements, np.float32)]
    first, _ = closed(tmp_path / "a", vectors, up="float32")
    second, _ = closed(tmp_path / "b", vectors[::-1], up="float32")
    assert np.allclose(first, second, atol=1e-6)


def test_a_bit_moves_the_next_bound_by_little_and_the_step_not_at_all(tmp_path):
    vectors = crowd(8)
    one, low = closed(tmp_path / "a", vectors, adaptive=True, bits=[-1] * 8)
    other, high = closed(tmp_path / "b", vectors, adaptive=True, bits=[0, *[-1] * 7])
    assert np.array_equal(one, other)
    assert abs(np.log(low / high)) <= 0.2 * 0.5 / 8 + 1e-9


async def test_a_version_tells_all_that_its_boxes_have_spent(tmp_path):
    """Two campaigns on the same base: whoever has both versions knows of three rounds; a learned base counts once."""
    lab = Lab(tmp_path)
    told = []
    async with running(lab):
        for n_rounds in (2, 1):
            campaign = await lab.create(
                version="1", rounds=n_rounds, coding=Coding(up="float32"), aggregation=Aggregation(weights="uniform"),
                privacy=Privacy(noise=4.0, clip=1.0), promotion=Promotion(policy="none", cohort_evaluation=False),
            )  # fmt: skip
            course = lab.desk.courses[campaign]
            for step in range(n_rounds):
                for number in range(4):
                    assert (await Box(lab, number).once(campaign)).state == "accepted"
                await until(lambda course=course, step=step: course.row.step == step + 1)
            await lab.rounds.promote(campaign, PromoteWish())
            async with asyncio.timeout(10.0):
                while not (view := await lab.shown(campaign)).promotions[-1].version:  # noqa: ASYNC110 (nobody's event)
                    await asyncio.sleep(0.01)
            name, version = view.promotions[-1].version.split(":")
            digest = lab.registry.resolve(name, version).artifact_digest
            base = read(parse(lab.registry.manifest_bytes(digest)).lineage[-1].detail).cost
            own = n_rounds / 16.0
            store = lab.rounds._store
            assert _cost(store, course.row, base) == pytest.approx(base + own)  # on top of this version
            assert _cost(store, course.row, base - own) == pytest.approx(base)  # on the one before
            told.append(read(parse(lab.registry.manifest_bytes(digest)).lineage[-1].detail))
    lab.close()
    assert [round(each.cost * 16, 6) for each in told] == [2.0, 3.0]
    assert [each.rounds for each in told] == [2, 1]
    assert [each.boxes for each in told] == [4, 4]
