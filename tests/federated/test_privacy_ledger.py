import math

import pytest

from hybrid.errors import BadMessage, CampaignImpossible, Conflict, PrivacySpent
from hybrid.federated.campaign import Aggregation, Campaign, Privacy
from hybrid.federated.privacy.account import (
    Account,
    check_campaign,
    check_round,
    has_left,
)
from hybrid.federated.privacy.accountant import cost_of, epsilon_for
from hybrid.federated.privacy.statement import Statement, read, spent_before

TERMS = Privacy(noise=4.0, clip=1.0, max_epsilon=5.0)
COST = cost_of(4.0)


def test_a_retry_or_a_restart_charges_once():
    account = Account()
    assert account.charge("a", 1, COST)
    assert not account.charge("a", 1, COST)
    again = Account.decoded(account.encoded())
    assert not again.charge("a", 1, COST)
    assert again.charge("a", 2, COST)
    assert again.cost == pytest.approx(2 * COST)
    assert account.cost == COST


def test_another_amount_for_the_same_step_is_a_conflict():
    account = Account()
    account.charge("a", 1, COST)
    with pytest.raises(Conflict, match="was charged"):
        account.charge("a", 1, 2 * COST)
    assert account.cost == COST


@pytest.mark.parametrize(("privacy", "words"), [
    ({"noise": 1e-9, "clip": 1.0}, "noise is 0"), ({"noise": 1e7, "clip": 1.0}, "noise is 0"),
    ({"noise": -1.0}, "noise is 0"), ({"noise": math.nan}, "noise is 0|finite"), ({"clip": 1e-20}, "clip norm is 0"),
    ({"clip": math.inf}, "clip norm is 0|finite"), ({"delta": 1e-310}, "delta is"), ({"delta": 1.0}, "delta is"),
    ({"max_epsilon": -1.0}, "budget of epsilon"),
    ({"secure": True, "clip": 1.0}, "1024 boxes at most"),
])  # fmt: skip
def test_what_no_accountant_and_no_sum_can_bear_is_no_campaign(privacy, words):
    order = Campaign(
        model="m", version="1", variant="v", goal=2000, privacy=Privacy(**privacy),
        aggregation=Aggregation(weights="uniform"),
    )  # fmt: skip
    with pytest.raises(CampaignImpossible, match=words):
        order.check()


def test_a_closed_campaign_keeps_its_sum_and_takes_no_more():
    account = Account()
    for step in range(3):
        account.charge("a", step, COST)
    account.charge("b", 0, 0.5)
    account.close("a")
    account.close("a")
    assert account.cost_in("a") == pytest.approx(3 * COST)
    assert account.cost_in("b") == 0.5
    assert account.cost_in("none") == 0.0
    assert account.cost == pytest.approx(3 * COST + 0.5)
    with pytest.raises(Conflict, match="closed"):
        account.charge("a", 9, COST)
    assert Account.decoded(account.encoded()) == account


@pytest.mark.parametrize("data", [
    b"", b"[]", b"\xff", b'{"schema":2}', b'{"open":{"a":{"x":1}}}', b'{"open":{"a":{"1":-1.0}}}',
    b'{"closed":{"a":1e999}}', b'{"closed":{"a":null}}', b'{"devices":[]}', b"[" * 100_000, b" " * (5 << 20),
])  # fmt: skip
def test_damaged_accounts_are_refused(data):
    with pytest.raises(BadMessage):
        Account.decoded(data)


def test_a_box_spends_only_for_what_it_took_part_in():
    often, seldom = Account(), Account()
    for step in range(20):
        often.charge("a", step, COST)
        if step % 5 == 0:
            seldom.charge("a", step, COST)
    assert epsilon_for(often.cost, 1e-5) == pytest.approx(4.983, abs=1e-3)
    assert epsilon_for(seldom.cost, 1e-5) == pytest.approx(epsilon_for(cost_of(4.0, 4), 1e-5))
    assert not has_left(TERMS, often.cost)
    assert has_left(TERMS, seldom.cost)


