"""A rate over time, asked both ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.simulation.curve import RateCurve, Steps

RATES = st.lists(st.sampled_from([0.0, 1e5, 1e6, 7e6]), min_size=1, max_size=6).filter(any)


@given(rates=RATES, start=st.floats(0, 40), n_bits=st.floats(1, 5e7))
def test_what_takes_so_long_lets_exactly_so_much_pass(rates, start, n_bits):
    curve = RateCurve(np.arange(len(rates), dtype=float), np.array(rates), float(len(rates)))
    end = curve.done_s(start, n_bits)
    assert end > start
    assert curve.passed_bits(end) - curve.passed_bits(start) == pytest.approx(n_bits, rel=1e-6, abs=1.0)
    assert curve.rate_bps(end - 1e-7) > 0, "it ends while something passes, not after an outage"


def test_a_dead_link_never_ends():
    curve = RateCurve(np.zeros(1), np.zeros(1), 10.0)
    assert curve.done_s(3.0, 8.0) == float("inf")
    assert curve.still_from(3.0, float("inf"), 2.0) == 5.0


def test_silence_is_noticed_after_the_patience_also_across_pieces_and_laps():
    curve = RateCurve(np.array([0.0, 4.0, 6.0, 9.0]), np.array([1e6, 0.0, 0.0, 0.0]), 10.0)
    assert curve.still_from(3.5, 30.0, 2.0) == pytest.approx(6.0)
    assert curve.still_from(3.5, 5.0, 2.0) is None
    assert curve.still_from(0.0, 3.0, 1.0) is None
    assert curve.still_from(12.0, 30.0, 5.5) == pytest.approx(19.5)


def test_steps_begin_anew():
    steps = Steps(np.array([0.0, 2.0]), np.array([1.0, 3.0]), 5.0)
    assert [steps.at(time_s) for time_s in (0.0, 1.9, 2.0, 4.9, 5.0, 7.5)] == [1, 1, 3, 3, 1, 3]
