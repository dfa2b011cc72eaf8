import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import BadMessage
from hybrid.federated.privacy.accountant import (
    budget_of,
    cost_of,
    epsilon_for,
    fits,
    noise_for,
)
from hybrid.federated.privacy.gaussian import epsilon_of, log_delta, mu_of

PUBLISHED = (  # (releases, noise), delta, epsilon of dp-accounting 0.6's privacy loss distributions
    (((20, 4.0),), 1e-5, 4.98331),
    (((1, 1.0),), 1e-5, 4.37718),
    (((100, 1.0),), 1e-5, 91.81729),
    (((200, 8.0),), 1e-6, 9.48219),
    (((20, 30.0),), 1e-5, 0.52636),
    (((10, 4.0), (5, 2.0), (40, 10.0)), 1e-5, 7.09819),
    (((1, 0.7),), 1e-9, 9.19707),
    (((20, 4.0),), 1e-12, 8.17438),
    (((5, 100.0),), 1e-3, 0.02941),
)


@pytest.mark.parametrize(("releases", "delta", "epsilon"), PUBLISHED)
def test_epsilon_is_the_accountants(releases, delta, epsilon):
    cost = sum(cost_of(noise, n) for n, noise in releases)
    assert epsilon_for(cost, delta) == pytest.approx(epsilon, abs=2e-5)


def test_the_bar_of_twenty_rounds():
    assert epsilon_for(cost_of(4.0, 20), 1e-5) == pytest.approx(4.98, rel=0.01)


@pytest.mark.parametrize(("releases", "delta", "epsilon"), PUBLISHED)
def test_epsilon_against_dp_accounting(releases, delta, epsilon):
    """Where the extra `privacy` is installed; it costs 251 MB, so nothing else ever imports it."""
    dp_accounting = pytest.importorskip("dp_accounting")
    accountant = dp_accounting.pld.PLDAccountant()
    for n, noise in releases:
        accountant.compose(dp_accounting.GaussianDpEvent(noise), n)
    cost = sum(cost_of(noise, n) for n, noise in releases)
    assert epsilon_for(cost, delta) == pytest.approx(accountant.get_epsilon(delta), rel=0.01)


@given(mu=st.floats(1e-3, 50.0), log10_delta=st.floats(-200.0, -0.01))
@settings(max_examples=150, deadline=None)
def test_the_curve_against_scipy(mu, log10_delta):
    from scipy.special import log_ndtr

    delta = 10.0**log10_delta
    epsilon = epsilon_of(mu, delta)
    if epsilon == 0.0:
        assert math.erf(mu / math.sqrt(8.0)) <= delta * (1.0 + 1e-9)
        return
    larger = log_ndtr(0.5 * mu - epsilon / mu)
    smaller = epsilon + log_ndtr(-0.5 * mu - epsilon / mu)
    assert larger + math.log(-math.expm1(smaller - larger)) == pytest.approx(math.log(delta), abs=1e-6)
    assert mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-9)


@given(mu=st.floats(1e-8, 1e3), epsilon=st.floats(0.0, 1e4), more=st.floats(1e-3, 2.0))
@settings(max_examples=150, deadline=None)
def test_delta_falls_with_epsilon_and_rises_with_mu(mu, epsilon, more):
    here = log_delta(epsilon, mu)
    assert -math.inf < here <= 0.0
    assert log_delta(epsilon + more, mu) <= here
    assert log_delta(epsilon, mu * (1.0 + more)) >= here


def test_the_curve_is_smooth_where_its_forms_meet():
    """At mu = 0.5 a quadrature takes over from a difference, at -1 a tail from Mills' ratio, at 5 a fraction."""
    for epsilon, mu in itertools.product((0.3, 1.0, 2.4), (0.5, 2.0, 3.0)):
        low, high = log_delta(epsilon, mu * (1.0 - 1e-9)), log_delta(epsilon, mu * (1.0 + 1e-9))
        assert low == pytest.approx(high, abs=1e-6)
        assert low <= high
    for mu in (2.5, 4.0):
        epsilon = 0.5 * mu * mu - mu  # where epsilon / mu - mu / 2 is -1
        assert log_delta(epsilon - 1e-9, mu) == pytest.approx(log_delta(epsilon + 1e-9, mu), abs=1e-7)
    assert log_delta(5.5 - 1e-9, 1.0) == pytest.approx(log_delta(5.5 + 1e-9, 1.0), abs=1e-7)


def test_noise_for_some_rounds_is_the_least():
    noise = noise_for(4.98, 1e-5, 20)
    assert noise == pytest.approx(4.0, rel=0.01)
    assert epsilon_for(cost_of(noise, 20), 1e-5) <= 4.98 + 1e-9
    assert epsilon_for(cost_of(noise * 0.999, 20), 1e-5) > 4.98
    assert fits(cost_of(noise, 20), budget_of(4.98, 1e-5))
    assert not fits(cost_of(noise * 0.999, 20), budget_of(4.98, 1e-5))


def test_the_budget_is_met_to_the_last_round_in_whatever_steps():
    budget = sum(cost_of(3.0) for _ in range(1000))
    spent = 0.0
    for _ in range(1000):
        assert fits(spent + cost_of(3.0), budget)
        spent += cost_of(3.0)
    assert not fits(spent + cost_of(3.0), budget)


@pytest.mark.parametrize("call", [
    lambda: cost_of(0.0), lambda: cost_of(-1.0), lambda: cost_of(math.nan), lambda: cost_of(1.0, -1),
    lambda: epsilon_of(1.0, 0.0), lambda: epsilon_of(1.0, 1.0), lambda: epsilon_of(math.inf, 1e-5),
    lambda: epsilon_of(-1.0, 1e-5), lambda: mu_of(0.0, 1e-5), lambda: mu_of(math.inf, 1e-5),
    lambda: mu_of(1.0, math.nan), lambda: noise_for(1.0, 1e-5, 0),
])  # fmt: skip
def test_what_means_nothing_is_refused(call):
    with pytest.raises(BadMessage):
        call()


def test_no_spending_is_no_epsilon():
    assert epsilon_for(0.0, 1e-5) == 0.0
    assert epsilon_for(cost_of(1e6), 1e-5) == 0.0
