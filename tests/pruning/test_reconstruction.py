"""The arithmetic of making up for channels: costs against brute force, refits against least squares."""

import numpy as np
import pytest

from compression.pruning.channels import Channels, Consumer, Segment
from compression.pruning.reconstruction import Moments, Weighed, mixing, removal_costs
from compression.pruning.refitting import rows_of_weight, weight_of_rows


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rows(rng: np.random.Generator, n_channels: int, n: int = 4000) -> np.ndarray:
    return rng.standard_normal((n, n_channels)) @ rng.standard_normal((n_channels, n_channels)) + 1.0


def lost(x: np.ndarray, weights: np.ndarray, kept: list[int]) -> float:
    """The least squared error of the outputs when they are made of these channels and a bias, as a share."""
    wanted = x @ weights.T
    known = np.column_stack([x[:, kept], np.ones(len(x))])
    left = wanted - known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    return float(np.square(left).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


def moments_of(one: np.ndarray, other: np.ndarray | None = None) -> Moments:
    result = Moments()
    for part, second in zip(np.array_split(one, 3), np.array_split(one if other is None else other, 3), strict=True):
        result.add(part, second)
    return result


def test_moments_of_parts_are_those_of_the_whole(rng) -> None:
    x = rows(rng, 5)
    seen = moments_of(x)
    assert seen.n == len(x)
    assert np.allclose(seen.central(), np.cov(x.T, bias=True))
    assert np.allclose(seen.means[0], x.mean(axis=0))


def test_the_first_removal_costs_what_brute_force_says(rng) -> None:
    x, weights = rows(rng, 6), rng.standard_normal((9, 6))
    consumer = Weighed(rows=weights, square=moments_of(x).central(), n_rows=len(x), places=np.arange(6)[:, None])
    costs = removal_costs([consumer], 6)
    alone = [lost(x, weights, [other for other in range(6) if other != gone]) for gone in range(6)]
    assert int(np.argmin(costs)) == int(np.argmin(alone))
    assert costs.min() == pytest.approx(min(alone), rel=0.1)
    assert np.isinf(costs).sum() == 1


def test_repeated_channels_go_first_but_not_both(rng) -> None:
    x = rows(rng, 8)
    x[:, 5] = x[:, 2] * 2
    weights = rng.standard_normal((7, 8))
    costs = removal_costs(
        [Weighed(rows=weights, square=moments_of(x).central(), n_rows=len(x), places=np.arange(8)[:, None])], 8
    )
    first, second = np.argsort(costs)[:2]
    assert {int(first)} <= {2, 5}
    assert int(second) not in {2, 5}
    assert costs[second] > 3 * costs[first]


def test_many_channels_go_in_blocks_with_the_same_outcome(rng) -> None:
    latent = rng.standard_normal((3000, 20))
    x = latent @ rng.standard_normal((20, 160)) + 0.01 * rng.standard_normal((3000, 160))
    weights = rng.standard_normal((12, 160))
    costs = removal_costs(
        [Weighed(rows=weights, square=moments_of(x).central(), n_rows=len(x), places=np.arange(160)[:, None])], 160
    )
    kept = np.argsort(costs)[-24:]
    assert lost(x, weights, sorted(kept.tolist())) < 0.01
    assert lost(x, weights, list(range(12))) > 0.05


def test_a_channel_of_two_consumers_costs_both(rng) -> None:
    plenty, none = np.ones((3, 4)), np.zeros((3, 4))
    plenty[:, 1] = none[:, 1] = 0.001
    none[:, 3] = 5.0
    seen = moments_of(rng.standard_normal((999, 4))).central()
    places = np.arange(4)[:, None]
    consumers = [Weighed(rows=weights, square=seen, n_rows=999, places=places) for weights in (plenty, none)]
    costs = removal_costs(consumers, 4)
    assert int(np.argmin(costs)) == 1
    assert np.isinf(costs[3])


def test_mixing_is_least_squares(rng) -> None:
    x = rows(rng, 6)
    kept = np.array([0, 2, 3, 5])
    across, own = moments_of(x, x[:, kept]), moments_of(x[:, kept])
    mix = mixing(across.central(), own.central(), kept, n_rows=10**9)
    centred = x - x.mean(axis=0)
    best = np.linalg.lstsq(centred[:, kept], centred, rcond=None)[0].T
    assert np.allclose(mix, best, atol=2e-2)
    assert np.allclose(mix[kept], np.eye(4), atol=2e-2)


def test_little_known_leaves_what_is_there_alone(rng) -> None:
    x = rows(rng, 6, n=3)
    kept = np.array([1, 4])
    across, own = moments_of(x, x[:, kept]), moments_of(x[:, kept])
    unsure, sure = (mixing(across.central(), own.central(), kept, n_rows=n) for n in (3, 10**9))
    plain = np.eye(6)[:, kept]
    assert np.abs(unsure - plain).sum() < np.abs(sure - plain).sum()


@pytest.mark.parametrize(
    ("shape", "axis", "repeat"),
    [((8, 6, 3, 3), 1, 1), ((6, 8, 2, 2), 0, 1), ((8, 24), 1, 4), ((24, 8), 0, 4), ((6, 8), 0, 1)],
)
def test_rows_and_back(shape, axis, repeat, rng) -> None:
    weight = rng.standard_normal(shape)
    channels = Channels(1, (Segment(0, 6, repeat),))
    consumer = Consumer(node="n", tensor="t", channels=channels, axis=axis)
    flat = rows_of_weight(weight, consumer)
    assert flat.shape == (weight.size // 6, 6)
    assert np.array_equal(weight_of_rows(flat, shape, consumer), weight)
    zeroed = flat.copy()
    zeroed[:, 2] = 0
    back = np.moveaxis(weight_of_rows(zeroed, shape, consumer), axis, 0)
    assert not back[2 * repeat : 3 * repeat].any()
    assert back[:repeat].any()
