import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.campaign import Privacy
from hybrid.federated.privacy.clipping import (
    BITS_RATIO,
    clip_bit,
    clipped,
    next_clip,
    norm_of,
    split_noise,
)
from hybrid.federated.privacy.noise import gaussian_integers
from hybrid.federated.privacy.release import PrivateSum, released

SEED = bytes(range(32))
TERMS = Privacy(noise=2.0, clip=1.0)


def updates(n_boxes, n_elements, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=(n_boxes, n_elements)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- noise


def test_noise_is_gaussian():
    from scipy.stats import kstest

    noise = gaussian_integers(SEED, "update", 200_001, 1e6)
    assert kstest(noise / 1e6, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01
    assert abs(np.mean((noise / 1e6) ** 4) - 3.0) < 0.1


def test_noise_of_few_steps_is_a_rounded_gaussian():
    """Each whole number has the mass of its interval: chi-square over the middle ones."""
    from scipy.stats import chisquare, norm

    noise = gaussian_integers(SEED, "bits", 100_000, 1.5)
    edges = np.arange(-4.5, 5.0)
    mass = np.diff(norm.cdf(edges / 1.5))
    seen = np.array([np.sum(noise == k) for k in range(-4, 5)])
    assert chisquare(seen, mass * seen.sum() / mass.sum()).pvalue > 1e-3


def test_noise_depends_on_seed_and_label_alone():
    noise = gaussian_integers(SEED, "update", 100_000, 1e6)
    assert np.array_equal(noise, gaussian_integers(SEED, "update", 100_000, 1e6))
    assert np.array_equal(noise[:70_000], gaussian_integers(SEED, "update", 70_000, 1e6))
    for seed, label in ((SEED, "bits"), (bytes(32), "update")):
        assert abs(np.corrcoef(noise, gaussian_integers(seed, label, 100_000, 1e6))[0, 1]) < 0.02


def test_blocks_of_noise_do_not_repeat():
    noise = gaussian_integers(SEED, "update", 1 << 17, 1e9)
    assert len(np.unique(noise)) > len(noise) - 100


@pytest.mark.parametrize(("seed", "std"), [(b"short", 1.0), (SEED, -1.0), (SEED, math.nan), (SEED, 2.0**60)])
def test_noise_without_a_secret_or_a_size_is_refused(seed, std):
    with pytest.raises(BadMessage):
        gaussian_integers(seed, "update", 4, std)


# --------------------------------------------------------------------------------------------------------------- clip


@given(scale=st.floats(1e-6, 1e6), bound=st.floats(1e-3, 1e3), n=st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_nothing_clipped_is_longer_than_the_bound(scale, bound, n):
    vector = updates(1, n, scale)[0]
    within, norm = clipped(vector, bound)
    assert norm_of(within) <= bound
    assert norm == pytest.approx(float(np.linalg.norm(vector.astype(np.float64))), rel=1e-9)
    if norm <= bound:
        assert np.array_equal(within, vector)
    else:
        assert norm_of(within) > bound * (1.0 - 1e-5)
        assert np.allclose(within / norm_of(within), vector / norm, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_clipped(bad):
    vector = np.ones(10, np.float32)
    vector[3] = bad
    with pytest.raises(TensorMismatch, match="not finite"):
        clipped(vector, 1.0)


def test_the_bound_follows_the_median_norm():
    """Twenty releases of a thousand boxes whose norms have the median 3, from a bound that is far too small."""
    norms = np.random.default_rng(0).lognormal(math.log(3.0), 0.5, 1000)
    clip, noise = 0.3, split_noise(4.0)[1]
    for step in range(40):
        bits = sum(clip_bit(norm, clip) for norm in norms)
        clip = next_clip(clip, bits + int(gaussian_integers(SEED, str(step), 1, noise)[0]), len(norms))
    assert clip == pytest.approx(3.0, rel=0.15)


def test_bits_and_update_cost_what_was_ordered():
    update, bits = split_noise(4.0)
    assert 1.0 / update**2 + 1.0 / bits**2 == pytest.approx(1.0 / 16.0)
    assert (1.0 / bits**2) * 16.0 == pytest.approx(BITS_RATIO)


def test_no_noise_on_the_bits_can_throw_the_bound_far():
    assert next_clip(1.0, 10**9, 1) == pytest.approx(math.exp(-0.1))
    assert next_clip(1.0, -(10**9), 1) == pytest.approx(math.exp(0.1))


# ------------------------------------------------------------------------------------------------------------ release


def test_the_mean_is_the_clipped_sum_over_the_goal():
    vectors = updates(5, 300)
    total = PrivateSum(Privacy(noise=0.0, clip=1.0), 1.0, 300)
    for vector in vectors:
        total.add(vector)
    wanted = sum(vector / np.linalg.norm(vector) for vector in vectors) / 8
    mean = total.release(SEED, 8).mean
    assert mean.dtype == np.float32
    assert np.allclose(mean, wanted, atol=2e-5)


def test_the_order_of_updates_leaves_no_trace():
    vectors = updates(7, 500)
    forward, backward = PrivateSum(TERMS, 1.0, 500), PrivateSum(TERMS, 1.0, 500)
    for vector in vectors:
        forward.add(vector)
    for vector in vectors[::-1]:
        backward.add(vector)
    assert np.array_equal(forward.release(SEED, 8).mean, backward.release(SEED, 8).mean)


@given(length=st.floats(0.0, 1e6), weight=st.floats(0.01, 1.0), noise=st.floats(1e-3, 20.0))
@settings(max_examples=60, deadline=None)
def test_one_box_moves_the_sum_by_no_more_than_the_bound(length, weight, noise):
    """Whatever it sends: the same noise with it and without it, the difference of what is released over the goal."""
    privacy = Privacy(noise=noise, clip=0.5)
    vectors = updates(4, 200)
    last = vectors[3] / np.linalg.norm(vectors[3]) * np.float32(length)
    without, together = PrivateSum(privacy, 0.5, 200), PrivateSum(privacy, 0.5, 200)
    for vector in vectors[:3]:
        without.add(vector)
        together.add(vector)
    together.add(last, weight=weight)
    moved = together._total - without._total
    assert norm_of(moved) * together._step <= 0.5 * (1.0 + 1e-12)


def test_a_dropout_raises_no_sensitivity():
    """Noise on the mean is the same whether three of eight came or all: the goal divides."""
    spread = []
    for n_boxes in (3, 8):
        total = PrivateSum(TERMS, 1.0, 20_000)
        for _ in range(n_boxes):
            total.add(np.zeros(20_000, np.float32))
        spread.append(float(np.std(total.release(SEED, 8).mean)))
    assert spread[0] == spread[1] == pytest.approx(2.0 / 8.0, rel=0.02)


def test_an_adaptive_bound_costs_no_more_and_moves():
    privacy = Privacy(noise=2.0, clip=1.0, is_adaptive=True)
    total = PrivateSum(privacy, 1.0, 20_000)
    for _ in range(100):
        total.add(np.zeros(20_000, np.float32), bit=1)
    result = total.release(SEED, 100)
    assert result.n_boxes == 100
    assert result.clip_norm == pytest.approx(math.exp(-0.1), rel=0.05)
    assert float(np.std(result.mean)) == pytest.approx(2.0 / math.sqrt(0.9) / 100.0, rel=0.02)


def test_a_masked_sum_is_noised_on_its_own_grid():
    step = 1.0 / 64.0
    result = released(TERMS, np.full(50_000, 7), step=step, clip_norm=3.0, bits=0, n_boxes=3, seed=SEED, denominator=4)
    steps = result.mean * 4 / step
    assert np.array_equal(steps, np.rint(steps))
    assert np.mean(steps) == pytest.approx(7.0, abs=9.0)
    assert np.std(steps) == pytest.approx(2.0 * 3.0 * 64.0, rel=0.02)


def test_the_bits_of_an_adaptive_bound_are_noised() -> None:
    """Without noise the next bound would tell how many boxes were within it; the noise is as large as was paid for."""
    privacy = Privacy(noise=2.0, clip=1.0, is_adaptive=True)
    told = []
    for number in range(60):
        seed = number.to_bytes(32, "big")
        result = released(privacy, np.zeros(1, np.int64), step=1.0, clip_norm=1.0, bits=0, n_boxes=100, seed=seed,
                          denominator=100)  # fmt: skip
        told.append(math.log(result.clip_norm) / -0.2 * 200.0)
    assert np.std(told) == pytest.approx(split_noise(2.0)[1], rel=0.25)


def test_what_would_break_the_bound_is_refused():
    total = PrivateSum(TERMS, 1.0, 3)
    ones = np.ones(3, np.float32)
    for weight in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(BadMessage):
            total.add(ones, weight=weight)
    with pytest.raises(BadMessage):
        total.add(ones, bit=2)
    with pytest.raises(TensorMismatch):
        total.add(np.ones(4, np.float32))
    with pytest.raises(TensorMismatch):
        total.add(np.array([1.0, math.nan, 0.0], np.float32))
    assert total.n_boxes == 0
    with pytest.raises(BadMessage, match="at least one"):
        total.release(SEED, 3)
    total.add(ones)
    with pytest.raises(BadMessage):
        total.release(b"", 3)
