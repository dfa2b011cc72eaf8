"""What a box notes of its privacy: one figure for a campaign that is over, and no new page when it is damaged."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.learning import outcomes
from edge_agent.learning.records import CampaignNote
from edge_agent.learning.store import LearningStore
from edge_agent.outbox.place import Place
from hybrid.errors import BadMessage
from hybrid.federated.layout import Layout
from hybrid.federated.messages import Terms
from tests.learning.lab import CAMPAIGN, Box, at_work, made
from tests.outbox.lab import until

TERMS = Terms(
    model="net", artifact_digest="a" * 64, variant="v", layout=Layout(names=("w",), shapes=((4,),)), noise=2.0
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LearningStore]:
    found = LearningStore(Place(folder=tmp_path))
    found.open("gateway")
    yield found
    found.close()


def spend(store: LearningStore, campaign: str, step: int) -> None:
    note = store.note(campaign, TERMS)
    note, accounts = outcomes.charge(store, note, step, cost=0.25, delta=1e-5)
    store.note_masked(step, note, accounts)


def test_campaigns_that_are_over_are_one_figure_each(store: LearningStore) -> None:
    for step in range(40):
        spend(store, "one", step)
    store.end(["one"])
    n_before = len(store.account("net") or b"")
    spend(store, "two", 0)
    account = outcomes.account_of(store, "net")
    assert (account.closed, account.open) == ({"one": 10.0}, {"two": {0: 0.25}})
    assert len(store.account("net") or b"") < n_before / 4
    for time in range(2):  # a gateway that went back asks for steps of a campaign that was over
        spend(store, "one", 7)
        store.end(["one"])
        spend(store, "two", 1 + time)
    assert outcomes.account_of(store, "net").cost == 10.0 + 3 * 0.25 + 2 * 0.25


async def test_a_damaged_account_spends_nothing_more(tmp_path: Path) -> None:
    artifact, desk = made(noise=2.0, max_epsilon=50.0)
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples, box.learning):
        await until(lambda: box.learning._opened)
        store = box.learning.store
        store.note_masked(0, CampaignNote(id="old", terms=desk.terms), {"net": b"{damaged"})
        await box.fill(20)
        await until(lambda: desk.refused)
        assert not desk.updates
        (problem,) = box.learning.problems()
        assert problem.code == "learning_account_damaged"
        assert "privacy spent on net" in problem.what
        assert "remove learning/learning.db" in problem.do
        assert CAMPAIGN not in store.notes
        with pytest.raises(BadMessage):
            outcomes.account_of(store, "net")
        note = store.note(CAMPAIGN, desk.terms)
        assert outcomes.charge(store, note, 0, cost=0.25, delta=1e-5) == (note, {}), "it stays as it is"


async def test_the_way_out_of_a_damaged_account(tmp_path: Path) -> None:
    """As the problem says it: without that file the box takes part again."""
    artifact, desk = made(noise=2.0, max_epsilon=50.0)
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(20)
        async with at_work(box.learning):
            await until(lambda: box.learning._opened)
            box.learning.store.note_masked(0, CampaignNote(id="old", terms=desk.terms), {"net": b"{damaged"})
            await until(box.learning.problems)
        for file in (tmp_path / "learning").glob("learning.db*"):
            file.unlink()
        desk.refused.clear()
        desk.salt = "again"
        async with at_work(box.started()):
            await until(lambda: desk.updates)
            assert not box.learning.problems()
