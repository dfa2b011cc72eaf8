"""What follows from what became of an update: the residual, the control variate, what privacy it cost."""

from typing import Final

import msgspec
import numpy as np

from edge_agent.learning.records import CampaignNote, Outcome, Waiting
from edge_agent.learning.store import LearningStore, Vectors
from hybrid.errors import BadMessage, Conflict
from hybrid.federated.messages import UpdateAnswer
from hybrid.federated.privacy.account import Account
from hybrid.federated.privacy.accountant import epsilon_for

_AGAIN: Final = "/again"
"""Behind the id of a campaign that was over and is not: a gateway went back."""

_NOT_AGAIN = ("norm", "finite")
"""Gates whose refusal says that the same content would be refused again."""


def settled_with_next(store: LearningStore, answer: UpdateAnswer) -> bool:
    """Let go of an update that counted, in memory, where the next task writes soon enough; whether that was done."""
    waiting = store.waiting
    note = store.notes.get(waiting.campaign) if waiting is not None else None
    if waiting is None or note is None or answer.state != "accepted":
        return False
    is_followed = answer.next is not None and answer.next.task is not None
    if not is_followed or waiting.cost > 0 or note.terms.scaffold:
        return False
    return store.settle_with_next("accepted", _counted(note, waiting))


def settle(store: LearningStore, answer: UpdateAnswer) -> None:
    """Let go of the update that waits, by its answer; blocks.

    What did not count goes back to the residual, unless it would only be refused once more.
    """
    waiting, outcome = store.waiting, answer.state
    note = store.notes.get(waiting.campaign) if waiting is not None else None
    if waiting is None or note is None:
        return
    if outcome == "accepted":
        note, accounts = charged(store, note, waiting)
        control, note = store.control_after(), _counted(note, waiting)
        store.settle(outcome, note, {} if control is None else {"control": control}, accounts)
        return
    said = f"an update was {outcome}" + (f": {answer.gate} {answer.reason}".rstrip() if answer.gate else "")
    note = msgspec.structs.replace(note, n_lost=note.n_lost + 1, last=said)
    store.settle(outcome, note, _returned(store, note, waiting, answer), {})


def drop(store: LearningStore, outcome: Outcome, why: str) -> None:
    """The update that waits can never be sent again: it is gone. What it may have cost counts as spent. Blocks."""
    waiting = store.waiting
    note = store.notes.get(waiting.campaign) if waiting is not None else None
    if waiting is not None and note is not None:
        note, accounts = charged(store, note, waiting)  # it may have come and counted before its answer was lost
        store.settle(outcome, msgspec.structs.replace(note, n_lost=note.n_lost + 1, last=why), {}, accounts)


def ended(store: LearningStore, campaigns: tuple[str, ...]) -> None:
    """Campaigns are over; what an update on its way may have cost of privacy counts as spent. Blocks."""
    waiting = store.waiting
    if waiting is not None and waiting.campaign in campaigns and waiting.cost > 0:
        note = store.notes.get(waiting.campaign)
        if note is not None:
            note, accounts = charged(store, note, waiting)
            store.settle("closed", note, {}, accounts)
    store.end(campaigns)


def charged(store: LearningStore, note: CampaignNote, waiting: Waiting) -> tuple[CampaignNote, dict[str, bytes]]:
    """The note and the account of its model once an update has cost what it costs."""
    return charge(store, note, waiting.step, cost=waiting.cost, delta=waiting.delta)


def charge(
    store: LearningStore, note: CampaignNote, step: int, *, cost: float, delta: float
) -> tuple[CampaignNote, dict[str, bytes]]:
    """The note and the account of its model after a release of this cost (mu squared); blocks."""
    if cost <= 0:
        return note, {}
    try:
        account = account_of(store, note.terms.model)
    except BadMessage:
        return note, {}  # it stays as it is: nothing more is spent by it
    for each in [one for one in account.open if _is_over(store, one, note)]:
        account.close(each)  # one figure: an account would else grow with every step that there ever was
    campaign = note.id
    while campaign in account.closed:
        campaign += _AGAIN
    try:
        account.charge(campaign, step, cost)
    except Conflict:  # the campaign changed its noise between two tasks of a step: both count
        account.charge(campaign, -1 - len(account.open.get(campaign, {})), cost)
    spent = msgspec.structs.replace(note, epsilon=epsilon_for(account.cost, delta))
    return spent, {note.terms.model: account.encoded()}


def _is_over(store: LearningStore, campaign: str, current: CampaignNote) -> bool:
    note = store.notes.get(campaign.partition(_AGAIN)[0])
    return (note is None or note.is_over) and campaign.partition(_AGAIN)[0] != current.id


def account_of(store: LearningStore, model: str) -> Account:
    """What this box has spent on a model; blocks. Raises `BadMessage` where the disk has damaged it."""
    content = store.account(model)
    return Account() if content is None else Account.decoded(content)


def _counted(note: CampaignNote, waiting: Waiting) -> CampaignNote:
    return msgspec.structs.replace(
        note, n_accepted=note.n_accepted + 1, n_bytes=note.n_bytes + waiting.n_bytes, last="an update counted"
    )


def _returned(store: LearningStore, note: CampaignNote, waiting: Waiting, answer: UpdateAnswer) -> Vectors:
    from hybrid.federated.box.work import given_back  # with all that training loads

    if answer.state == "rejected" and answer.gate in _NOT_AGAIN:
        return {"residual": None}
    content, left = store.update(), store.vector(waiting.campaign, "residual")
    if content is None:
        return {}
    residual = None if left is None else np.frombuffer(left, "<f4").astype(np.float32)
    found = given_back(note.terms, waiting.form, content, residual)
    return {} if found is None else {"residual": found.astype("<f4").tobytes()}
