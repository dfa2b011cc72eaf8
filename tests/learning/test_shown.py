"""What people are shown of a box's learning."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from edge_agent.learning.records import CampaignNote, Judged
from edge_agent.learning.rounds_commands import lines, summary
from edge_agent.learning.standing import CampaignStatus, LearningStatus, PersonalStatus
from edge_agent.metrics import _learning
from hybrid.federated.layout import Layout
from hybrid.federated.messages import TaskAnswer, TaskCall, Terms
from tests.learning.lab import Box, at_work, made
from tests.outbox.lab import until

TERMS = Terms(model="net", artifact_digest="d" * 64, variant="original", layout=Layout(names=("w",), shapes=((2,),)))
NOTE = CampaignNote(
    id="k3p9w2xa", terms=TERMS, step=4, n_accepted=5, n_lost=1, n_evaluated=2, n_bytes=3456, last="an update counted",
    loss_before=1.25, loss_after=0.5, epsilon=2.345,
)  # fmt: skip


def told(**more: object) -> dict:
    campaigns = (CampaignStatus.of(NOTE), CampaignStatus.of(msgspec.structs.replace(NOTE, id="old", is_over=True)))
    status = LearningStatus(**({"mode": "idle", "campaigns": campaigns} | more))
    return json.loads(msgspec.json.encode(status))


def test_a_table_of_campaigns() -> None:
    text = "\n".join(
        lines(told(waiting_bytes=77, n_unfit=3, why_unfit="no class is called 'dog'", n_stood=2, stood_s=0.004))
    )
    for words in ("k3p9w2xa  net    4", "1.250 -> 0.500", "2.35", "3456", "an update counted", "old       net    over"):
        assert words in text, words
    for words in ("77 bytes waits", "3 samples cannot be learned from, such as: no class", "2 times, at most 4 ms"):
        assert words in text, words


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "learning waits for tasks"),
        ({"lacking": "net needs torch to learn"}, "learning waits for tasks\n         net needs torch to learn"),
        ({"mode": "off"}, "learning off (setting `learn`)"),
        ({"why_not": "this box is hot: 93 °C of 100"}, "learning not now: this box is hot: 93 °C of 100"),
        ({"doing": "trains net (step 3 of k3p9w2xa)"}, "learning trains net (step 3 of k3p9w2xa)"),
    ],
)
def test_one_line(more: dict, line: str) -> None:
    assert summary(told(**more)) == line


def test_one_sample_is_one() -> None:
    assert (
        lines(told(n_unfit=1, why_unfit="no class"))[1].strip() == "1 sample cannot be learned from, such as: no class"
    )


def test_a_start_that_does_not_learn() -> None:
    assert summary({}) == "learning not in this start: crashes in a row (see problems)"
    assert lines({})[-1] == "no rounds yet"


JUDGED = Judged(
    artifact_digest="a" * 64, version="1.r20-k3p9w2xa", variant="original", answers=True, at_s=1_800_000_000.0, n=50,
    n_right=45, n_plain_right=38, layout=Layout(names=("secret",), shapes=((2,),)),
)  # fmt: skip


def test_personal_layers() -> None:
    """Since when, of which step, how they do: in the status and the table of rounds; nothing of what they are."""
    up = PersonalStatus.of(NOTE, JUDGED, is_up=True, why_not="")
    down = PersonalStatus.of(NOTE, JUDGED, is_up=False, why_not="the version is on trial")
    status = told(personal=(up, down))
    assert "secret" not in json.dumps(status)
    text = "\n".join(lines(status))
    since = "since 2027-01-15 08:00Z: 45 of 50 right, 38 without"
    assert f"personal net answers with layers of k3p9w2xa (step 20) {since}" in text
    assert "personal net answers without layers of k3p9w2xa (step 20), the version is on trial: 45 of 50 right" in text


def test_metrics() -> None:
    status = LearningStatus(mode="idle", campaigns=(CampaignStatus.of(NOTE),), n_given_up=7, waiting_bytes=9)
    found = {
        (sample.name, *sample.labels.values()): sample.value for one in _learning(status) for sample in one.samples
    }
    assert found["hybrid_agent_round_updates_total", "accepted"] == 5
    assert found["hybrid_agent_round_updates_total", "given_up"] == 7
    assert found["hybrid_agent_round_waiting_bytes",] == 9
    assert list(_learning(None)) == []


async def test_while_calls_wait_for_a_gateway_that_is_away_the_box_says_so(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    knocked, asked = asyncio.Event(), asyncio.Event()
    ask = desk.task

    async def waits(call: TaskCall) -> TaskAnswer:
        asked.set()
        await knocked.wait()
        return await ask(call)

    desk.task = waits  # type: ignore[method-assign]
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await asked.wait()
            assert box.learning.status().why_not == "", "a call that the gateway holds"
            box.is_away = True
            assert box.learning.status().why_not == "its gateway cannot be reached"
            box.is_away = False
            knocked.set()
            await until(lambda: desk.step == 3)
