"""What a box remembers of masked rounds: one input a step for good, what it cost, and who may come again."""

import asyncio
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest

from edge_agent.learning import outcomes
from edge_agent.learning.records import CampaignNote, Waiting
from edge_agent.learning.secure_task import SecureTasks
from edge_agent.learning.store import LearningStore
from edge_agent.outbox.place import Place
from edge_agent.trust.identity import BoxKey
from hybrid.errors import BadMessage, CampaignImpossible
from hybrid.federated.layout import Layout
from hybrid.federated.messages import SecureAnswer, Task, Terms, Weights
from hybrid.federated.secure.invitation import Invitation
from hybrid.federated.secure.task import SecureTask
from tests.federated.secure.test_composed import Desk

LAYOUT = Layout(names=("w",), shapes=((4,),))
TERMS = Terms(model="m", artifact_digest="a" * 64, variant="v", layout=LAYOUT, is_uniform=True, noise=2.0)


@pytest.fixture
def store(tmp_path):
    found = LearningStore(Place(folder=tmp_path))
    found.open("gateway")
    yield found
    found.close()


def test_no_way_back_to_a_step_that_was_masked(store) -> None:
    """A gateway that goes on and then back, or names a campaign by a wildcard, gets no second input of a step."""
    for campaign, step in (("one", 5), ("one", 6), ("two", 3), ("%", 0), ("_ne", 0), ("one", 2)):
        store.note_masked(step, CampaignNote(id=campaign, terms=TERMS), {})
    assert [store.n_masked("one", step) for step in (0, 4, 5, 6)] == [1] * 4
    assert [store.n_masked("two", step) for step in (3, 4)] == [1, 0]
    assert store.n_masked("one", 7) == store.n_masked("three", 0) == 0
    store.close()
    store.open("another gateway")
    assert store.n_masked("one", 5) == 1


def test_an_update_that_may_have_counted_is_paid_for_though_it_is_dropped(store) -> None:
    note = CampaignNote(id="one", terms=TERMS)
    waiting = Waiting(task="t", campaign="one", step=3, form="int8", sha256=sha256(b"x").hexdigest(), n_bytes=1,
                      cost=0.25)  # fmt: skip
    store.keep(note, {}, (waiting, b"x"))
    outcomes.drop(store, "conflict", "another one counted")
    assert store.waiting is None
    assert outcomes.account_of(store, "m").cost == 0.25
    assert store.notes["one"].epsilon > 0


def task_of(step: int) -> Task:
    asked = SecureTask(campaign="one", step=step, model="m", artifact_digest="a" * 64, variant="v",
                       layout_digest=LAYOUT.digest, n_elements=4, clip_norm=1.0, element_range=1.0)  # fmt: skip
    return Task(id=f"task-{step}", campaign="one", kind="secure", weights=Weights(step=step, sha256=""), terms=TERMS,
                clip=1.0, secure=Invitation(task=asked).to_bytes())  # fmt: skip


async def taken(store, step: int, secure) -> str:
    """What a box says of a task at a gateway that answers so."""

    async def trained(*_, was_metered):
        found = SimpleNamespace(delta=np.ones(4, np.float32), loss_before=1.0, loss_after=0.5, personal=np.zeros(0))
        return SimpleNamespace(left=SimpleNamespace(residual=None)), found, bytes(16)

    key = BoxKey.fresh()
    around = SimpleNamespace(
        key=lambda: key, root_sha256=lambda: b"", epoch=lambda: "e", calls=SimpleNamespace(secure=secure)
    )
    deadline_s = asyncio.get_running_loop().time() + 0.3
    return await SecureTasks(store, around, SimpleNamespace(trained=trained)).take(
        task_of(step), TERMS, None, deadline_s, was_metered=False
    )


async def test_a_model_too_large_for_one_message_is_refused_at_once(tmp_path) -> None:
    with pytest.raises(CampaignImpossible, match="7000000 elements for sums of 6 boxes has 9625000 bytes"):
        Desk(tmp_path, n_elements=7_000_000)


async def test_who_masked_nothing_is_not_done_with_the_step(store, monkeypatch) -> None:
    monkeypatch.setattr("edge_agent.learning.masked.PAUSE_S", 0.001)

    async def went_on(_call):
        return SecureAnswer(state="excluded", reason="the round went on without this box")

    async def waits(_call):
        await asyncio.sleep(60)

    async def refuses(_call):
        raise BadMessage("whatever it brings")

    for answers, said in ((went_on, ""), (waits, ""), (refuses, "whatever it brings")):
        assert await taken(store, 1, answers) == said
        assert not store.done
        assert outcomes.account_of(store, "m").cost == 0.0
    store.note_masked(2, CampaignNote(id="one", terms=TERMS), {})
    assert "masked an input for this step before" in await taken(store, 1, went_on)
