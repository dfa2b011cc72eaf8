"""The hedge time is the exact minimum of the expected cost, and behaves as the objectives want it to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cost.residuals import lognormal
from hybrid.schedule.hedge import Race, best_hedge, expected_cost

seconds = st.floats(1e-3, 2.0)
races = st.builds(
    Race,
    remote_s=st.lists(seconds, min_size=1, max_size=9).map(sorted),
    rest_s=seconds,
    failure_ratio=st.floats(0.0, 0.5),
    time_price=st.floats(0.1, 30.0),
    work_price=st.floats(0.0, 60.0),
    latest_s=st.floats(0.0, 4.0),
)


@given(races)
def test_equals_the_minimum_found_by_brute_force(race: Race) -> None:
    hedge_s, cost = best_hedge(race)
    assert 0.0 <= hedge_s <= max(0.0, race.latest_s)
    assert cost == pytest.approx(expected_cost(race, hedge_s), rel=1e-9, abs=1e-9)
    n_steps = 400
    corners = [0.0, race.latest_s, *race.remote_s, *(remote_s - race.rest_s for remote_s in race.remote_s)]
    tried = [race.latest_s * step / n_steps for step in range(n_steps + 1)]
    tried += [corner_s for corner_s in corners if 0.0 <= corner_s <= race.latest_s]
    assert cost <= min(expected_cost(race, at_s) for at_s in tried) * (1 + 1e-9) + 1e-9


def race(**changes: object) -> Race:
    known = Race(
        remote_s=[0.05 * point for point in lognormal(0.3)],
        rest_s=0.2,
        failure_ratio=0.01,
        time_price=1.0,
        work_price=0.0,
        latest_s=1.0,
    )
    return known._replace(**changes)


def test_computing_that_costs_nothing_is_a_race() -> None:
    assert best_hedge(race())[0] == 0.0


def test_dear_computing_waits_until_nearly_every_answer_has_come() -> None:
    hedge_s, _ = best_hedge(race(work_price=30.0))
    assert hedge_s >= race().remote_s[-1]


def test_the_more_often_answers_fail_the_earlier_it_starts() -> None:
    hedges_s = [best_hedge(race(work_price=1.0, failure_ratio=ratio))[0] for ratio in (0.0, 0.2, 0.5, 0.9)]
    assert hedges_s == sorted(hedges_s, reverse=True)
    assert hedges_s[0] > hedges_s[-1] == 0.0


def test_a_deadline_bounds_it() -> None:
    assert best_hedge(race(work_price=30.0, latest_s=0.03))[0] <= 0.03
