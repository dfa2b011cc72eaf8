"""Widths from worth: rounding, ranking across groups, equal parts; plain numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.pruning.ranking import (
    CAP_RATIO,
    Ranked,
    allowed_widths,
    least_important,
    nearest_width,
    ratio_of,
    widths,
)


def group(name: str, importance: list[float] | np.ndarray, ratio: float = 0.5, scope: str = "all", **more) -> Ranked:
    n_chunks = more.pop("n_chunks", 1)
    values = np.asarray(importance, float)
    return Ranked(
        name=name, scope=scope, importance=values, ratio=ratio, n_chunks=n_chunks,
        n_before=more.pop("n_before", len(values) * n_chunks),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n_channels", "multiple", "n_chunks", "expected"),
    [
        (64, 16, 1, [16, 32, 48, 64]),
        (61, 16, 1, [16, 32, 48, 61]),
        (24, 16, 1, [16, 24]),
        (10, 16, 1, [10]),
        (64, 8, 4, [8, 16, 24, 32, 40, 48, 56, 64]),
        (36, 8, 3, [24, 36]),
        (3, 1, 1, [1, 2, 3]),
    ],
)
def test_allowed_widths(n_channels, multiple, n_chunks, expected) -> None:
    assert allowed_widths(n_channels, multiple, n_chunks) == expected


def test_nearest_width_rather_goes_down() -> None:
    assert nearest_width(40, 64, 16) == 32
    assert nearest_width(41, 64, 16) == 48
    assert nearest_width(1, 64, 16) == 16


def test_groups_of_one_scope_are_ranked_together() -> None:
    worth = {"low": np.arange(1, 17), "high": np.arange(101, 117)}
    together = widths([group(name, values) for name, values in worth.items()], 2)
    assert together == {"low": 2, "high": 16}
    apart = widths([group(name, values, scope=name) for name, values in worth.items()], 2)
    assert apart == {"low": 8, "high": 8}


def test_no_group_loses_more_than_the_cap() -> None:
    kept = widths([group("low", np.zeros(100)), group("high", np.ones(100))], 1)
    assert kept["low"] == round(100 * (1 - CAP_RATIO))


def test_a_wanted_ratio_beyond_the_cap_counts() -> None:
    assert widths([group("only", np.arange(100), ratio=0.95)], 1) == {"only": 5}


def test_later_steps_count_from_the_beginning() -> None:
    assert widths([group("only", np.arange(12), ratio=0.5, n_before=16)], 4) == {"only": 8}


def test_equal_parts_lose_the_same_places() -> None:
    one = group("grouped", [3.0, 1.0, 2.0, 4.0], n_chunks=2)
    assert widths([one], 2) == {"grouped": 4}
    assert least_important(one, 4) == [1, 2, 5, 6]
    assert least_important(one, 8) == []


def test_ratio_of_a_group() -> None:
    assert ratio_of(("a.b", "c"), 0.3) == 0.3
    assert ratio_of(("a.b", "c"), {"a": 0.2, "c": 0.4}) == 0.4
    assert ratio_of(("a.b",), {"a.bc": 0.9}) == 0.0


@given(
    st.lists(st.tuples(st.integers(1, 70), st.sampled_from([1, 2, 4])), min_size=1, max_size=6),
    st.integers(1, 20), st.floats(0, 0.99), st.integers(0, 2**31),
)  # fmt: skip
def test_whatever_is_asked_the_widths_can_be_had(sizes, multiple, ratio, seed) -> None:
    rng = np.random.default_rng(seed)
    groups = [
        group(str(place), rng.random(size), ratio=ratio, n_chunks=n_chunks)
        for place, (size, n_chunks) in enumerate(sizes)
    ]
    for one in groups:
        width = widths(groups, multiple)[one.name]
        assert 0 < width <= one.n_now
        assert width % one.n_chunks == 0
        assert width == one.n_now or width % multiple == 0
        assert len(least_important(one, width)) == one.n_now - width
    assert ratio > 0 or all(widths(groups, multiple)[one.name] == one.n_now for one in groups)
