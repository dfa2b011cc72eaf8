"""The world: closed forms, conservation, races, cancellation, faults, streams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.trace import Trace
from hybrid.schedule.prices import PRICES
from hybrid.simulation.curve import Steps
from hybrid.simulation.device import DeviceModel
from hybrid.simulation.gateway import Fault, GatewayModel
from hybrid.simulation.oracle import Foresight, Oracle
from hybrid.simulation.outcome import COLUMNS
from hybrid.simulation.policy import Conduct, Static
from hybrid.simulation.scheduled import Scheduled
from hybrid.simulation.stream import Stream
from hybrid.simulation.world import World
from tests.simulation.scenes import CHANGING, EXACT, STEADY, Hedged, scene, work

LOCAL, OFFLOAD, SPLIT = 0, 1, 2
OFFLOAD_S = 0.002 + 0.02 + 8 * 10_000 / 8e6 + 0.01 + 8 * 1000 / 8e6 + 0.02
SPLIT_S = 0.03 + 0.02 + 8 * 3333 / 8e6 + 0.007 + 8 * 1000 / 8e6 + 0.02


def ran(policy, **settings):
    return World(scene(**(EXACT | settings)), policy).run()


@pytest.mark.parametrize(("prospect", "seconds"), [(LOCAL, 0.1), (OFFLOAD, OFFLOAD_S), (SPLIT, SPLIT_S)])
def test_one_request_at_a_time_on_a_steady_link_takes_the_sum_of_its_parts(prospect, seconds):
    outcome = ran(Static(prospect, "static"))
    assert outcome.n_requests == 300
    assert outcome.latency_s == pytest.approx(np.full(300, seconds), rel=1e-9)
    assert (outcome.winner == prospect).all()
    assert not outcome.wasted_s.any()


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    first, again = (World(scene(CHANGING, jitter_s=0.005), Static(OFFLOAD, "x")).run() for _ in range(2))
    other = World(scene(CHANGING, jitter_s=0.005, seed=5), Static(OFFLOAD, "x")).run()
    for name in COLUMNS:
        assert np.array_equal(getattr(first, name), getattr(again, name), equal_nan=True), name
    assert not np.array_equal(first.latency_s, other.latency_s)


def test_a_race_costs_no_more_than_either_side_and_is_charged_for_both():
    sides = [ran(Static(at, "side"), trace=CHANGING) for at in (LOCAL, OFFLOAD)]
    race = Hedged(OFFLOAD, 0.0)
    outcome = ran(race, trace=CHANGING)
    assert outcome.latency_s.max() <= 0.1 + 0.001, "never later than the device alone: it begins beside the encoding"
    assert outcome.latency_s.min() <= sides[1].latency_s.min() + 1e-9
    alone = ran(Hedged(OFFLOAD, 0.0), trace=CHANGING, device=DeviceModel(noise_ratio=0.0, n_cores=1))
    assert alone.latency_s.max() == pytest.approx(0.102, abs=0.001), "one core encodes first"
    lost = outcome.winner == LOCAL
    assert lost.any()
    assert (~lost).any()
    assert (outcome.wasted_s[~lost] > 0).all(), "the device computed in vain where the gateway was first"
    assert (outcome.wasted_bytes[lost] > 0).any()
    assert len(race.cancelled) == lost.sum()


def test_a_late_hedge_bounds_what_an_outage_costs():
    outcome = ran(Hedged(OFFLOAD, 0.15), trace=CHANGING)
    assert outcome.latency_s.max() <= 0.002 + 0.15 + 0.1 + 1e-9
    assert (outcome.winner[outcome.start_s < 25] == OFFLOAD).all()


def test_a_lost_race_still_tells_what_the_link_carried():
    slow = Trace.of_rows([(0.0, 0.4e6, 1e6, 0.05, 0.0)], 60.0)
    race = Hedged(OFFLOAD, 0.0)
    ran(race, trace=slow, stream=Stream(period_s=1.0, duration_s=30.0))
    assert len(race.cancelled) == 30
    for _, after_s, acked in race.cancelled:
        assert after_s == pytest.approx(0.098), "from departure, after 2 ms of encoding"
        assert acked == pytest.approx((0.098 - 0.025) * 0.4e6 / 8, rel=0.01), "half a round trip ago"
    assert len(race.settled) == 30
    for n_bytes, network_s in race.settled:
        assert 8 * n_bytes / (network_s - 0.05) == pytest.approx(0.4e6, rel=0.01), "an honest sample of the rate"


def test_bytes_and_seconds_are_conserved():
    """What is counted as sent never exceeds what the link could carry, nor the device's seconds the clock."""
    for policy in (Static(OFFLOAD, "x"), Hedged(OFFLOAD, 0.0), Hedged(SPLIT, 0.05)):
        settings = {"trace": CHANGING, "stream": Stream(kind="open", period_s=0.12, duration_s=60.0)}
        world = World(scene(**settings), policy)
        outcome = world.run()
        end_s = float((outcome.start_s + outcome.latency_s).max())
        assert 8 * outcome.bytes_up.sum() <= world._link.up.curve.passed_bits(end_s) + 1
        assert outcome.device_s.sum() == pytest.approx(world._device.busy_s, rel=1e-9)
        assert world._device.busy_s <= end_s
        assert (outcome.wasted_s <= outcome.device_s + 1e-12).all()
        assert (outcome.wasted_bytes <= outcome.bytes_up + outcome.bytes_down + 1e-9).all()
        assert sorted(outcome.slot) == list(range(outcome.n_requests)), "every request is answered exactly once"


