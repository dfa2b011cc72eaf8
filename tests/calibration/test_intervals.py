"""The intervals are those of the cited papers: known values, their own definition by brute force, and their edges."""

from math import sqrt

import numpy as np
import pytest

from hybrid.calibration.intervals import Z, paired_drop, samples_for, wilson


@pytest.mark.parametrize(
    ("n_hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(n_hits, n, low, high):
    """Table I of R. G. Newcombe, Stat. Med. 17 (1998) 857-872, method 3."""
    assert wilson(n_hits, n) == pytest.approx((low, high), abs=6e-5)


def test_nothing_counted_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    assert paired_drop(0, 0, 0) == (-1.0, 1.0)


def constrained(n_lost, n_won, n, difference):
    """Tango's statistic with the constrained maximum of the likelihood found by search instead of by formula."""
    won = np.linspace(max(0.0, -difference), (1 - difference) / 2, 400_001)[1:-1]
    lost, rest = won + difference, 1 - 2 * won - difference
    likelihood = n_lost * np.log(lost) + n_won * np.log(won) + (n - n_lost - n_won) * np.log(rest)
    best = won[np.argmax(likelihood)]
    return (n_lost - n_won - n * difference) / sqrt(n * (2 * best + difference * (1 - difference)))


@pytest.mark.parametrize(("n_lost", "n_won", "n"), [(12, 2, 50), (3, 9, 120), (7, 7, 400), (20, 1, 30)])
def test_the_paired_interval_ends_where_its_statistic_is_z(n_lost, n_won, n):
    low, high = paired_drop(n_lost, n_won, n)
    assert low < (n_lost - n_won) / n < high
    assert constrained(n_lost, n_won, n, low) == pytest.approx(Z, abs=2e-3)
    assert constrained(n_lost, n_won, n, high) == pytest.approx(-Z, abs=2e-3)


@pytest.mark.parametrize("n", [1, 10, 381, 5000])
def test_where_nothing_changed_both_say_the_same(n):
    wanted = Z * Z / (n + Z * Z)
    assert wilson(0, n)[1] == pytest.approx(wanted)
    assert paired_drop(0, 0, n) == pytest.approx((-wanted, wanted))


def test_the_interval_turns_with_its_sign():
    low, high = paired_drop(5, 11, 90)
    assert paired_drop(11, 5, 90) == pytest.approx((-high, -low), abs=1e-9)


def test_everything_lost_ends_at_one():
    low, high = paired_drop(40, 0, 40)
    share = Z * Z / 40  # sqrt(n (1 - d) / (1 + d)) = z, where nothing was kept
    assert (low, high) == pytest.approx(((1 - share) / (1 + share), 1.0))


@pytest.mark.parametrize("drop", [0.001, 0.01, 0.05])
def test_as_many_samples_as_it_says_show_that_drop(drop):
    n = samples_for(drop)
    assert wilson(0, n)[1] <= drop < wilson(0, n - 2)[1]


def test_the_interval_covers_as_often_as_it_promises():
    """Drawn pairs with 2 % lost and 0.5 % won of 400: the true drop lies inside in 95 % of the draws, seeded."""
    draws = np.random.default_rng(0).multinomial(400, (0.02, 0.005, 0.975), size=1500)
    inside = np.mean([low <= 0.015 <= high for low, high in (paired_drop(int(a), int(b), 400) for a, b, _ in draws)])
    assert 0.93 <= inside <= 0.98
