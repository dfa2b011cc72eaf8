"""Every way of making a step of updates, through the desk: two rounds each, finite, the same again after a restart."""

import math
from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.rounds.course.next_step import Chosen, n_attackers, trimmed_ratio
from cloud_gateway.rounds.kept.store import Received, ReceivedRow
from hybrid.federated.campaign import Aggregation, Campaign, Coding, Privacy
from hybrid.federated.coding.catalog import form
from hybrid.federated.layout import Layout
from hybrid.federated.messages import UpdateCall
from tests.rounds.lab import Box, Lab, running, until

N_BOXES = 5
WAYS = {
    "momentum": {"aggregation": Aggregation(optimizer="momentum", learning_rate=0.3)},
    "adam": {"aggregation": Aggregation(optimizer="adam", learning_rate=0.03)},
    "yogi": {"aggregation": Aggregation(optimizer="yogi", learning_rate=0.03)},
    "scaffold": {"aggregation": Aggregation(scaffold=True, weights="uniform")},
    "norm-clip": {"aggregation": Aggregation(rule="norm-clip")},
    "median": {"aggregation": Aggregation(rule="median")},
    "trimmed-mean": {"aggregation": Aggregation(rule="trimmed-mean")},
    "multi-krum": {"aggregation": Aggregation(rule="multi-krum")},
    "top-k": {"coding": Coding(up="top-k", down="top-k", share=0.05)},
    "int4": {"coding": Coding(up="int4", down="int8")},
    "noise": {
        "aggregation": Aggregation(weights="uniform"),
        "privacy": Privacy(noise=1.0, clip=1.0, is_adaptive=True),
        "coding": Coding(up="float32", down="int8"),
    },
}


def update(box: Box, task, coding: Coding, *, is_paired: bool) -> UpdateCall:
    layout = box.lab.desk.courses[task.campaign].update_layout
    vector = box.random.normal(size=layout.n_elements).astype(np.float32) * np.float32(0.01)
    assert layout.n_elements == (1300 if is_paired else 650)
    content = form(coding.up, coding.share).encode(vector, layout, box.random).content
    return UpdateCall(
        epoch="e", task=task.id, campaign=task.campaign, step=task.weights.step, form=coding.up, sha256="",
        n_bytes=len(content), content=content, n_samples=10, is_below_clip=True,
    )  # fmt: skip


@pytest.mark.parametrize("n_updates", range(1, 40))
def test_so_much_may_be_trimmed_or_bad_that_something_is_left(n_updates: int) -> None:
    for share in (0.01, 0.2, 0.34, 0.49):
        assert 2 * math.ceil(trimmed_ratio(share, n_updates) * n_updates - 1e-9) < n_updates
        assert n_updates < 3 or n_updates >= 2 * n_attackers(share, n_updates) + 3


def test_scaffolds_variates_are_a_plain_mean_also_in_campaigns_that_began_by_samples() -> None:
    layout, form_of = Layout(names=("w",), shapes=((2,),)), form("float32")
    rows = [ReceivedRow(id=at, step=0, box_id=f"box-{at}", round=1, outcome="chosen",
                        body=Received(sha256="", n_bytes=0, n_samples=10**at)) for at in range(3)]  # fmt: skip

    def weights(*, scaffold: bool) -> list[float]:
        order = Campaign(model="m", version="1", variant="v", aggregation=Aggregation(scaffold=scaffold))
        return Chosen(order=order, layout=layout, update_layout=layout, up=form_of, clip=0.0, noise=b"", rows=rows,
                      contents=lambda: iter(()), n_boxes=3).weights  # fmt: skip

    assert weights(scaffold=True) == [1.0, 1.0, 1.0]
    assert weights(scaffold=False) == [1.0, 10.0, 100.0]


@pytest.mark.parametrize("way", WAYS)
async def test_two_rounds(tmp_path: Path, way: str) -> None:
    order = {"coding": Coding()} | WAYS[way]
    lab = Lab(tmp_path, n_boxes=N_BOXES, learns=("w2", "b2"))
    boxes = [Box(lab, at) for at in range(N_BOXES)]
    campaign = await lab.create(goal=N_BOXES, rounds=3, over_selection=1.0, **order)
    for step in range(2):
        async with running(lab):
            for box in boxes:
                box.lab = lab
                task = await box.task(wait_s=5.0)
                assert task is not None
                assert task.weights.step == step
                assert bool(task.weights.control) == (way == "scaffold" and step > 0)
                answer = await box.send(update(box, task, order["coding"], is_paired=way == "scaffold"))
                assert answer.state == "accepted", answer
            course = lab.desk.courses[campaign]
            await until(lambda own=course, after=step: own.row.step == after + 1)
        newest = course.steps.newest
        assert np.isfinite(np.frombuffer(newest.weights, "<f4")).all()
        assert newest.weights != course.steps.read(step).weights
        lab.close()
        lab = Lab(tmp_path, n_boxes=N_BOXES)
        assert lab.desk.courses[campaign].steps.newest == newest
    assert len({box.views[campaign][1].tobytes() for box in boxes}) == 1
    lab.close()
