"""What the link estimate learns from transfers whose truth is known."""

import math
import random
import statistics

import pytest
from msgspec.structs import replace

from hybrid.cost.link import LinkEstimate
from hybrid.cost.link_view import LinkView
from hybrid.cost.slow_start import slow_start_s, window_after_idle_bytes


def transfer_s(n_up: int, n_down: int, *, rtt_s: float, up_bps: float, down_bps: float) -> float:
    return rtt_s + 8 * n_up / up_bps + 8 * n_down / down_bps


def test_nothing_is_known_at_first() -> None:
    view = LinkEstimate().view
    assert view.transfer_s(1000, 1000) is None


@pytest.mark.parametrize("up_bps", [1e6, 20e6, 300e6])
@pytest.mark.parametrize("rtt_s", [0.001, 0.04, 0.6])
def test_uplink_is_learnt_from_uploads(up_bps: float, rtt_s: float) -> None:
    link, seeded = LinkEstimate(), random.Random(3)
    for at_s in range(12):
        n_up = seeded.randrange(30_000, 600_000)
        seconds = transfer_s(n_up, 2_000, rtt_s=rtt_s, up_bps=up_bps, down_bps=up_bps)
        link.observe_rtt(rtt_s * seeded.uniform(1.0, 1.02), at_s)
        link.observe_transfer(n_up, 2_000, seconds, at_s)
    expected = transfer_s(200_000, 2_000, rtt_s=rtt_s, up_bps=up_bps, down_bps=up_bps)
    assert link.view.transfer_s(200_000, 2_000) == pytest.approx(expected, rel=0.15, abs=0.002)


def test_downlink_is_learnt_from_large_replies_only() -> None:
    link = LinkEstimate()
    for at_s in range(6):
        link.observe_rtt(0.02, at_s)
        link.observe_transfer(1_000, 500_000, transfer_s(1_000, 500_000, rtt_s=0.02, up_bps=1e6, down_bps=8e6), at_s)
    assert link.view.uplink_bps is None
    assert link.view.downlink_bps == pytest.approx(8e6, rel=0.1)


def test_small_messages_teach_no_rate() -> None:
    link = LinkEstimate()
    link.observe_rtt(0.02, 0.0)
    link.observe_transfer(500, 500, 0.021, 0.0)
    assert link.view.uplink_bps is None


def test_a_link_that_collapses_is_believed_within_three_transfers() -> None:
    link = LinkEstimate()
    for at_s, up_bps in enumerate([20e6] * 20 + [1e6] * 3):
        link.observe_rtt(0.02, at_s)
        link.observe_transfer(50_000, 100, transfer_s(50_000, 100, rtt_s=0.02, up_bps=up_bps, down_bps=1e7), at_s)
    assert link.view.uplink_bps == pytest.approx(1e6, rel=0.2)


def test_an_unknown_path_forgets() -> None:
    link = LinkEstimate()
    link.observe_rtt(0.02, 5.0)
    link.observe_transfer(50_000, 100, 0.1, 5.0)
    link.forget()
    assert replace(link.view, epoch=0) == LinkView()


def test_a_request_faster_than_the_round_trip_corrects_it() -> None:
    link = LinkEstimate()
    for at_s in range(20):
        link.observe_rtt(1.3, at_s)
    link.observe_transfer(100_000, 100, 0.05, 21.0)
    assert link.view.rtt_s == pytest.approx(0.05)


# -- whole scenarios: transfers over a link whose truth is known, with jitter, idle pauses and changes


class Truth:
    """A link with TCP's slow start, jitter on the round trip, and a goodput that a test may change."""

    def __init__(
        self, *, up_bps: float, down_bps: float, rtt_s: float, jitter_s: float, seed: int, paces: bool
    ) -> None:
        self.up_bps, self.down_bps, self.rtt_s, self.jitter_s = up_bps, down_bps, rtt_s, jitter_s
        self.rng, self.paces = random.Random(seed), paces
        self.link, self.now_s, self.windows = LinkEstimate(), 1000.0, [14_480.0, 14_480.0]
        self.last_s = -1e9
        self.errors: list[float] = []

    def _one_way_s(self, place: int, n_bytes: int, bps: float) -> float:
        window = window_after_idle_bytes(self.windows[place], self.now_s - self.last_s, self.rtt_s)
        moving_s = 8 * n_bytes / bps
        self.windows[place] = max(window, min(window + n_bytes, n_bytes, bps * self.rtt_s / 8), 14_480.0)
        return moving_s + (0.0 if self.paces else slow_start_s(n_bytes, moving_s, window, self.rtt_s))

    def transfer(self, n_up: int, n_down: int, pause_s: float) -> None:
        self.now_s += pause_s
        expected_s = self.link.view.transfer_s(n_up, n_down, self.now_s)
        up_s, down_s = self._one_way_s(0, n_up, self.up_bps), self._one_way_s(1, n_down, self.down_bps)
        rtt_s = max(0.2 * self.rtt_s, self.rng.gauss(self.rtt_s, self.jitter_s))
        network_s = rtt_s + up_s + down_s
        self.now_s += network_s
        self.last_s = self.now_s
        if expected_s is not None:
            self.errors.append(abs(expected_s - network_s) / network_s)
        self.link.observe_transfer(n_up, n_down, network_s, self.now_s, up_s, reply_s=down_s)
        self.link.observe_rtt(max(0.2 * self.rtt_s, self.rng.gauss(self.rtt_s, self.jitter_s)), self.now_s)


