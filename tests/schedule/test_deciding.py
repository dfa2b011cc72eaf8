"""The decision: the cheapest of everything, deterministic, replayable, true to the constraints, and not hasty."""

import math
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from hybrid.cost.residuals import lognormal
from hybrid.schedule.beliefs import Decision, DecisionRecord, GatewayBelief, Inputs, LogLine, TableRecord
from hybrid.schedule.deciding import agrees, decide, replay
from hybrid.schedule.hedge import Race, best_hedge
from hybrid.schedule.options import Objective
from hybrid.schedule.plan import GUARD_RATIO, K_SIGMA
from hybrid.schedule.prices import PRICES, prices_for
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.table import Table
from hybrid.schedule.weighing import Weighing

LOCAL = Prospect(placement="local", head_s=0.2)
OFFLOAD = Prospect(placement="offload", codec="jpeg", gateway="g", encode_s=0.003, bytes_up=28_000, bytes_down=2_000,
                   tail_s=0.01, raw_input=True)  # fmt: skip
SPLIT = Prospect(placement="split", cut="c" * 16, codec="q8", gateway="g", head_s=0.05, bytes_up=9_000,
                 bytes_down=2_000, tail_s=0.008)  # fmt: skip
GOOD = GatewayBelief(url="g", rtt_s=0.02, uplink_bps=20e6, downlink_bps=40e6, points=lognormal(0.2))
POOR = changed(GOOD, rtt_s=0.08, uplink_bps=0.6e6, downlink_bps=2e6)


def asked(table: Table, *gateways: GatewayBelief, objective: Objective = "latency", **changes: object) -> Inputs:
    known = Inputs(table=table.id, now_s=100.0, prices=PRICES[objective], gateways=gateways or (GOOD,))
    return changed(known, **changes)


def drawn(rng: random.Random, n_cuts: int = 6, gateways: tuple[str, ...] = ("g", "h")) -> Table:
    """A table of prospects at random, with codecs, gateways, a local variant and some own rests."""
    far = [
        Prospect(
            placement="split",
            cut=f"{cut:016x}",
            codec=codec,
            gateway=rng.choice(gateways),
            head_s=rng.uniform(0.0, 0.2),
            encode_s=rng.uniform(0.0, 0.005),
            bytes_up=rng.randrange(100, 400_000),
            bytes_down=rng.randrange(100, 50_000),
            tail_s=rng.uniform(0.001, 0.1),
            rest_s=rng.choice([None, rng.uniform(0.01, 0.2)]),
            accuracy_drop=rng.choice([0.0, 0.005, 0.05, None]),
            raw_input=rng.random() < 0.3,
        )
        for cut in range(n_cuts)
        for codec in ("none", "q8", "q4")
    ]
    variant = Prospect(placement="local", variant="int8", head_s=rng.uniform(0.02, 0.3), accuracy_drop=0.004)
    return Table((replace(LOCAL, head_s=rng.uniform(0.02, 0.5)), variant, *far))


def drawn_inputs(rng: random.Random, table: Table) -> Inputs:
    def gateway(url: str) -> GatewayBelief:
        return GatewayBelief(
            url=url,
            rtt_s=rng.uniform(0.001, 0.3),
            uplink_bps=10 ** rng.uniform(5.5, 8.5),
            downlink_bps=10 ** rng.uniform(5.5, 8.5),
            up_window_bytes=rng.choice([1e18, 14_480.0]),
            down_window_bytes=rng.choice([1e18, 14_480.0]),
            speed_ratio=rng.uniform(0.5, 4.0),
            queue_s=rng.choice([0.0, rng.uniform(0.0, 0.1)]),
            points=tuple(sorted(rng.lognormvariate(0, 0.4) for _ in range(8))),
            failure_ratio=rng.choice([0.005, 0.3]),
            is_usable=rng.random() < 0.9,
        )

    return asked(
        table,
        gateway("g"),
        gateway("h"),
        objective=rng.choice(list(PRICES)),
        device_speed_ratio=rng.uniform(0.5, 3.0),
        device_spread_ratio=rng.uniform(0.0, 0.2),
        n_device_runs=rng.choice([0, 0, 1]),
        n_cores=rng.choice([1, 4]),
        attempt_s=rng.choice([0.0, 0.01]),
        n_in_flight=rng.choice([0, 0, 2]),
        deadline_left_s=rng.choice([None, rng.uniform(0.05, 0.6)]),
        constraints=Constraints(raw_input_may_leave=rng.random() < 0.7, max_accuracy_drop=0.01),
    )


