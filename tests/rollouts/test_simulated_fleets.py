"""Whole fleets in virtual time: a worse version halts early, a sound one goes through; more: benchmarks/rollouts.py."""

import pytest

from tests.rollouts.simulated_fleet import Regression, simulate

WORSE = {
    "crashes on a twentieth of the boxes": Regression(crash_boxes_ratio=0.05),
    "errors doubled": Regression(errors_factor=2.0),
    "latency up by 30 %": Regression(latency_factor=1.3),
    "a twentieth of the boxes dies": Regression(dead_ratio=0.05),
    "a twentieth of the boxes never tells": Regression(stuck_ratio=0.05),
}


@pytest.mark.parametrize("worse", WORSE.values(), ids=WORSE)
@pytest.mark.parametrize("seed", [2, 3])
def test_what_is_worse_halts_before_the_last_stage(seed, worse):
    ended = simulate(seed, worse)
    assert ended.state == "halted", ended.reason
    assert ended.stage <= 2
    assert ended.n_exposed <= 155


@pytest.mark.parametrize("late_s", [0.0, 600.0])
def test_what_is_not_worse_goes_through(late_s):
    for seed in (1, 2):
        ended = simulate(seed, Regression(late_s=late_s))
        assert ended.state == "completed", ended.reason


@pytest.mark.parametrize("n_boxes", [1, 2, 3, 8])
def test_small_fleets_go_through_or_halt(n_boxes):
    assert simulate(4, Regression(), n_boxes=n_boxes, most_hours=100.0).state == "completed"
    assert simulate(4, Regression(crash_boxes_ratio=1.0), n_boxes=n_boxes, most_hours=100.0).state == "halted"
    assert simulate(4, Regression(errors_factor=20.0), n_boxes=n_boxes, most_hours=100.0).state == "halted"