@pytest.mark.parametrize("paces", [False, True], ids=["cubic", "bbr"])
@pytest.mark.parametrize(
    ("up_bps", "down_bps", "rtt_s"), [(1e6, 4e6, 0.09), (8e6, 30e6, 0.045), (40e6, 60e6, 0.006), (90e6, 5e6, 0.02)]
)
def test_steady_links_are_predicted_within_five_percent(
    up_bps: float, down_bps: float, rtt_s: float, paces: bool
) -> None:
    """Sizes from 10 to 300 kB up and 1 to 100 kB down, pauses from none to seconds, 5 % jitter on the round trip."""
    truth = Truth(up_bps=up_bps, down_bps=down_bps, rtt_s=rtt_s, jitter_s=0.05 * rtt_s, seed=7, paces=paces)
    for _ in range(150):
        n_up, n_down = truth.rng.randrange(10_000, 300_000), truth.rng.randrange(1_000, 100_000)
        truth.transfer(n_up, n_down, truth.rng.choice([0.0, 0.05, 0.5, 4.0]))
    assert statistics.median(truth.errors[50:]) <= 0.05


@pytest.mark.parametrize("seed", range(4))
def test_changing_links_are_predicted_within_fifteen_percent(seed: int) -> None:
    """The goodput wanders (a tenth a request, half a decade in all) and now and then drops to a fifth for a while."""
    truth = Truth(up_bps=8e6, down_bps=30e6, rtt_s=0.045, jitter_s=0.004, seed=seed, paces=False)
    wandered, n_bad = 0.0, 0
    for _ in range(600):
        wandered = 0.98 * wandered + truth.rng.gauss(0, 0.1)
        n_bad = n_bad - 1 if n_bad else (30 if truth.rng.random() < 0.01 else 0)
        truth.up_bps = 8e6 * math.exp(wandered) * (0.2 if n_bad else 1.0)
        truth.transfer(28_000, 4_000, 0.1)
    assert statistics.median(truth.errors[50:]) <= 0.15


def test_an_asymmetric_link_is_learnt_each_way_from_few_transfers() -> None:
    truth = Truth(up_bps=2e6, down_bps=40e6, rtt_s=0.03, jitter_s=0.001, seed=3, paces=True)
    for _ in range(6):
        truth.transfer(60_000, 50_000, 0.1)
    assert truth.link.view.uplink_bps == pytest.approx(2e6, rel=0.1)
    assert truth.link.view.downlink_bps == pytest.approx(40e6, rel=0.2)


def test_what_was_cancelled_bounds_the_goodput_and_is_waited_for() -> None:
    link = LinkEstimate()
    for at_s in range(1000, 1010):
        link.observe_rtt(0.02, at_s)
        link.observe_transfer(60_000, 100, 0.02 + 8 * 60_000 / 20e6, at_s + 0.5)
    for at_s in range(1010, 1016):
        link.observe_cut_short(200_000, 16_000, 0.22, at_s)  # 16 to 32 kB arrived in 0.2 s
    assert link.view.uplink_bps is not None
    assert 0.6e6 < link.view.uplink_bps < 1.6e6
    assert link.view.backlog_s(1015.0) > 0.2
    assert link.view.backlog_s(1030.0) == 0.0
    link.observe_cut_short(200_000, 200_000, 0.9, 1031.0, acked_after_s=0.02 + 8 * 200_000 / 8e6)
    link.observe_cut_short(200_000, 200_000, 0.9, 1032.0, acked_after_s=0.02 + 8 * 200_000 / 8e6)
    assert link.view.uplink_bps == pytest.approx(8e6, rel=0.25)


def test_a_message_that_may_have_arrived_says_nothing_when_it_is_cancelled() -> None:
    link = LinkEstimate()
    link.observe_cut_short(600, 0, 0.5, 10.0)
    assert link.view.uplink_bps is None


