"""The tests of the rollout engine against scipy's, and what chance must mean."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloud_gateway.fleet.rollouts.statistics import binomial_tail, boxes_p, events_p, least_ranks_p, ranks_p, usual_most


@given(st.integers(1, 10**6), st.floats(1e-6, 1 - 1e-6), st.data())
def test_binomial_tail_is_scipys(n, p, data):
    k = data.draw(st.integers(0, min(n, int(n * p * 2) + 3)))
    assert binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-6, abs=1e-12)


@given(st.integers(0, 9), st.integers(0, 40), st.integers(0, 9), st.integers(0, 400))
def test_boxes_are_tested_as_fisher_does(new, spare_new, old, spare_old):
    table = [[new, spare_new], [old, spare_old]]
    expected = stats.fisher_exact(table, alternative="greater")[1] if new + spare_new and old + spare_old else 1.0
    assert boxes_p(new, new + spare_new, old, old + spare_old) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("tied", [False, True])
def test_ranks_are_scipys(seed, tied):
    rng = random.Random(seed)
    draw = (lambda shift: float(rng.randint(0, 4) + shift)) if tied else (lambda shift: rng.gauss(shift / 2, 1))
    new = [draw(1) for _ in range(rng.randint(2, 15))]
    old = [draw(0) for _ in range(rng.randint(2, 20))]
    if tied and len(set(new + old)) in (1, len(new + old)):
        pytest.skip("no ties, or nothing but ties")
    expected = stats.mannwhitneyu(new, old, alternative="greater", method="asymptotic" if tied else "exact").pvalue
    assert ranks_p(new, old) == pytest.approx(expected, rel=1e-9)


def test_with_few_boxes_the_rank_test_says_what_it_can_say_at_most():
    assert ranks_p([9.0, 8.0], [1.0]) == pytest.approx(1 / 3) == pytest.approx(least_ranks_p(2, 1))
    assert ranks_p([], [1.0]) == 1.0
    assert ranks_p([1.0], []) == 1.0
    assert ranks_p([2.0, 2.0], [2.0]) == 1.0


def test_events_without_runs_say_nothing():
    assert events_p(5, 10, 0, 0) == 1.0
    assert events_p(0, 10, 0, 10) == 1.0
    assert events_p(20, 1000, 10, 1000) == pytest.approx(stats.binom.sf(19, 30, 0.5))


@pytest.mark.parametrize("mean", [0.3, 7.0, 499.0, 501.0, 745.0, 1000.0, 20_000.0])
def test_what_is_usual_of_many_boxes_is_a_poisson_quantile(mean):
    assert usual_most(mean, 0.05) == pytest.approx(stats.poisson.ppf(0.95, mean), abs=1)