@pytest.mark.parametrize("seed", range(60))
def test_the_plan_is_the_cheapest_of_all(seed: int) -> None:
    rng = random.Random(seed)
    table = drawn(rng)
    inputs = drawn_inputs(rng, table)
    decision = decide(inputs, table)
    weighing = Weighing(inputs, table)
    plans = [plan for index in range(len(table.prospects)) if (plan := weighing.plan_of(index)) is not None]
    cheapest = min(plans, key=lambda plan: plan.cost)
    assert decision.cost == pytest.approx(cheapest.cost, rel=1e-9)
    bounds = {row: bound for found, rows in weighing.bounds() for bound, row in zip(found, rows, strict=True)}
    for row, index in enumerate(table.remote):
        plan = weighing.plan_of(index)
        if plan is not None and row in bounds:
            assert bounds[row] <= plan.cost * (1 + 1e-9), "a bound is never above the cost"


def test_cost_of_a_remote_plan_is_what_the_page_says() -> None:
    """`docs/scheduler.md`, written out for one plan with every term in it."""
    belief = changed(GOOD, queue_s=0.004, speed_ratio=1.5, backlog_s=0.01, failure_ratio=0.02)
    table = Table((LOCAL, SPLIT))
    inputs = asked(table, belief, objective="energy", device_speed_ratio=1.2)
    prices, power = inputs.prices, inputs.power
    up_s, down_s = 8 * SPLIT.bytes_up / 20e6, 8 * SPLIT.bytes_down / 40e6
    remote_s = 0.02 + 0.01 + up_s + down_s + 0.004 + 1.5 * 0.008
    here_s, rest_s = 1.2 * 0.05, 1.2 * 0.2
    race = Race(
        remote_s=[remote_s * point for point in belief.points],
        rest_s=rest_s,
        failure_ratio=0.02,
        time_price=1 + prices.s_per_j * power.idle_w,
        work_price=prices.s_per_j * (power.compute_w - power.idle_w),
        latest_s=max(3 * remote_s, remote_s + 0.5),
    )
    hedge_s, cost = best_hedge(race)
    radio_j = (power.transmit_w - power.idle_w) * up_s + (power.receive_w - power.idle_w) * down_s
    paid = here_s * (1 + prices.s_per_j * power.compute_w) + prices.s_per_j * radio_j
    paid += prices.s_per_byte * (SPLIT.bytes_up + SPLIT.bytes_down)
    plan = Weighing(inputs, table).plan_of(1)
    assert plan is not None
    assert plan.cost == pytest.approx(paid + cost)
    assert plan.hedge_s == pytest.approx(hedge_s)
    assert plan.remote_s == pytest.approx(remote_s)


@pytest.mark.parametrize("seed", range(20))
def test_a_record_replays_to_the_same_decision(seed: int) -> None:
    rng = random.Random(seed)
    table = drawn(rng)
    inputs = changed(drawn_inputs(rng, table), current=rng.randrange(len(table.prospects)), regret_s=rng.random() * 0.1)
    decision = decide(inputs, table)
    lines = [msgspec.json.encode(table.record()), msgspec.json.encode(DecisionRecord(decision=decision))]
    read_table, read = (msgspec.json.decode(line, type=LogLine) for line in lines)
    assert isinstance(read_table, TableRecord)
    assert isinstance(read, DecisionRecord)
    again = Table(read_table.prospects)
    assert again.id == table.id
    assert read.decision.inputs is not None
    assert replay(read.decision.inputs, again) == decision == read.decision


