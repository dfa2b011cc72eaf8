"""A rounds.db that lost rows, bytes or all of itself: the gateway starts, goes on with what is sound, says the rest."""

import random
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.rounds.messages import PromoteWish
from hybrid.errors import CorruptContent, HybridError
from hybrid.federated.campaign import Coding, Promotion
from tests.rounds.lab import Box, Lab, running, until
from tests.rounds.test_thin_path import evaluation_set

PLAIN = Coding(up="float32", down="float32")


async def two_campaigns(folder: Path) -> tuple[str, str]:
    """One at step 1 with an update in its open round, and one that ended; the gateway has stopped."""
    lab = Lab(folder, n_boxes=2, learns=("w2", "b2"))
    async with running(lab):
        first = await lab.create(coding=PLAIN, goal=2, rounds=1)
        for at in range(2):
            await Box(lab, at).once(first)
        await until(lambda: first not in lab.desk.courses)
        second = await lab.create(coding=PLAIN, goal=2, rounds=5)
        for at in (0, 1, 0):
            if at == 0:
                await until(lambda: not lab.desk.courses[second].closing)
            await Box(lab, at).once(second)
        await until(lambda: lab.desk.courses[second].row.step == 1)
        await Box(lab, 0).once(second)
    lab.close()
    return first, second


@pytest.mark.parametrize(
    ("damage", "state", "why"),
    [
        ("UPDATE campaign SET body = X'7b226964' WHERE id = ?", "lost", "the database of campaigns was damaged"),
        ("DELETE FROM round WHERE campaign = ?", "failed", "the row of round 2 is gone or damaged"),
        ("UPDATE round SET body = X'7b00ff' WHERE number = 2 AND campaign = ?", "failed", "the row of round 2"),
        ("UPDATE received SET body = X'ff00' WHERE step = 1 AND campaign = ?", "failed", "an update for step 1"),
        ("UPDATE round SET body = X'7b00ff' WHERE number = 1 AND campaign = ?", "running", ""),
    ],
)
async def test_a_damaged_row_costs_its_campaign_at_most(tmp_path: Path, damage: str, state: str, why: str) -> None:
    ended, campaign = await two_campaigns(tmp_path)
    with sqlite3.connect(tmp_path / "rounds" / "rounds.db") as db:
        assert db.execute(damage, (campaign,)).rowcount
    db.close()
    for _ in range(2):  # and it stays so at the next start
        lab = Lab(tmp_path, n_boxes=2)
        view = await lab.shown(campaign)
        assert (view.state, view.step) == (state, 1)
        assert why in view.reason
        assert (await lab.shown(ended)).state == "completed"
        assert {each.id for each in (await lab.rounds.public.listed()).campaigns} == {ended, campaign}
        lab.close()
        assert lab.alarms == (["campaign_failed"] if state != "running" and not _ else [])


@pytest.mark.parametrize("is_emptied", [True, False])
async def test_a_database_that_is_gone_loses_nothing_silently(tmp_path: Path, is_emptied: bool) -> None:
    ended, campaign = await two_campaigns(tmp_path)
    path = tmp_path / "rounds" / "rounds.db"
    if is_emptied:
        path.write_bytes(b"")
    else:
        path.unlink()
    lab = Lab(tmp_path, n_boxes=2)
    views = {view.id: (view.state, view.step) for view in (await lab.rounds.public.listed()).campaigns}
    assert views == {ended: ("lost", 1), campaign: ("lost", 1)}
    assert list(views) == [ended, campaign], "the oldest first, as ever"
    assert lab.alarms == ["rounds_lost"]
    lab.close()


async def test_flipped_bytes_never_keep_the_gateway_from_starting(tmp_path: Path) -> None:
    known = set(await two_campaigns(tmp_path))
    path = tmp_path / "rounds" / "rounds.db"
    sound, rng = path.read_bytes(), random.Random(12)
    n_changed = 0
    for _ in range(40):
        damaged = bytearray(sound)
        at = rng.randrange(100, len(damaged))
        for place in range(at, min(at + rng.choice((1, 40)), len(damaged))):
            damaged[place] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        lab = Lab(tmp_path, n_boxes=2)
        listed = (await lab.rounds.public.listed()).campaigns
        assert {view.id for view in listed} == known
        n_changed += {view.state for view in listed} != {"completed", "running"}
        for campaign in known:
            with suppress(HybridError):
                await lab.rounds.public.report(campaign)
        lab.close()
        for left in path.parent.glob("rounds.db*"):
            left.unlink()
    assert n_changed


async def test_a_step_before_a_damaged_one_may_still_become_a_version(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    promotion = Promotion(policy="none", cohort_evaluation=False)
    async with running(lab):
        campaign = await lab.create(coding=PLAIN, goal=2, rounds=9, promotion=promotion)
        for step in (1, 2):
            for at in range(2):
                await Box(lab, at).once(campaign)
            await until(lambda step=step: lab.desk.courses[campaign].row.step == step)
    lab.close()
    path = tmp_path / "rounds" / campaign / "steps" / "00000002.step"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    lab = Lab(tmp_path, n_boxes=2)
    assert lab.alarms == ["campaign_failed"]
    async with running(lab):
        assert (await lab.shown(campaign)).state == "failed"
        with pytest.raises(CorruptContent):
            await lab.rounds.promote(campaign, PromoteWish())
        await lab.rounds.promote(campaign, PromoteWish(step=1))
        await until(lambda: campaign not in lab.desk.courses)
        assert [view.state for view in (await lab.shown(campaign)).promotions] == ["candidate"]
    lab.close()


def test_a_damaged_rounds_key_is_told_with_what_to_do(tmp_path: Path) -> None:
    Lab(tmp_path, n_boxes=2, learns=("w2", "b2")).close()
    (tmp_path / "rounds" / "rounds.key").write_bytes(b"no key")
    with pytest.raises(CorruptContent, match="key is damaged") as told:
        Lab(tmp_path, n_boxes=2)
    assert "backup" in str(told.value.advice)


async def test_an_evaluation_set_that_the_disk_damaged_ends_the_campaign_with_the_reason(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    digest = evaluation_set(lab, np.zeros((8, 64), np.float32), np.zeros(8, np.int64))
    campaign = await lab.create(digest, coding=PLAIN, goal=2, rounds=2)
    lab.close()
    path = tmp_path / "rounds" / "evaluation" / f"{digest}.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    lab = Lab(tmp_path, n_boxes=2)
    async with running(lab):
        for at in range(2):
            await Box(lab, at).once(campaign)
        await until(lambda: campaign not in lab.desk.courses)
        view = await lab.shown(campaign)
    lab.close()
    assert (view.state, view.reason) == (
        "failed", f"the disk has damaged the evaluation set {digest[:16]}…; upload it again",
    )  # fmt: skip
    assert [each.state for each in view.rounds] == ["abandoned"]
