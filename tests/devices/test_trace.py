"""Traces: files that come back as they went, and drawn ones that have the statistics of their class."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.catalog import load
from devices.errors import TraceInvalid
from devices.link_class import OUT_BELOW_RATIO, WEAK_BELOW_RATIO
from devices.markov import draw
from devices.trace import Trace

ROWS = [(0.0, 5e6, 9e6, 0.05, 0.0), (1.5, 0.0, 1e6, 0.2, 0.01), (2.0, 7e6, 9e6, 0.05, 0.0)]
CHANGING = [link for link in load.link_classes() if link.states]


def visit_s(mask: np.ndarray) -> float:
    """Mean length of the runs of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
    return float((edges[1::2] - edges[::2]).mean())


def test_a_trace_holds_each_row_until_the_next_and_begins_anew():
    trace = Trace.of_rows(ROWS, 4.0)
    assert trace.at(0).up_bps == 5e6
    assert trace.at(1.49).up_bps == 5e6
    assert trace.at(1.5) == (0.0, 1e6, 0.2, 0.01)
    assert trace.at(3.99).up_bps == 7e6
    assert trace.at(4.0 + 1.6) == trace.at(1.6)
    with pytest.raises(TraceInvalid):
        trace.at(-0.1)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_file_brings_it_back(tmp_path, suffix):
    trace = draw(load.link_class("lte"), 60, seed=3)
    trace.write(tmp_path / f"drive{suffix}")
    assert Trace.read(tmp_path / f"drive{suffix}") == trace


@settings(max_examples=50)
@given(
    st.lists(st.tuples(*[st.floats(0, 1e10)] * 2, st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=20),
    st.floats(0.001, 100),
)
def test_any_trace_survives_both_forms(rows, step_s):
    timed = [(at * step_s, *row) for at, row in enumerate(rows)]
    trace = Trace.of_rows(timed, len(rows) * step_s)
    assert Trace.from_csv(trace.to_csv()) == trace
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    "text",
    [
        "",
        "time,up\n0,1\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,1,1,1,0\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,1,1,1,0\n1,1,1,1\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,fast,1,1,0\n1,1,1,1,0\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,nan,1,1,0\n1,1,1,1,0\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,-1,1,1,0\n1,1,1,1,0\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,1,1,1,2\n1,1,1,1,2\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n1,1,1,1,0\n2,1,1,1,0\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,1,1,1,0\n0,1,1,1,0\n1,1,1,1,0\n",
        "time_s,up_bps,down_bps,rtt_s,loss_ratio\n0,1,1,1,0\n5,1,1,1,0\n4,1,1,1,0\n",
    ],
)
def test_what_is_no_trace_is_refused(text):
    with pytest.raises(TraceInvalid):
        Trace.from_csv(text, "odd")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time_s": 3}', json.dumps({"time_s": [0], "duration_s": "x"})])
def test_what_is_no_json_trace_is_refused(text, tmp_path):
    with pytest.raises(TraceInvalid):
        Trace.from_json(text)
    with pytest.raises(TraceInvalid, match="nowhere"):
        Trace.read(tmp_path / "nowhere.csv")


def test_a_steady_link_keeps_its_median():
    link = load.link_class("satellite")
    trace = Trace.steady(link, 30)
    assert trace.at(17) == (link.up_bps, link.down_bps, link.rtt_s, link.loss_ratio)
    drawn = draw(load.link_class("ethernet"), 30, seed=1)
    assert set(drawn.up_bps) == {load.link_class("ethernet").up_bps}


def test_the_seed_is_the_trace():
    link = load.link_class("lte")
    assert draw(link, 600, seed=5) == draw(link, 600, seed=5)
    assert draw(link, 600, seed=5) != draw(link, 600, seed=6)


@pytest.mark.parametrize("link", CHANGING, ids=lambda link: link.name)
def test_drawn_traces_have_the_published_statistics(link):
    """Median, quartiles, 5th percentile, shares of the states and lengths of their visits, over long traces."""
    traces = [draw(link, 30_000, seed=seed) for seed in range(2)]
    up, down = (np.concatenate([getattr(trace, way) for trace in traces]) for way in ("up_bps", "down_bps"))
    for drawn, published in ((up, link.up), (down, link.down)):
        assert np.median(drawn) == pytest.approx(published.median_bps, rel=0.08)
        assert np.percentile(drawn, 75) == pytest.approx(published.p75_bps, rel=0.08)
        assert np.percentile(drawn, 95) == pytest.approx(published.p95_bps, rel=0.08)
        assert np.percentile(drawn, 5) == pytest.approx(published.p5_bps, rel=0.3, abs=0.02 * published.median_bps)
    out = up < OUT_BELOW_RATIO * link.up_bps
    weak = (up < WEAK_BELOW_RATIO * link.up_bps) & ~out
    for state, seen in zip(("outage", "weak", "good"), (out, weak, ~out & ~weak), strict=True):
        [published] = [one for one in link.states if one.name == state]
        assert seen.mean() == pytest.approx(published.share_ratio, rel=0.2, abs=0.004), state
        assert visit_s(seen) == pytest.approx(published.mean_s, rel=0.2, abs=0.15), state
    for trace in traces:
        assert np.median(trace.rtt_s) == pytest.approx(link.rtt_s, rel=0.2)
        assert (trace.rtt_s >= link.rtt_s / 2).all()
        assert set(trace.loss_ratio) == {link.loss_ratio}


@pytest.mark.parametrize("link", CHANGING, ids=lambda link: link.name)
def test_rates_persist_and_directions_go_together(link):
    trace = draw(link, 20_000, seed=2)
    good = trace.up_bps >= WEAK_BELOW_RATIO * link.up_bps
    pairs = good[:-1] & good[1:]
    logs = np.log(np.maximum(trace.up_bps, 1.0))
    persistence = np.corrcoef(logs[:-1][pairs], logs[1:][pairs])[0, 1]
    assert persistence == pytest.approx(link.persistence_ratio, abs=0.15)
    assert np.corrcoef(trace.up_bps, trace.down_bps)[0, 1] > 0.4


def test_smaller_steps_refine_the_same_link():
    link = load.link_class("lte")
    trace = draw(link, 10_000, seed=1, step_s=0.25)
    assert trace.n_points == 40_000
    assert np.median(trace.up_bps) == pytest.approx(link.up_bps, rel=0.1)
    good = trace.up_bps >= WEAK_BELOW_RATIO * link.up_bps
    [published] = [state for state in link.states if state.name == "good"]
    assert visit_s(good) * 0.25 == pytest.approx(published.mean_s, rel=0.25)


@pytest.mark.parametrize(("duration_s", "step_s"), [(0, 1), (-5, 1), (10, 0), (10, 20), (float("inf"), 1)])
def test_a_trace_of_no_time_is_none(duration_s, step_s):
    with pytest.raises(TraceInvalid):
        draw(load.link_class("lte"), duration_s, seed=0, step_s=step_s)
