"""A running estimate follows what it measures, and moves at once where that changed."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cost.running import RunningEstimate


def observed(samples: list[float]) -> RunningEstimate:
    estimate = RunningEstimate()
    for at_s, sample in enumerate(samples):
        estimate.observe(sample, float(at_s))
    return estimate


def test_is_unknown_before_the_first_sample_and_after_forgetting() -> None:
    estimate = observed([2.0])
    assert estimate.value == pytest.approx(2.0)
    estimate.forget()
    assert estimate.value is None


def test_noise_of_twenty_percent_stays_within_ten() -> None:
    seeded = random.Random(7)
    estimates = [observed([0.040 * math.exp(seeded.gauss(0, 0.2)) for _ in range(60)]) for _ in range(50)]
    errors = sorted(abs((estimate.value or 0.0) / 0.040 - 1) for estimate in estimates)
    assert errors[len(errors) // 2] < 0.1
    assert all(0.05 < estimate.spread_ratio < 0.4 for estimate in estimates)


def test_a_sample_after_a_long_pause_is_believed_at_once() -> None:
    estimate = observed([1.0] * 20)
    estimate.observe(5.0, 60.0)
    assert estimate.value == pytest.approx(5.0)
    assert estimate.epoch == 1


def test_light_samples_move_it_little_and_are_no_change_points() -> None:
    light, full = observed([1.0] * 20), observed([1.0] * 20)
    for at_s in (20.5, 21.0):
        light.observe(1.4, at_s, weight=0.05)
        full.observe(1.4, at_s)
    assert light.value is not None
    assert full.value is not None
    assert light.value - 1 < 0.1 * (full.value - 1)
    light.observe(50.0, 21.5, weight=0.05)
    light.observe(50.0, 22.0, weight=0.05)
    assert light.epoch == 0


def test_the_first_sample_gives_way_to_a_weightier_one() -> None:
    estimate = RunningEstimate()
    estimate.observe(100.0, 0.0, weight=0.02)
    estimate.observe(1.0, 0.1)
    assert estimate.value == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("factor", [0.1, 0.4, 3.0, 20.0])
def test_a_change_is_followed_within_three_samples(factor: float) -> None:
    seeded = random.Random(11)
    steady = [1.0 * math.exp(seeded.gauss(0, 0.05)) for _ in range(50)]
    estimate = observed([*steady, factor, factor, factor])
    assert estimate.value == pytest.approx(factor, rel=0.2)


def test_one_outlier_moves_a_steady_estimate_little() -> None:
    assert observed([1.0] * 50 + [10.0]).value == pytest.approx(1.0)


@given(st.lists(st.floats(1e-7, 1e7), min_size=1, max_size=40))
def test_stays_between_the_least_and_the_largest_sample(samples: list[float]) -> None:
    value = observed(samples).value
    assert value is not None
    assert min(samples) * 0.999 <= value <= max(samples) * 1.001
