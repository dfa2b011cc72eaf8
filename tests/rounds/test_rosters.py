"""Device lists that orders carry: refused where boxes would refuse them, and who is not on one is asked for nothing."""

import hashlib
import os
from pathlib import Path

import pytest

from hybrid.artifact.signature import public_key_of
from hybrid.errors import BadMessage, CampaignImpossible
from hybrid.federated.campaign import Aggregation, Cohort, Privacy
from hybrid.federated.secure.device_list import listed
from tests.rounds.lab import Box, Lab, box_id, running, until

ROOT = b"\1" * 32
SECURE = {"privacy": Privacy(secure=True, clip=1.0), "aggregation": Aggregation(weights="uniform"), "goal": 3}


def roster(*numbers: int, sequence: int = 1, root: bytes = ROOT) -> Cohort:
    return Cohort(roster=listed(root, [box_id(number) for number in numbers], sequence))


@pytest.fixture
def lab(tmp_path: Path):
    fingerprint = hashlib.sha256(public_key_of(ROOT)).digest()
    made = Lab(tmp_path, n_boxes=5, learns=("w2", "b2"), root_sha256=lambda: fingerprint)
    yield made
    made.close()


async def test_lists_that_boxes_would_refuse_are_refused_at_once(lab: Lab) -> None:
    with pytest.raises(CampaignImpossible, match="of another root"):
        await lab.create(**SECURE, cohort=roster(0, 1, 2, root=os.urandom(32)))
    with pytest.raises(BadMessage, match="does not parse"):
        await lab.create(**SECURE, cohort=Cohort(roster=b"no list"))
    with pytest.raises(CampaignImpossible, match="2 not on the device list"):
        await lab.create(**SECURE | {"goal": 4}, cohort=roster(0, 1, 2))
    await lab.create(**SECURE)
    await lab.create(**SECURE, cohort=roster(0, 1, 2, sequence=7))
    with pytest.raises(CampaignImpossible, match="sequence 6, boxes were given 7"):
        await lab.create(**SECURE, cohort=roster(0, 1, 2, sequence=6))
    with pytest.raises(CampaignImpossible, match="no masked round without one"):
        await lab.create(**SECURE)
    await lab.create(**SECURE, cohort=roster(0, 1, 2, sequence=7))
    await lab.create(goal=4)


async def test_a_masked_round_to_which_too_few_came_says_that_and_not_that_they_masked_in_vain(lab: Lab) -> None:
    async with running(lab):
        campaign = await lab.create(**SECURE, deadline_s=0.05, most_abandoned=2, cohort=roster(0, 1, 2))
        course = lab.desk.courses[campaign]
        await until(lambda: course.row.state == "stalled")
    assert course.row.reason == (
        "round 1 was begun 2 times, 0 boxes came together and 3 are needed: are there boxes that may take part?"
    )


async def test_a_box_that_is_not_listed_gets_no_task(lab: Lab) -> None:
    campaign = await lab.create(**SECURE, cohort=roster(0, 1, 2))
    assert await Box(lab, 4).task() is None
    task = await Box(lab, 1).task()
    assert task is not None
    assert (task.campaign, task.kind) == (campaign, "secure")
