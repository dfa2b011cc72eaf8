"""Slow start, residuals, drift, energy and the running error of predictions: each against what it stands for."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cost.drift import MOST_REVERT_S, Drift, Outlook, widened
from hybrid.cost.energy import GENERIC_POWER, Power
from hybrid.cost.prediction_error import WINDOW, PredictionError
from hybrid.cost.residuals import N_KEPT, N_POINTS, NORMAL_AT, Residuals, lognormal
from hybrid.cost.slow_start import INITIAL_WINDOW_BYTES, slow_start_rounds, slow_start_s, window_after_idle_bytes

# -- slow start


@pytest.mark.parametrize(
    ("up_bps", "rtt_s", "n_bytes", "window", "measured_s"),
    [
        (20e6, 0.040, 50_000, INITIAL_WINDOW_BYTES, 0.111),
        (20e6, 0.040, 150_000, INITIAL_WINDOW_BYTES + 50_000, 0.113),
        (100e6, 0.010, 50_000, INITIAL_WINDOW_BYTES, 0.029),
        (100e6, 0.010, 150_000, INITIAL_WINDOW_BYTES + 50_000, 0.031),
        (100e6, 0.010, 150_000, INITIAL_WINDOW_BYTES + 200_000, 0.023),
    ],
)
def test_slow_start_is_near_what_kernel_tcp_showed(
    up_bps: float, rtt_s: float, n_bytes: int, window: float, measured_s: float
) -> None:
    """Transfers over kernel TCP through a TUN link; the windows are those after what went before."""
    moving_s = 8 * n_bytes / up_bps
    assert rtt_s + moving_s + slow_start_s(n_bytes, moving_s, window, rtt_s) == pytest.approx(measured_s, rel=0.15)


@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=8), st.floats(1e5, 1e9), st.floats(1e-4, 0.6),
       st.floats(1_000, 1e6))  # fmt: skip
def test_rounds_tell_the_wait_of_every_size(sizes: list[int], bps: float, rtt_s: float, window: float) -> None:
    rounds = slow_start_rounds(max(sizes), 8 / bps, window, rtt_s)
    waits_s = [slow_start_s(n_bytes, 8 * n_bytes / bps, window, rtt_s) for n_bytes in sizes]
    assert [rounds.of(n_bytes) for n_bytes in sizes] == pytest.approx(waits_s, rel=1e-6, abs=1e-9)
    assert rounds.of_all(np.array(sizes, np.float64)) == pytest.approx(waits_s, rel=1e-6, abs=1e-9)


def test_a_window_shrinks_with_idle_time_down_to_the_first_one() -> None:
    assert window_after_idle_bytes(400_000, 0.1, 0.05) == 400_000
    assert window_after_idle_bytes(400_000, 0.3, 0.05) == 200_000
    assert window_after_idle_bytes(400_000, 60.0, 0.05) == INITIAL_WINDOW_BYTES


# -- residuals


@given(st.lists(st.floats(0.05, 20.0), max_size=60))
def test_points_are_few_ascending_and_positive(ratios: list[float]) -> None:
    residuals = Residuals()
    for ratio in ratios:
        residuals.observe(ratio)
    assert len(residuals.points) == N_POINTS
    assert list(residuals.points) == sorted(residuals.points)
    assert residuals.points[0] > 0


def test_points_follow_the_sample_with_its_bias_and_its_tail() -> None:
    rng, residuals = random.Random(2), Residuals()
    for _ in range(200):
        residuals.observe(1.3 * rng.lognormvariate(0, 0.1))
    assert residuals.points == pytest.approx([1.3 * point for point in lognormal(0.1)], rel=0.12)


def test_censored_answers_remove_what_they_rule_out_and_keep_the_spread() -> None:
    residuals = Residuals()
    for _ in range(3 * N_KEPT):
        residuals.observe_longer(1.2)
    assert residuals.points[0] > 1.15
    assert residuals.points[-1] > residuals.points[0]
    before = residuals.points
    residuals.observe_longer(0.5)
    assert residuals.points == before, "nobody doubted that"


def test_a_tail_of_censored_answers_does_not_feed_on_itself() -> None:
    """One long answer, then only ones that were cut short just before they came: the belief returns to about those."""
    residuals = Residuals()
    for ratio in (1.0, 1.0, 8.0):
        residuals.observe(ratio)
    for _ in range(2 * N_KEPT):
        residuals.observe_longer(0.95)
    assert residuals.points[-1] < 1.5
    assert residuals.points[0] > 0.9


# -- drift


def test_what_is_not_measured_returns_to_the_usual() -> None:
    outlook = Outlook(value=1e6, usual=8e6, spread_ratio=0.5, revert_s=5.0)
    assert outlook.after(0.0) == (1e6, 0.0)
    value, sigma = outlook.after(5.0)
    assert 1e6 < value < 8e6
    assert 0 < sigma < 0.5
    value, sigma = outlook.after(1e3)
    assert value == pytest.approx(8e6)
    assert sigma == pytest.approx(0.5)


def test_a_steady_quantity_does_not_spread_with_age() -> None:
    drift = Drift()
    for _ in range(50):
        drift.observe(5e6, 5e6, 0.1)
    value, sigma = drift.outlook(5e6).after(100.0)
    assert value == pytest.approx(5e6)
    assert sigma == pytest.approx(0.0, abs=1e-6)


def test_how_fast_it_returns_is_learnt() -> None:
    rng = random.Random(4)

    def learnt(is_sticky: bool) -> float:
        drift, believed = Drift(), 8e6
        for step in range(120):
            x = 1e6 if (step // 20) % 2 and is_sticky else 8e6 * rng.lognormvariate(0, 0.8 * (not is_sticky))
            drift.observe(x, believed, 2.0)
            believed = x
        return drift.outlook(8e6).revert_s

    assert learnt(is_sticky=True) > 2 * learnt(is_sticky=False)
    assert learnt(is_sticky=True) <= MOST_REVERT_S


def test_widening_adds_variances() -> None:
    wide = widened(lognormal(0.3), NORMAL_AT, 0.4)
    assert wide == pytest.approx(lognormal(0.5), rel=1e-6)
    assert widened(lognormal(0.3), NORMAL_AT, 0.0) == lognormal(0.3)


# -- energy and errors


def test_energy_is_power_times_seconds() -> None:
    power = Power(idle_w=2.0, compute_w=7.0, transmit_w=3.0, receive_w=2.5)
    assert power.energy_j(total_s=1.0, compute_s=1.0) == pytest.approx(7.0)
    assert power.energy_j(total_s=1.0, compute_s=0.2, transmit_s=0.3, receive_s=0.1) == pytest.approx(
        2 + 1 + 0.3 + 0.05
    )
    assert "assumption" in GENERIC_POWER.source


def test_prediction_error_is_the_running_median_for_each_placement() -> None:
    errors = PredictionError()
    assert errors.median_ratio() is None
    for _ in range(WINDOW):
        errors.observe("local", 2.0, 1.0)
    for _ in range(WINDOW):
        errors.observe("local", 1.1, 1.0)
    errors.observe("offload", 0.5, 1.0)
    assert errors.median_ratio("local") == pytest.approx(0.1)
    assert errors.median_ratio("offload") == pytest.approx(0.5)
    assert errors.median_ratio() == pytest.approx(0.1)
    assert math.isclose(errors.median_ratio("split") or 0.0, 0.0)