def test_a_round_that_goes_over_the_budget_does_not_begin():
    spent = {f"box-{k}": 20 * COST for k in range(5)} | {"fresh-1": 0.0, "fresh-2": 3 * COST}
    check_round(TERMS, spent, 2)
    with pytest.raises(PrivacySpent) as caught:
        check_round(TERMS, spent, 3)
    message = str(caught.value)
    for words in ("2 of 7 boxes", "3 are needed", "epsilon 4.98 of 5", "delta 1e-05", "to 5.13", "noise", "more noise"):
        assert words in message, words
    assert caught.value.fields["epsilon_spent"] == pytest.approx(4.983, abs=1e-3)
    assert caught.value.fields["epsilon_wanted"] > 5.0
    assert caught.value.fields["n_able"] == 2


def test_what_is_left_is_said_as_the_noise_that_would_still_fit():
    spent = dict.fromkeys("abc", 20 * COST)
    with pytest.raises(PrivacySpent) as caught:
        check_round(TERMS, spent, 3)
    noise = float(str(caught.value).partition("; noise ")[2].partition(" ")[0])
    check_round(Privacy(noise=noise, clip=1.0, max_epsilon=5.0), spent, 3)
    with pytest.raises(PrivacySpent):
        check_round(Privacy(noise=noise * 0.99, clip=1.0, max_epsilon=5.0), spent, 3)
    with pytest.raises(PrivacySpent, match="nothing is left"):
        check_round(TERMS, dict.fromkeys("abc", 30 * COST), 3)


def test_a_campaign_whose_first_round_costs_too_much_is_refused_with_the_noise_it_needs():
    with pytest.raises(PrivacySpent, match=r"for 20 rounds take noise 3\.99 or more"):
        check_campaign(Privacy(noise=0.5, clip=1.0, max_epsilon=5.0), 20)
    check_campaign(TERMS, 1000)  # more rounds than one box can pay for: others may come


@pytest.mark.parametrize("privacy", [Privacy(), Privacy(noise=4.0, clip=1.0)])
def test_without_noise_or_budget_nothing_is_refused(privacy):
    check_campaign(privacy, 10**6)
    check_round(privacy, {"a": 1e9}, 1)
    assert has_left(privacy, 1e9)


# ---------------------------------------------------------------------------------------------------------- statement


def test_a_versions_statement_is_read_as_it_was_written():
    said = Statement(rounds=20, boxes=10, secure=True, delta=1e-5, cost=cost_of(4.0, 20))
    assert said.detail().startswith("learned rounds=20 boxes=10 secure=yes epsilon=4.984 delta=1e-05 mu=1.118")
    again = read(said.detail())
    assert again is not None
    assert again.cost == pytest.approx(said.cost, rel=1e-15)
    assert (again.rounds, again.boxes, again.secure, again.delta) == (20, 10, True, 1e-5)


def test_without_noise_a_version_promises_nothing_ever_after():
    open_one = Statement(rounds=3, boxes=10, secure=False, delta=1e-5, cost=math.inf)
    assert "epsilon=inf" in open_one.detail()
    assert spent_before([open_one.detail()]) == math.inf


def test_a_lineage_adds_up():
    first = Statement(rounds=10, boxes=9, secure=False, delta=1e-5, cost=cost_of(4.0, 10))
    before = spent_before(["quantized int8", first.detail(), "promoted by hand"])
    second = Statement(rounds=10, boxes=9, secure=False, delta=1e-5, cost=before + cost_of(4.0, 10))
    assert second.epsilon == pytest.approx(4.983, abs=1e-3)
    assert spent_before([]) == 0.0
    assert read("quantized int8") is None


@pytest.mark.parametrize("detail", [
    "learned", "learned rounds=1", "learned rounds=x boxes=1 secure=no epsilon=1 delta=1e-5 mu=1",
    "learned rounds=1 boxes=1 secure=maybe epsilon=1 delta=1e-5 mu=1",
    "learned rounds=1 boxes=1 secure=no epsilon=1 delta=2 mu=1",
    "learned rounds=1 boxes=1 secure=no epsilon=1 delta=1e-5 mu=-1",
    "learned rounds=1 boxes=1 secure=no epsilon=1 delta=1e-5 mu=nan",
])  # fmt: skip
def test_a_broken_statement_is_refused(detail):
    with pytest.raises(BadMessage):
        read(detail)
