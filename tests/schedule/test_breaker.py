"""The breaker: nothing while open, one at a time while half-open, jittered pauses, and back within three seconds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cost.link import LinkEstimate
from hybrid.schedule.breaker import MOST_PAUSE_S, TRIAL_S, Breaker
from hybrid.schedule.retry_budget import MOST_TOKENS, RetryBudget
from hybrid.schedule.standing import FAILURE_PRIOR, Standing


def broken(n_failures: int = 1, seed: int = 3) -> Breaker:
    breaker = Breaker(random.Random(seed))
    for _ in range(n_failures):
        breaker.failed(0.0)
    return breaker


def test_closed_lets_everything_through() -> None:
    breaker = Breaker(random.Random(1))
    assert breaker.state(0.0) == "closed"
    for _ in range(5):
        breaker.sent(0.0)
        assert breaker.allows(0.0)


def test_a_failure_opens_it_and_a_success_closes_it() -> None:
    breaker = broken()
    at_s = breaker.ready_at_s()
    assert at_s > 0
    assert breaker.state(at_s * 0.99) == "open"
    assert not breaker.allows(at_s * 0.99)
    assert breaker.state(at_s) == "half_open"
    breaker.succeeded()
    assert breaker.state(at_s) == "closed"
    assert breaker.epoch == 2


def test_half_open_lets_one_through_at_a_time() -> None:
    breaker = broken()
    at_s = breaker.ready_at_s()
    assert breaker.allows(at_s)
    breaker.sent(at_s)
    assert not breaker.allows(at_s + 0.5 * TRIAL_S)
    assert breaker.allows(at_s + 1.01 * TRIAL_S), "a trial of which nobody reports does not block for ever"
    breaker.withdrawn()
    assert breaker.allows(at_s)
    breaker.sent(at_s)
    breaker.failed(at_s)
    assert not breaker.allows(at_s)


def test_pauses_have_full_jitter_and_an_upper_end() -> None:
    for n_failures in (1, 2, 4, 10):
        most_s = min(MOST_PAUSE_S, 0.25 * 2 ** (n_failures - 1))
        pauses_s = [broken(n_failures, seed).ready_at_s() for seed in range(200)]
        assert max(pauses_s) <= most_s
        assert min(pauses_s) < 0.1 * most_s
        assert sum(pauses_s) / len(pauses_s) == pytest.approx(most_s / 2, rel=0.15)


def test_the_same_seed_gives_the_same_pauses() -> None:
    assert broken(4, seed=9).ready_at_s() == broken(4, seed=9).ready_at_s()
    assert broken(4, seed=9).ready_at_s() != broken(4, seed=10).ready_at_s()


def test_retry_after_is_honoured() -> None:
    breaker = Breaker(random.Random(1))
    breaker.failed(10.0, retry_after_s=5.0)
    assert breaker.ready_at_s() >= 15.0


def test_a_new_connection_may_be_tried_at_once() -> None:
    standing = Standing(LinkEstimate(), seed=2)
    for _ in range(6):
        standing.failed(100.0)
    standing.reconnected(100.001)
    assert standing.breaker.allows(100.001)
    assert standing.breaker.state(100.001) == "half_open"


@given(st.integers(0, 100_000))
def test_a_gateway_that_returns_is_found_within_three_seconds(seed: int) -> None:
    """Requests come every 0.1 s; the gateway is away for a while and then answers again within 50 ms."""
    rng = random.Random(seed)
    breaker, back_s, now_s = Breaker(random.Random(seed)), rng.uniform(0.0, 60.0), 0.0
    while breaker.state(now_s) != "closed" or now_s < back_s:
        if breaker.allows(now_s):
            breaker.sent(now_s)
            if now_s >= back_s:
                breaker.succeeded()
                break
            breaker.failed(now_s + 0.05)
        now_s += 0.1
    assert now_s - back_s <= 3.0


def test_second_attempts_are_a_tenth_of_the_requests() -> None:
    budget, taken = RetryBudget(), 0
    for _ in range(int(MOST_TOKENS)):
        assert budget.take()
    for _ in range(200):
        budget.request()
        taken += budget.take()
    assert taken == pytest.approx(20, abs=1)


def test_a_standing_remembers_queue_and_failures_for_a_while() -> None:
    standing = Standing(LinkEstimate(), seed=1)
    assert standing.failure_ratio == FAILURE_PRIOR
    for at_s in range(6):
        standing.succeeded(0.2, float(at_s))
    assert standing.queue_s(5.0) == pytest.approx(0.2, rel=0.05)
    assert standing.queue_s(15.0) < 0.06, "a queue that nobody heard of fades"
    standing.failed(6.0)
    failing = standing.failure_ratio
    assert failing > 0.1
    for at_s in range(20):
        standing.succeeded(0.0, 7.0 + at_s)
    assert standing.failure_ratio < 0.2 * failing