def test_an_open_stream_queues_like_a_queue():
    """M/D/1: the mean wait is rho s / (2 (1 - rho)) (Pollaczek and Khinchine)."""
    stream = Stream(kind="open", period_s=0.2, duration_s=8000.0)
    outcome = ran(Static(LOCAL, "x"), stream=stream)
    assert outcome.n_requests == 40_000
    waited = outcome.latency_s.mean() - 0.1
    assert waited == pytest.approx(0.5 * 0.1 / (2 * 0.5), rel=0.1)


def test_heads_and_uploads_of_several_requests_overlap():
    """Throughput is that of the slowest stage, not of the sum of all stages."""
    stream = Stream(kind="open", period_s=0.034, duration_s=300.0)
    outcome = ran(Static(SPLIT, "x"), stream=stream)
    end_s = (outcome.start_s + outcome.latency_s).max()
    assert outcome.n_requests / end_s >= 0.97 / 0.034, "one each 34 ms, though each takes twice that"


def test_paced_streams_skip_what_comes_while_a_request_runs_and_closed_ones_wait():
    slow = ran(Static(LOCAL, "x"), work=work(local_s=0.5))
    assert np.array_equal(slow.slot, np.arange(0, 300, 3))
    closed = ran(Static(LOCAL, "x"), stream=Stream(kind="closed", period_s=0.05, duration_s=60.0))
    assert np.diff(closed.start_s) == pytest.approx(np.full(closed.n_requests - 1, 0.15))


def test_throttling_and_others_load_slow_what_they_concern():
    hot = ran(Static(LOCAL, "x"), device=DeviceModel(noise_ratio=0.0, slowdown=Steps.steady(1.4)))
    assert hot.latency_s == pytest.approx(np.full(300, 0.14))
    busy = GatewayModel(noise_ratio=0.0, overhead_s=0.0, tenant_share=0.5, tenant_s=0.02, load=Steps.steady(2.0))
    crowded = ran(Static(OFFLOAD, "x"), gateway=busy)
    assert crowded.latency_s.min() == pytest.approx(OFFLOAD_S + 0.01)
    assert crowded.latency_s.mean() - OFFLOAD_S - 0.01 == pytest.approx(0.02, rel=0.5), "rho s / (1 - rho), M/M/1"


@pytest.mark.parametrize("kind", ["crash", "freeze"])
def test_a_gateway_that_dies_costs_its_requests_the_hedge_and_comes_back(kind):
    gateway = GatewayModel(noise_ratio=0.0, faults=(Fault(start_s=10.0, end_s=20.0, kind=kind),))
    policy = Hedged(OFFLOAD, 0.1)
    outcome = ran(policy, gateway=gateway)
    assert outcome.n_requests >= 270
    assert outcome.latency_s.max() <= 0.002 + 0.1 + 0.1 + 1e-9
    away = (outcome.start_s > 10.1) & (outcome.start_s < 19.9)
    assert (outcome.winner[away] == LOCAL).all()
    assert (outcome.winner[outcome.start_s > 21.5] == OFFLOAD).all()
    if kind == "crash":
        assert [is_up for _, is_up in policy.connections] == [False, True]
        assert 20.0 < policy.connections[1][0] < 21.5


