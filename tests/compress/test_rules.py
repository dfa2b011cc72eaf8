"""The rules of shipping: each of them is tried to be broken."""

from dataclasses import replace

import pytest

from compression.measuring import Timing
from hybrid.compress.grading import Grade
from hybrid.compress.rules import Facts, verdict


def timing(seconds: float, low: float | None = None) -> Timing:
    return Timing(p50_s=seconds, p95_s=2 * seconds, low_s=low or seconds, n=20)


def grade(n_lost: int, n: int = 2000, n_won: int = 0) -> Grade:
    return Grade(metric="accuracy", n=n, n_lost=n_lost, n_won=n_won)


GOOD = Facts(
    objective="latency",
    max_drop=0.01,
    device="rpi-4b",
    timing=timing(0.3),
    original=timing(1.0),
    n_bytes=30,
    original_bytes=100,
    judged=grade(2),
    n_calibrated=300,
    faults=(),
)


def test_what_breaks_no_rule_is_shipped():
    assert verdict(GOOD)[0] == "shipped"


@pytest.mark.parametrize(
    "slow", [timing(1.0), timing(0.99), timing(1.4), timing(0.8, low=1.0), timing(0.95), timing(1.0, low=0.5)], ids=str
)
def test_rule_1_what_is_not_faster_is_not_shipped_however_good_it_is(slow):
    status, reason = verdict(replace(GOOD, timing=slow, judged=grade(0), n_bytes=1))
    assert status == "reverted"
    assert "not faster on rpi-4b" in reason


def test_rule_1_what_was_never_timed_is_not_shipped():
    assert verdict(replace(GOOD, timing=None))[0] == "failed"
    assert verdict(replace(GOOD, original=None))[0] == "failed"


def test_rule_1_what_is_not_smaller_is_not_shipped_where_bytes_are_wanted():
    status, reason = verdict(replace(GOOD, objective="bytes", n_bytes=100))
    assert status == "reverted"
    assert "not smaller" in reason
    assert verdict(replace(GOOD, objective="bytes", timing=timing(1.5)))[0] == "shipped"


@pytest.mark.parametrize("judged", [grade(20), grade(15), grade(0, n=100), grade(40, n_won=30)], ids=str)
def test_rule_2_what_may_lie_beyond_the_floor_is_not_shipped(judged):
    """Also where the drop itself lies within, and its interval does not."""
    status, reason = verdict(replace(GOOD, judged=judged))
    assert status == "kept off"
    assert "beyond the floor" in reason


def test_rule_2_what_was_not_judged_is_not_shipped():
    assert verdict(replace(GOOD, judged=None)) == ("kept off", "not judged")


def test_rule_3_what_differs_between_runtimes_or_was_not_compared_is_not_shipped():
    status, reason = verdict(replace(GOOD, faults=("LiteRT and tflite-runtime are 90 % apart",)))
    assert (status, "runtimes differ" in reason) == ("kept off", True)
    assert verdict(replace(GOOD, faults=None))[0] == "kept off"


def test_rule_4_nothing_lossy_without_calibration_data():
    status, reason = verdict(replace(GOOD, n_calibrated=0))
    assert (status, "without calibration data" in reason) == ("kept off", True)