def test_what_every_request_takes_beside_its_bytes_is_no_part_of_the_goodput() -> None:
    """20 ms of threads and messages a request: messages of other sizes than those sent are predicted right."""
    link = LinkEstimate()
    for step in range(20):
        at_s, n_up = 1000.0 + 0.1 * step, 16_000
        link.observe_rtt(0.01, at_s)
        up_s = 8 * n_up / 30e6
        link.observe_transfer(n_up, 500, 0.01 + 0.02 + up_s, at_s, up_s)
    assert link.view.overhead_s == pytest.approx(0.02, rel=0.1)
    assert link.view.transfer_s(80_000, 500) == pytest.approx(0.03 + 8 * 80_000 / 30e6, rel=0.05)
    small = LinkEstimate()
    for step in range(10):
        small.observe_rtt(0.01, 1000.0 + step)
        small.observe_transfer(600, 500, 0.025, 1000.5 + step)
    assert small.view.rtt_s == pytest.approx(0.01)
    assert small.view.transfer_s(600, 500) == pytest.approx(0.025, rel=0.05)


def test_an_outage_is_no_slow_link_once_a_new_connection_stands() -> None:
    link = LinkEstimate()
    for at_s in range(5):
        link.observe_rtt(0.01, at_s)
        link.observe_transfer(600_000, 4_000, transfer_s(600_000, 4_000, rtt_s=0.01, up_bps=2e7, down_bps=2e7), at_s)
    before_bps, epoch = link.view.uplink_bps or 0.0, link.epoch
    assert before_bps > 1.5e7
    link.observe_cut_short(600_000, 100_000, 0.2, 5.0)  # the link dies in mid-upload
    for at_s in (5.2, 5.4):
        link.observe_cut_short(600_000, 0, 0.2, at_s)
    assert (link.view.uplink_bps or 0.0) < 5e6
    link.reconnected()
    assert link.view.uplink_bps == pytest.approx(before_bps)
    assert link.view.measured_s == 4
    assert link.epoch != epoch
    for at_s in (6.0, 6.2, 6.4):
        link.observe_cut_short(600_000, 0, 0.2, at_s)
    link.reconnected()  # nothing was finished since: perhaps it has become slow indeed
    assert (link.view.uplink_bps or 0.0) < 5e6


def test_a_request_that_waited_for_a_dead_link_is_no_overhead() -> None:
    link = LinkEstimate()
    for step in range(10):
        link.observe_rtt(0.02, 1.0 + step)
        link.observe_transfer(50_000, 2_000, 0.05, 1.0 + step, receive_s=0.02)
    before_s = link.view.overhead_s
    link.observe_transfer(50_000, 2_000, 16.0, 40.0, receive_s=0.02)
    assert link.view.overhead_s < before_s + 0.02
    for step in range(20):
        link.observe_transfer(50_000, 2_000, 0.08, 41.0 + step, receive_s=0.02)
    assert link.view.overhead_s == pytest.approx(0.04, rel=0.2), "what is always there is learnt"


def test_a_link_is_hoped_to_be_as_good_as_it_has_been() -> None:
    hopes = {}
    for sigma in (0.0, 0.5):
        link, rng = LinkEstimate(), random.Random(3)
        assert link.view.likely_ratio(1e6) == 1.0, "nothing is known"
        link.observe_rtt(0.02, 0.5)
        for step in range(200):
            seconds = 8 * 100_000 / (10e6 * rng.lognormvariate(0.0, sigma))
            link.observe_transfer(100_000, 1_000, 0.02 + seconds, 1.0 + step, receive_s=seconds)
        hopes[sigma] = link.view.likely_ratio(1e6)
        assert link.view.likely_ratio(1e9) == 1.0
    assert hopes[0.0] == pytest.approx(10, rel=0.3), "a steady link is never better"
    assert hopes[0.5] > 2 * hopes[0.0], "a changing one is"


def test_an_upload_without_any_sample_is_not_given_back_as_unknown() -> None:
    """All of the first uploads may have been slow start, which tells nothing of the rate."""
    link = LinkEstimate()
    link.observe_rtt(0.1, 1.0)
    link.observe_transfer(20_000, 500, 0.2, 2.0, receive_s=0.1)
    link.observe_cut_short(200_000, 60_000, 0.5, 3.0)
    known_bps = link.view.uplink_bps
    link.reconnected()
    assert (link.view.uplink_bps is None) == (known_bps is None)


@pytest.mark.parametrize(("congestion", "is_cold"), [("bbr", False), ("cubic", True), ("", True)])
def test_learning_begins_with_what_the_congestion_control_is_known_to_do(congestion: str, is_cold: bool) -> None:
    """An upload of 100 kB in 160 ms: 5 Mbit/s for one that paces itself; slow start may have waited for all of it."""
    link = LinkEstimate()
    link.paced(congestion)
    link.observe_rtt(0.07, 1.0)
    link.observe_transfer(100_000, 500, 0.24, 2.0, receive_s=0.16)
    bps = link.view.uplink_bps
    if is_cold:
        assert bps is None or bps > 10e6
    else:
        assert bps == pytest.approx(5e6, rel=0.1)
    link.forget()
    assert (link.view.cold_ratio > 0) == is_cold, "another path, the same kernel"
