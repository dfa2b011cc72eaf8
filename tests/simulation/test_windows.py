"""Windows compare two policies over the requests that both answered."""

import numpy as np
import pytest

from hybrid.simulation.outcome import COLUMNS, Outcome, Rows
from hybrid.simulation.windows import ratios, share_within, shared


def outcome(slots: list[int], latency_s: list[float], duration_s: float = 20.0) -> Outcome:
    """One request a second is due; those of the other slots were skipped."""
    rows = Rows()
    for slot, seconds in zip(slots, latency_s, strict=True):
        row = dict.fromkeys(COLUMNS, 0.0) | {"slot": slot, "start_s": float(slot), "latency_s": seconds}
        rows.rows.append(tuple(row.values()))
    return rows.outcome(duration_s)


def compared(ours: Outcome, theirs: Outcome) -> list[float]:
    return ratios(ours, ours.latency_s, theirs, theirs.latency_s).tolist()


def test_where_both_answered_everything_whole_windows_are_compared() -> None:
    theirs = outcome(list(range(20)), [0.1] * 20)
    ours = outcome(list(range(20)), [0.1] * 9 + [0.3] + [0.2] * 10)
    assert compared(ours, theirs) == pytest.approx([1.2, 2.0]), "the mean is worse in the first, the median too then"


def test_requests_that_one_skipped_are_compared_for_neither() -> None:
    """They sit in a bad second from 2 to 8; the median of theirs alone would be that of the good seconds."""
    slots = [0, 1, 2, 8, 9, *range(10, 20)]
    theirs = outcome(slots, [0.1, 0.1, 6.0, 0.1, 0.1] + [0.1] * 10)
    ours = outcome(list(range(20)), [0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1] + [0.1] * 10)
    assert np.median(ours.latency_s[:10]) > 1.05 * np.median(theirs.latency_s[:5])
    assert compared(ours, theirs) == pytest.approx([1.0, 1.0])
    here, there = shared(ours, theirs)
    assert ours.slot[here].tolist() == theirs.slot[there].tolist() == slots


def test_what_is_late_where_both_answered_is_seen() -> None:
    theirs = outcome([0, 5, 9, 10], [0.1, 0.1, 0.1, 0.1])
    ours = outcome(list(range(11)), [0.1, 0.9, 0.9, 0.9, 0.9, 0.4, 0.9, 0.9, 0.9, 0.4, 0.1])
    assert compared(ours, theirs) == pytest.approx([4.0, 1.0])


def test_a_window_without_a_common_request_has_no_ratio() -> None:
    theirs, ours = outcome([0, 1], [0.1, 0.1]), outcome([0, 12], [0.1, 0.1])
    found = ratios(ours, ours.latency_s, theirs, theirs.latency_s)
    assert found[0] == pytest.approx(1.0)
    assert np.isnan(found[1])


def test_share_within() -> None:
    assert share_within(np.array([1.0, 1.05, 1.2, 1.0]), 1.05) == 0.75
    assert share_within(np.array([]), 1.05) == 1.0