def test_an_outage_is_noticed_by_its_silence():
    policy = Hedged(OFFLOAD, None)
    outcome = ran(policy, trace=CHANGING, stream=Stream(period_s=0.2, duration_s=60.0))
    assert policy.failed
    assert 40.4 < policy.failed[0] < 41.0
    stuck = outcome.latency_s[(outcome.start_s > 39.5) & (outcome.start_s < 40.5)]
    assert stuck.max() == pytest.approx(0.1 + 0.5, abs=0.15), "patience, then the device"


def test_a_cascade_waits_as_long_as_its_system_waits():
    """Five attempts, three seconds apart: the edge's answer after twelve seconds (KubeEdge Sedna)."""
    policy = Hedged(OFFLOAD, None)
    policy.conduct = Conduct(patience_s=float("inf"), n_attempts=5, pause_s=3.0, unsure_ratio=1.0)
    gateway = GatewayModel(noise_ratio=0.0, faults=(Fault(start_s=0.0, end_s=1e6),))
    outcome = ran(policy, gateway=gateway, stream=Stream(period_s=20.0, duration_s=60.0))
    assert outcome.latency_s[1:] == pytest.approx(np.full(2, 12.0), abs=0.4)


@settings(max_examples=25, deadline=None)
@given(
    rates=st.lists(st.sampled_from([0.0, 3e5, 2e6, 2e7]), min_size=2, max_size=8).filter(any),
    jitter_s=st.sampled_from([0.0, 0.01]),
    congestion=st.sampled_from(["cubic", "bbr"]),
    seed=st.integers(0, 99),
)
def test_nobody_is_ahead_of_the_oracle_on_any_request(rates, jitter_s, congestion, seed):
    trace = Trace.of_rows([(3.0 * at, rate, 2 * rate, 0.03, 0.001) for at, rate in enumerate(rates)], 3.0 * len(rates))
    from hybrid.simulation.link import LinkModel

    place = scene(link=LinkModel(trace=trace, jitter_s=jitter_s, congestion=congestion), seed=seed)
    oracle = Oracle(place)
    policies = [
        Static(LOCAL, "x"), Static(OFFLOAD, "x"), Static(SPLIT, "x"), Hedged(OFFLOAD, 0.0), Hedged(SPLIT, 0.05),
        Foresight(place), Scheduled(place.work, PRICES["latency"]),
    ]  # fmt: skip
    for policy in policies:
        outcome = World(place, policy).run()
        costs, _ = oracle.costs(outcome.slot, outcome.start_s)
        assert (costs <= outcome.latency_s + 1e-9).all(), policy.name


def test_the_oracle_knows_when_the_link_will_be_bad():
    place = scene(CHANGING, **EXACT)
    slots = np.arange(300.0)
    costs, chosen = Oracle(place).costs(slots, slots * 0.2)
    bad = (slots * 0.2 >= 39.95) & (slots * 0.2 < 44.9)
    assert (chosen[bad] == LOCAL).all()
    assert (chosen[(slots * 0.2 < 29)] == OFFLOAD).all()
    assert costs[0] == pytest.approx(0.002 + 0.04 + 8e4 / 20e6 + 0.01 + 8e3 / 50e6)


def test_the_scheduler_learns_from_what_the_world_shows_it():
    place = scene(jitter_s=0.003)
    ours = World(place, Scheduled(place.work, PRICES["latency"])).run()
    offload = World(place, Static(OFFLOAD, "x")).run()
    late = ours.start_s > 10
    assert ours.latency_s[late].mean() <= 1.03 * offload.latency_s.mean()
    assert np.median(ours.prediction_error()) < 0.1


def test_streams_that_are_none_are_refused():
    with pytest.raises(ValueError, match="is none"):
        Stream(period_s=0.0, duration_s=1.0)
    with pytest.raises(ValueError, match="local"):
        type(work())(name="x", prospects=work().prospects[1:])


def test_the_steady_scene_is_the_one_that_is_described():
    assert STEADY.at(3.0).up_bps == 8e6
