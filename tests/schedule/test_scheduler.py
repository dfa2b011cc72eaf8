"""The running state of a route: it finds the better side, does not flap, learns from lost races, and comes back."""

import math
import random
from dataclasses import dataclass, field, replace

import pytest

from hybrid.schedule.deciding import replay
from hybrid.schedule.prices import PRICES
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.scheduler import Scheduler
from hybrid.schedule.standing import Standing

FREE = Constraints()
URL = "g"
OFFLOAD = Prospect(placement="offload", codec="jpeg", gateway=URL, encode_s=0.002, bytes_up=30_000, bytes_down=2_000,
                   tail_s=0.01)  # fmt: skip
SPLIT = Prospect(placement="split", cut="c" * 16, codec="q8", gateway=URL, head_s=0.03, bytes_up=12_000,
                 bytes_down=2_000, tail_s=0.008)  # fmt: skip


@dataclass
class Place:
    """A device with a link and a gateway whose truth a test sets; requests come one after the other."""

    objective: str = "latency"
    local_s: float = 0.1
    up_bps: float = 20e6
    rtt_s: float = 0.02
    noise: float = 0.0
    is_down: bool = False
    seed: int = 1
    now_s: float = 1000.0
    log: list[tuple[float, object, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.standing = Standing(seed=self.seed)
        self.scheduler = Scheduler(PRICES[self.objective])
        self.scheduler.profile_local(self.local_s)
        self.scheduler.put_gateways({URL: self.standing})
        self.scheduler.put_prospects([OFFLOAD, SPLIT])
        for _ in range(4):
            self.standing.link.observe_rtt(self.rtt_s, self.now_s)
            self._transfer(OFFLOAD)
            self.now_s += 0.1

    def _wobble(self) -> float:
        return math.exp(self.rng.gauss(0, self.noise))

    def _transfer(self, prospect: Prospect) -> float:
        network_s = (self.rtt_s + 8 * (prospect.bytes_up + prospect.bytes_down) / self.up_bps) * self._wobble()
        self.standing.link.observe_transfer(prospect.bytes_up, prospect.bytes_down, network_s, self.now_s)
        return network_s

    def request(self, pause_s: float = 0.05) -> float:
        """One request carried out as decided; its seconds."""
        scheduler, standing = self.scheduler, self.standing
        decision = scheduler.decide(self.now_s, constraints=FREE)
        assert replay(decision.inputs, scheduler.table) == decision
        prospect = scheduler.table.prospects[decision.index]
        local_s = self.local_s * self._wobble()
        if decision.index == 0:
            total_s = local_s
            self.now_s += total_s
            scheduler.observe_local(total_s, self.now_s)
        else:
            total_s = self._remote(decision, prospect, local_s)
            standing.link.observe_rtt(self.rtt_s * self._wobble(), self.now_s)
        scheduler.observe_answer(decision, total_s)
        self.log.append((self.now_s, decision, total_s))
        self.now_s += pause_s
        return total_s

    def _remote(self, decision, prospect, local_s):
        scheduler, standing = self.scheduler, self.standing
        standing.breaker.sent(self.now_s)
        here_s = (prospect.head_s or 0.0) + prospect.encode_s
        bytes_s = 8 * (prospect.bytes_up + prospect.bytes_down) / self.up_bps
        remote_s = math.inf if self.is_down else (self.rtt_s + bytes_s) * self._wobble() + prospect.tail_s
        hedged_s = decision.hedge_s + local_s
        departed_s = self.now_s + here_s
        if remote_s <= hedged_s:
            self.now_s = departed_s + remote_s
            standing.link.observe_transfer(
                prospect.bytes_up, prospect.bytes_down, remote_s - prospect.tail_s, self.now_s
            )
            scheduler.observe_remote(
                decision, prospect, remote_s, queue_s=0.0, tail_s=prospect.tail_s, now_s=self.now_s
            )
            return here_s + remote_s
        self.now_s = departed_s + hedged_s
        moved = 0 if self.is_down else int(self.up_bps / 8 * max(0.0, hedged_s - self.rtt_s))
        if self.is_down and hedged_s > 3 * self.rtt_s:
            scheduler.observe_failure(prospect, self.now_s)
        else:
            standing.breaker.withdrawn()
            scheduler.observe_cut_short(decision, prospect, hedged_s, min(moved, prospect.bytes_up), self.now_s)
        scheduler.observe_local(local_s, self.now_s)
        return here_s + hedged_s

    def placements(self, last: int) -> list[str]:
        """Of the last requests; a trial counts as the plan that it stands aside of."""
        indices = [decision.inputs.current if decision.is_trial else decision.index for _, decision, _ in self.log]
        return [self.scheduler.table.prospects[index].placement for index in indices[-last:]]

    def n_changes(self, since_s: float) -> int:
        return sum(decision.is_switch for at_s, decision, _ in self.log if at_s >= since_s)


@pytest.mark.parametrize(
    ("objective", "up_bps", "placement"),
    [
        ("latency", 20e6, "offload"),
        ("latency", 0.3e6, "local"),
        ("energy", 20e6, "offload"),
        ("energy", 0.2e6, "local"),
        ("bytes", 20e6, "local"),
    ],
)
def test_finds_the_better_side(objective: str, up_bps: float, placement: str) -> None:
    place = Place(objective=objective, up_bps=up_bps)
    for _ in range(60):
        place.request()
    assert place.placements(30).count(placement) >= 29


@pytest.mark.parametrize("objective", ["latency", "energy"])
@pytest.mark.parametrize("seed", range(6))
def test_at_most_one_change_in_ten_seconds_on_a_steady_noisy_link(objective: str, seed: int) -> None:
    """The worst case: two ways that are equally good, and a fifth of noise on everything."""
    bytes_s = 8 * (OFFLOAD.bytes_up + OFFLOAD.bytes_down) / 8e6
    tied_s = OFFLOAD.encode_s + 0.04 + bytes_s + OFFLOAD.tail_s
    place = Place(objective=objective, local_s=tied_s, up_bps=8e6, rtt_s=0.04, noise=0.2, seed=seed)
    for _ in range(40):
        place.request()
    started_s = place.now_s
    while place.now_s < started_s + 120.0:
        place.request()
    assert place.n_changes(started_s) <= 12, "more than one change in ten seconds"


def test_a_link_that_collapses_is_left_within_three_requests() -> None:
    place = Place(objective="energy")
    for _ in range(40):
        place.request()
    assert place.placements(5) == ["offload"] * 5
    place.up_bps = 0.3e6
    for _ in range(8):
        place.request()
    assert "offload" not in place.placements(4)


def test_a_link_that_recovers_is_found_again_without_shadow_requests() -> None:
    place = Place(objective="energy", up_bps=0.3e6)
    for _ in range(80):
        place.request()
    assert set(place.placements(10)) == {"local"}
    place.up_bps = 20e6
    for _ in range(150):
        place.request()
    assert place.placements(20).count("offload") >= 15


def test_trials_cost_a_small_share() -> None:
    place = Place(objective="energy", up_bps=0.3e6)
    for _ in range(600):
        place.request()
    spent = sum(decision.trial_cost for _, decision, _ in place.log if decision.is_trial)
    assert 0 < spent <= 0.02 * sum(decision.cost for _, decision, _ in place.log)


def test_a_race_that_the_device_always_wins_still_teaches_the_link() -> None:
    place = Place(local_s=0.1, up_bps=20e6)
    for _ in range(30):
        place.request()
    assert place.placements(10) == ["offload"] * 10
    place.up_bps = 0.8e6
    for _ in range(100):
        place.request()
    believed_bps = place.standing.link.view.uplink_bps
    assert believed_bps is not None
    assert 0.8e6 <= believed_bps <= 0.8e6 * 4, "known to a chunk: more than 8 of 30 kB had not arrived"
    assert place.placements(20).count("local") >= 15


def test_a_dead_gateway_costs_little_and_comes_back_within_three_seconds() -> None:
    place = Place()
    for _ in range(40):
        place.request()
    place.is_down = True
    for _ in range(60):
        assert place.request() <= 1.2 * place.local_s
    assert place.standing.breaker.state(place.now_s) != "closed"
    place.is_down, back_s = False, place.now_s
    while place.placements(1) != ["offload"] or place.standing.breaker.state(place.now_s) != "closed":
        place.request()
        assert place.now_s - back_s <= 3.0


def test_predictions_are_within_five_percent_where_nothing_changes() -> None:
    for local_s, up_bps in ((0.1, 20e6), (0.1, 0.3e6), (0.3, 3e6)):
        place = Place(local_s=local_s, up_bps=up_bps, noise=0.02)
        for _ in range(120):
            place.request()
        error = place.scheduler.errors.median_ratio()
        assert error is not None
        assert error <= 0.05


def test_a_device_that_throttles_moves_the_plan_within_three_requests() -> None:
    place = Place(objective="energy", local_s=0.02, up_bps=1.5e6, rtt_s=0.05)
    for _ in range(40):
        place.request()
    assert place.placements(5) == ["local"] * 5
    place.local_s = 0.6
    for _ in range(5):
        place.request()
    assert place.placements(1) == ["offload"]


def test_probes_are_due_for_what_is_unknown_or_silent_and_never_where_they_cannot_matter() -> None:
    scheduler, standing = Scheduler(PRICES["latency"]), Standing(seed=1)
    scheduler.profile_local(0.1)
    scheduler.put_gateways({URL: standing})
    scheduler.put_prospects([OFFLOAD])
    unknown = scheduler.probe_due(10.0, constraints=FREE)
    assert unknown is not None
    assert unknown.index == 1
    assert scheduler.probe_due(10.0, constraints=FREE, down={URL}) is None
    standing.link.observe_rtt(0.02, 10.0)
    standing.link.observe_transfer(30_000, 2_000, 0.05, 10.0)
    standing.succeeded(0.0, 10.0)
    assert scheduler.probe_due(11.0, constraints=FREE) is None, "it was just heard of"
    for step in range(100):
        scheduler.decide(11.0 + step, constraints=FREE)
    silent = scheduler.probe_due(200.0, constraints=FREE)
    assert silent is not None
    assert silent.decision.remote_s > 0
    scheduler.profile_local(0.005)
    assert scheduler.probe_due(200.0, constraints=FREE) is None, "faster here than the round trip alone"
    scheduler.profile_local(0.1)
    kept = Constraints(uplink_left_bytes=100.0)
    assert scheduler.probe_due(300.0, constraints=kept) is None


TINY = replace(OFFLOAD, codec="lossless", bytes_up=900, bytes_down=300)


def test_a_link_that_only_small_messages_cross_is_probed_once_for_its_rate_and_then_left_alone() -> None:
    scheduler, standing = Scheduler(PRICES["energy"]), Standing(seed=1)
    scheduler.profile_local(0.3)
    scheduler.put_gateways({URL: standing})
    scheduler.put_prospects([TINY, OFFLOAD])
    standing.link.observe_rtt(0.02, 10.0)
    standing.link.observe_transfer(900, 300, 0.03, 10.0)
    standing.succeeded(0.0, 10.0)
    assert scheduler.probe_due(11.0, constraints=FREE) is None, "nothing was saved up yet"
    for step in range(200):
        scheduler.decide(11.0 + step, constraints=FREE)
        standing.succeeded(0.0, 11.0 + step)
    probe = scheduler.probe_due(211.0, constraints=FREE)
    assert probe is not None
    assert scheduler.table.prospects[probe.index] == OFFLOAD, "the small one tells no rate"
    standing.link.observe_transfer(OFFLOAD.bytes_up, OFFLOAD.bytes_down, 0.4, 211.0, receive_s=0.35)
    standing.succeeded(0.0, 211.0)
    assert scheduler.probe_due(212.0, constraints=FREE) is None


def test_probes_leave_the_engine_to_requests_that_race() -> None:
    split = replace(OFFLOAD, placement="split", cut="c" * 16, head_s=0.01, bytes_up=3_000, raw_input=False)
    for n_cores, placement in ((1, "split"), (4, "offload")):
        scheduler = Scheduler(PRICES["latency"], n_cores=n_cores)
        scheduler.profile_local(0.3)
        scheduler.put_gateways({URL: Standing(seed=1)})
        scheduler.put_prospects([split, replace(OFFLOAD, bytes_up=300_000)])
        probe = scheduler.probe_due(10.0, constraints=FREE)
        assert probe is not None
        assert scheduler.table.prospects[probe.index].placement == placement


def test_looking_at_the_inputs_changes_nothing() -> None:
    place = Place()
    first = place.scheduler.inputs(place.now_s, constraints=FREE)
    assert place.scheduler.inputs(place.now_s, constraints=FREE) == first
    assert first.is_changed


def test_the_profile_of_the_device_is_the_shortest_of_its_first_runs() -> None:
    scheduler = Scheduler(PRICES["latency"])
    for at_s, seconds in enumerate([0.9, 0.12, 0.10, 0.11, 0.05, 0.10, 0.01]):
        scheduler.observe_local(seconds, float(at_s))
    assert scheduler.local_s == 0.05
    assert scheduler.table.prospects[0].head_s == 0.05


def test_the_plan_survives_new_prospects() -> None:
    place = Place()
    place.request()
    place.scheduler.put_prospects([SPLIT, OFFLOAD])
    decision = place.scheduler.decide(place.now_s, constraints=FREE)
    assert place.scheduler.table.prospects[decision.inputs.current] == OFFLOAD
    assert not decision.is_switch


def test_what_an_attempt_takes_from_the_device_is_learnt_and_ends_races_that_do_not_pay() -> None:
    scheduler, standing = Scheduler(PRICES["latency"]), Standing(seed=1)
    scheduler.profile_local(0.03)
    scheduler.put_gateways({URL: standing})
    scheduler.put_prospects([OFFLOAD])
    for step in range(20):
        now_s = 10.0 + 0.1 * step
        standing.link.observe_rtt(0.02, now_s)
        standing.link.observe_transfer(30_000, 2_000, 0.02 + 0.006, now_s)
        standing.succeeded(0.0, now_s)
        scheduler.observe_local(0.03, now_s)
    assert scheduler.decide(12.0, constraints=FREE).index == 1, "about equal: a race costs next to nothing"
    for step in range(20):
        scheduler.observe_local(0.055, 12.1 + 0.1 * step, is_beside_attempt=True)
    assert scheduler.inputs(14.1, constraints=FREE).attempt_s == pytest.approx(0.025, rel=0.1)
    assert scheduler.device_speed_ratio == pytest.approx(1.0, rel=0.01), "the device itself has not become slower"
    slow = Scheduler(PRICES["latency"])
    slow.profile_local(0.03)
    slow.put_gateways({URL: standing})
    slow.put_prospects([OFFLOAD])
    for step in range(30):
        slow.observe_local(0.03, 14.2 + 0.01 * step)
        slow.observe_local(0.055, 14.2 + 0.01 * step, is_beside_attempt=True)
    standing.link.observe_rtt(0.035, 14.5)
    standing.link.observe_rtt(0.035, 14.6)
    standing.link.observe_rtt(0.035, 14.7)
    decision = slow.decide(14.7, constraints=FREE)
    assert decision.index == 0 or decision.hedge_s != 0.0


def test_a_gateway_that_acknowledges_nothing_counts_as_failing_though_the_device_wins_every_race() -> None:
    place = Place(local_s=0.2)
    for _ in range(30):
        place.request()
    scheduler, standing = place.scheduler, place.standing
    decision = scheduler.decide(place.now_s, constraints=FREE)
    assert decision.hedge_s == 0.0
    for n_stuck in range(3):
        assert standing.breaker.state(place.now_s) == "closed", n_stuck
        scheduler.observe_cut_short(decision, OFFLOAD, 0.2, 0, place.now_s)
    assert standing.breaker.state(place.now_s) != "closed"
    assert decision.patience_s > 0.2, "within the patience of a single request"


def test_a_trial_that_the_device_outran_does_not_keep_the_next_one_from_a_gateway_that_is_back() -> None:
    place = Place()
    scheduler, breaker = place.scheduler, place.standing.breaker
    scheduler.observe_failure(OFFLOAD, place.now_s)
    place.standing.reconnected(place.now_s)
    decision = scheduler.decide(place.now_s, constraints=FREE)
    breaker.sent(place.now_s)
    assert not breaker.allows(place.now_s + 0.1), "one trial at a time"
    scheduler.observe_cut_short(decision, OFFLOAD, 0.1, OFFLOAD.bytes_up // 2, place.now_s + 0.1)
    assert breaker.allows(place.now_s + 0.1)