def test_a_record_of_another_table_is_refused() -> None:
    table, other = Table((LOCAL, OFFLOAD)), Table((LOCAL, SPLIT))
    with pytest.raises(ValueError, match="find its line in the log"):
        replay(asked(other), table)


@pytest.mark.parametrize("seed", range(30))
def test_raw_input_stays_and_accuracy_holds_whatever_else(seed: int) -> None:
    rng = random.Random(seed)
    table = drawn(rng)
    constraints = Constraints(raw_input_may_leave=False, max_accuracy_drop=0.004, uplink_left_bytes=50_000.0)
    inputs = changed(drawn_inputs(rng, table), constraints=constraints, current=rng.randrange(len(table.prospects)))
    chosen = table.prospects[decide(changed(inputs, saved=1e9, is_changed=True), table).index]
    assert not chosen.raw_input
    assert chosen.accuracy_drop is not None
    assert chosen.accuracy_drop <= 0.004
    assert chosen.bytes_up <= 50_000


@pytest.mark.parametrize(
    ("gateway", "placement"), [(GOOD, "offload"), (POOR, "local"), (changed(GOOD, is_usable=False), "local")]
)
def test_the_link_decides(gateway: GatewayBelief, placement: str) -> None:
    table = Table((LOCAL, OFFLOAD, SPLIT))
    assert table.prospects[decide(asked(table, gateway), table).index].placement == placement


def test_what_is_not_measured_is_never_chosen() -> None:
    for unknown in (replace(OFFLOAD, tail_s=None), replace(OFFLOAD, head_s=None), replace(OFFLOAD, gateway="other")):
        table = Table((LOCAL, unknown))
        assert decide(asked(table), table).index == 0
    table = Table((LOCAL, OFFLOAD, replace(OFFLOAD, codec="small", bytes_up=3_000)))
    no_rate = changed(GOOD, uplink_bps=None, downlink_bps=None)
    assert decide(asked(table, no_rate), table).index == 2, "a small message takes a round trip, whatever the rate"


def test_latency_races_on_an_idle_device_and_waits_on_a_busy_one_or_on_battery() -> None:
    table = Table((LOCAL, OFFLOAD))
    idle = decide(asked(table), table)
    assert (idle.index, idle.hedge_s) == (1, 0.0)
    for changes in ({"n_in_flight": 1}, {"n_device_runs": 1}, {"prices": prices_for("latency", on_battery=True)}):
        busy = decide(asked(table, **changes), table)
        assert busy.index == 1
        assert busy.hedge_s is not None
        assert busy.hedge_s > 0.03


def test_energy_and_bytes_hedge_late_and_throughput_takes_the_slowest_stage() -> None:
    table = Table((LOCAL, OFFLOAD, SPLIT))
    late = decide(asked(table, objective="energy"), table)
    assert late.index == 1
    assert late.hedge_s is not None
    assert late.hedge_s > late.remote_s
    assert decide(asked(table, objective="bytes"), table).index != 1, "28 kB are worth more than the time they save"
    slow_tail = replace(SPLIT, cut="d" * 16, head_s=0.01, tail_s=0.06)
    table = Table((LOCAL, SPLIT, slow_tail))
    assert decide(asked(table, objective="throughput"), table).index == 1, "0.05 s here beat 0.06 s there"
    far = asked(table, changed(GOOD, rtt_s=0.5), objective="throughput")
    assert decide(far, table).index == 1, "a long round trip is no stage"


def test_encoding_delays_the_local_run_of_a_race_on_one_core_only() -> None:
    slow_encode = replace(OFFLOAD, encode_s=0.05)
    table = Table((LOCAL, slow_encode))
    belief = changed(GOOD, uplink_bps=1.2e6)
    for n_cores, expected_s in ((1, 0.05 + 0.2), (4, 0.2)):
        plan = Weighing(asked(table, belief, n_cores=n_cores), table).plan_of(1)
        assert plan is not None
        assert plan.hedge_s == 0.0
        assert plan.predicted_s == pytest.approx(expected_s)
    alone = Weighing(asked(table, n_cores=4, objective="energy"), table).plan_of(1)
    assert alone is not None
    assert alone.predicted_s == pytest.approx(0.05 + alone.remote_s, rel=0.05), "without a race the parts add up"


