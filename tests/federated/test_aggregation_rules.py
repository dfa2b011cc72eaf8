"""Robust rules: against numpy and by brute force, in blocks as in one piece, and where they must refuse."""

import itertools
import tracemalloc

import numpy as np
import pytest

from hybrid.errors import TensorMismatch
from hybrid.federated.aggregation import rules
from hybrid.federated.layout import Layout

LAYOUT = Layout(names=("w",), shapes=((97,),))
BLOCKS = (1, 4 * 11 * 10, 1 << 20)
"""Bytes for a single coordinate (at least), ten coordinates of eleven updates, and all."""


def updates(n_updates: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_updates, 97)).astype(np.float32)


def spool(vectors: np.ndarray) -> rules.Spool:
    return lambda: iter(vectors)


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("n_updates", [1, 2, 11, 12])
def test_the_median_is_numpys(block_bytes, n_updates):
    vectors = updates(n_updates)
    combined = rules.median(spool(vectors), LAYOUT, block_bytes)
    np.testing.assert_allclose(combined.delta, np.median(vectors, axis=0), rtol=1e-6)
    assert combined.left_out == ()


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize(("ratio", "n_trimmed"), [(0.0, 0), (0.01, 1), (1 / 11, 1), (0.2, 3), (0.45, 5)])
def test_the_trimmed_mean_leaves_out_both_ends(block_bytes, ratio, n_trimmed):
    vectors = updates()
    combined = rules.trimmed_mean(spool(vectors), LAYOUT, ratio, block_bytes)
    expected = np.sort(vectors, axis=0)[n_trimmed : 11 - n_trimmed].mean(axis=0)
    np.testing.assert_allclose(combined.delta, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ratio", [-0.1, 0.5, float("nan")])
def test_a_trimmed_mean_leaves_something(ratio):
    with pytest.raises(TensorMismatch, match="possible"):
        rules.trimmed_mean(spool(updates()), LAYOUT, ratio)
    with pytest.raises(TensorMismatch, match="leaves none"):
        rules.trimmed_mean(spool(updates(2)), LAYOUT, 0.3)


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("n_attackers", [0, 2, 4])
def test_multi_krum_chooses_as_by_brute_force(block_bytes, n_attackers):
    vectors = updates(seed=5)
    scores = []
    for one in vectors:
        distances = sorted(float(((one - other) ** 2).sum()) for other in vectors)[1:]
        scores.append(sum(distances[: 11 - n_attackers - 2]))
    chosen = sorted(np.argsort(scores)[: 11 - n_attackers])
    combined = rules.multi_krum(spool(vectors), LAYOUT, n_attackers, block_bytes)
    np.testing.assert_allclose(combined.delta, vectors[chosen].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert combined.left_out == tuple(sorted(set(range(11)) - set(chosen)))


def test_multi_krum_leaves_attackers_out_where_honest_updates_agree():
    vectors = 1 + 0.1 * updates()
    vectors[[3, 8]] = -5.0
    combined = rules.multi_krum(spool(vectors), LAYOUT, 2)
    assert combined.left_out == (3, 8)
    np.testing.assert_allclose(combined.delta, 1.0, atol=0.15)


def test_multi_krum_needs_enough_updates():
    with pytest.raises(TensorMismatch, match="needs 7 updates, 6 came"):
        rules.multi_krum(spool(updates(6)), LAYOUT, 2)
    assert rules.multi_krum(spool(updates(7)), LAYOUT, 2).delta.any()


def test_clipping_shortens_to_the_median_of_the_norms():
    vectors = updates()
    vectors[4] *= 1000
    norms = np.linalg.norm(vectors, axis=1)
    shortened = vectors * np.minimum(1, np.median(norms) / norms)[:, None]
    weights = [1.0, 2.0, 3.0] * 3 + [1.0, 1.0]
    combined = rules.norm_clipped(spool(vectors), LAYOUT, weights)
    np.testing.assert_allclose(combined.delta, np.average(shortened, axis=0, weights=weights), rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(combined.delta) <= np.median(norms)


def test_what_is_late_is_shortened_further_by_clipping_too():
    """As by the mean: a round of old updates makes a smaller step."""
    same = np.tile(updates(1), (3, 1))
    combined = rules.norm_clipped(spool(same), LAYOUT, [1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(combined.delta, 0.5 * same[0], rtol=1e-6)


def test_clipping_updates_of_zero_is_no_division():
    assert not rules.norm_clipped(spool(np.zeros((3, 97), np.float32)), LAYOUT, [1, 1, 1]).delta.any()


def test_the_mean_and_weights_that_are_not_as_many():
    vectors = updates()
    np.testing.assert_allclose(
        rules.mean(spool(vectors), LAYOUT, range(1, 12)).delta,
        np.average(vectors, axis=0, weights=range(1, 12)),
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="zip"):
        rules.mean(spool(vectors), LAYOUT, [1.0] * 10)


@pytest.mark.parametrize(
    "rule", [rules.median, lambda *a: rules.trimmed_mean(*a, 0.2), lambda *a: rules.multi_krum(*a, 0)]
)
def test_no_updates_or_odd_ones(rule):
    with pytest.raises(TensorMismatch):
        rule(spool(np.zeros((0, 97), np.float32)), LAYOUT)
    with pytest.raises(TensorMismatch, match="update 0 has"):
        rule(spool(np.zeros((5, 96), np.float32)), LAYOUT)


def test_norms():
    vector = np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    assert rules.norm(vector) == pytest.approx(np.linalg.norm(vector.astype(np.float64)), rel=1e-9)
    assert rules.norm(np.full(4, 3e38, np.float32)) == pytest.approx(6e38, rel=1e-6)
    assert not np.isfinite(rules.norm(np.array([1, np.nan], np.float32)))
    assert not np.isfinite(rules.norm(np.array([1, -np.inf], np.float32)))


@pytest.mark.parametrize(
    "rule",
    [rules.median, lambda *a: rules.trimmed_mean(*a[:2], 0.2, a[2]), lambda *a: rules.multi_krum(*a[:2], 4, a[2])],
)
def test_memory_does_not_grow_with_the_updates(tmp_path, rule):
    """48 updates of 0.8 MB (38 MB) from a spool of files, with 4 MB for blocks."""
    layout = Layout(names=("w",), shapes=((200_000,),))
    rng = np.random.default_rng(2)
    file = np.memmap(tmp_path / "spool", np.float32, "w+", shape=(48, 200_000))
    for number in range(48):
        file[number] = rng.standard_normal(200_000, dtype=np.float32)
    file.flush()
    tracemalloc.start()
    combined = rule(lambda: iter(file), layout, 4 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert 0 < np.abs(combined.delta[:5] - np.median(file[:, :5], axis=0)).max() < 1 or rule is rules.median


def test_the_spool_is_read_in_the_same_order_each_time():
    """What a rule leaves out is told by the index in that order."""
    vectors = 1 + 0.1 * updates()
    for outlier in range(11):
        moved = vectors.copy()
        moved[outlier] = 50.0
        assert rules.multi_krum(spool(moved), LAYOUT, 1).left_out == (outlier,)


def test_rules_agree_where_all_updates_are_the_same():
    same = np.tile(updates(1), (9, 1))
    made = [
        rules.mean(spool(same), LAYOUT, [1.0] * 9),
        rules.norm_clipped(spool(same), LAYOUT, [1.0] * 9),
        rules.median(spool(same), LAYOUT),
        rules.trimmed_mean(spool(same), LAYOUT, 0.2),
        rules.multi_krum(spool(same), LAYOUT, 2),
    ]
    for one, other in itertools.pairwise(made):
        np.testing.assert_allclose(one.delta, other.delta, rtol=1e-6)