def test_a_guarded_plan_is_never_much_later_than_the_device_alone() -> None:
    table = Table((LOCAL, OFFLOAD))
    decision = decide(asked(table, prices=changed(PRICES["latency"], s_per_j=0.5)), table)
    assert decision.index == 1
    assert decision.hedge_s is not None
    assert OFFLOAD.encode_s + decision.hedge_s <= GUARD_RATIO * 0.2 + 1e-9


def test_a_local_variant_takes_the_place_of_the_model_and_of_the_hedge() -> None:
    variant = Prospect(placement="local", variant="int8", head_s=0.05, accuracy_drop=0.005)
    table = Table((LOCAL, variant, OFFLOAD))
    assert decide(asked(table, POOR), table).index == 1
    strict = asked(table, POOR, constraints=Constraints(max_accuracy_drop=0.001))
    assert decide(strict, table).index == 0


def test_deadlines_are_kept_in_a_monte_carlo() -> None:
    """Remote times are drawn from the distribution that is believed; the device from its own spread."""
    rng = random.Random(5)
    missed = n_runs = 0
    for _ in range(150):
        table = Table((replace(LOCAL, head_s=rng.uniform(0.03, 0.2)), OFFLOAD, SPLIT))
        sigma, deadline_s = rng.uniform(0.1, 0.5), rng.uniform(0.26, 0.5)
        belief = changed(GOOD, uplink_bps=10 ** rng.uniform(6, 7.5), points=lognormal(sigma), failure_ratio=0.05)
        inputs = asked(table, belief, objective=rng.choice(["latency", "energy"]), deadline_left_s=deadline_s)
        decision = decide(changed(inputs, device_spread_ratio=0.03), table)
        prospect = table.prospects[decision.index]
        for _ in range(40):
            slow = math.exp(rng.gauss(0, 0.0375))
            total_s = slow * ((prospect.head_s or 0.0) + prospect.encode_s)
            if decision.index:
                is_lost = rng.random() < 0.05
                remote_s = math.inf if is_lost else decision.remote_s * rng.lognormvariate(0, sigma)
                assert decision.hedge_s is not None
                total_s += min(remote_s, decision.hedge_s + slow * (table.prospects[0].head_s or 0.0))
            n_runs += 1
            missed += total_s > deadline_s
    assert missed / n_runs <= 1 / (1 + K_SIGMA**2) / 10


def test_where_no_plan_keeps_the_deadline_the_least_late_one_is_taken() -> None:
    table = Table((LOCAL, OFFLOAD))
    assert decide(asked(table, deadline_left_s=0.05), table).index == 1
    assert decide(asked(table, POOR, deadline_left_s=0.05), table).index == 0


# -- keeping a plan

RIVALS = (replace(OFFLOAD, codec="a"), replace(OFFLOAD, codec="b", bytes_up=25_000))


def test_a_plan_that_is_nearly_as_good_is_kept_and_its_regret_adds_up() -> None:
    table = Table((LOCAL, *RIVALS))
    inputs = asked(table, current=1, current_since_s=0.0)
    kept = decide(inputs, table)
    assert (kept.index, kept.best, kept.is_switch) == (1, 2, False)
    assert kept.regret_s > 0
    n_requests = 0
    while not (decision := decide(inputs, table)).is_switch:
        inputs = changed(inputs, regret_s=decision.regret_s)
        n_requests += 1
    assert decision.index == 2
    assert 2 < n_requests < 60, "the sum of regrets stays within about one request"


def test_a_plan_that_was_just_taken_up_is_left_more_slowly() -> None:
    table = Table((LOCAL, *RIVALS))

    def n_requests(since_s: float) -> int:
        inputs, n = asked(table, current=1, current_since_s=since_s), 0
        while not (decision := decide(inputs, table)).is_switch:
            inputs, n = changed(inputs, regret_s=decision.regret_s), n + 1
        return n

    assert n_requests(99.0) > 2 * n_requests(0.0)


def test_what_jumped_is_left_at_once() -> None:
    table = Table((LOCAL, *RIVALS))
    assert decide(asked(table, current=1, current_since_s=99.9, is_changed=True), table).is_switch
    assert decide(asked(table, current=0, current_since_s=99.9), table).is_switch, "so much dearer is no noise"
    assert decide(asked(table, changed(GOOD, is_usable=False), current=1, current_since_s=99.9), table).index == 0


def test_a_trial_is_made_when_enough_was_saved_and_never_where_it_cannot_matter() -> None:
    table = Table((LOCAL, OFFLOAD))
    silent = changed(POOR, silent_s=5.0)
    assert not decide(asked(table, silent, current=0, saved=0.01, objective="energy"), table).is_trial
    trial = decide(asked(table, silent, current=0, saved=100.0, objective="energy"), table)
    assert (trial.index, trial.is_trial, trial.is_switch) == (1, True, False)
    assert trial.trial_cost > 0
    heard = changed(POOR, silent_s=0.2)
    assert not decide(asked(table, heard, current=0, saved=100.0, objective="energy"), table).is_trial
    assert not decide(asked(table, silent, current=0, saved=100.0, objective="bytes"), table).is_trial


BAD = changed(GOOD, uplink_bps=0.3e6, downlink_bps=1e6, points=lognormal(0.05), likely_ratio=40.0)
"""A link that has been much better than it is now."""


def test_a_race_that_costs_nothing_is_run_while_the_link_may_be_good_again() -> None:
    table = Table((LOCAL, OFFLOAD, SPLIT))
    idle = asked(table, BAD, current=0, n_cores=4, rule=2)
    raced = decide(idle, table)
    assert (raced.index, raced.hedge_s, raced.is_trial, raced.is_switch) == (1, 0.0, True, False)
    for changes in (
        {"rule": 1},
        {"n_cores": 1},
        {"n_in_flight": 1},
        {"n_device_runs": 1},
        {"prices": PRICES["energy"]},
        {"prices": prices_for("latency", on_battery=True)},
        {"gateways": (changed(BAD, likely_ratio=1.0),)},
        {"gateways": (changed(BAD, backlog_s=0.2),)},
        {"constraints": Constraints(raw_input_may_leave=False)},
    ):
        assert decide(changed(idle, **changes), table).index == 0, changes


@given(st.integers(0, 10_000))
def test_deciding_is_deterministic(seed: int) -> None:
    rng = random.Random(seed)
    table = drawn(rng, n_cuts=2)
    inputs = drawn_inputs(rng, table)
    assert decide(inputs, table) == decide(inputs, table)


def test_the_first_prospect_is_the_device() -> None:
    with pytest.raises(ValueError, match="whole model on this device"):
        Table((OFFLOAD, LOCAL))


LOGGED = Path(__file__).parent / "decisions_of_rule_1.jsonl"
"""Decisions of an earlier version, as a session logged them: drawn ones, and some of simulated streams with trials."""


def test_decisions_of_earlier_versions_are_replayed_to_the_same() -> None:
    tables: dict[str, Table] = {}
    n_trials = n_decisions = 0
    for line in LOGGED.read_bytes().splitlines():
        read = msgspec.json.decode(line, type=LogLine)
        if isinstance(read, TableRecord):
            tables[read.id] = Table.of(read)
            continue
        logged = read.decision
        assert logged.inputs is not None
        again = replay(logged.inputs, tables[logged.inputs.table])
        assert agrees(again, logged)
        assert (again.is_switch, again.is_trial) == (logged.is_switch, logged.is_trial)
        n_trials += logged.is_trial
        n_decisions += 1
    assert n_decisions > 30
    assert n_trials >= 3


def test_agreement_forgives_rounding_and_nothing_else() -> None:
    one = Decision(index=1, hedge_s=0.02, cost=0.5)
    assert agrees(changed(one, cost=0.5 * (1 + 1e-12)), one)
    for changes in ({"index": 2}, {"hedge_s": None}, {"cost": 0.5001}, {"cost": None}):
        assert not agrees(changed(one, **changes), one)
