"""The running state of one route: what was measured, the plan in use, and the next decision.

Design: sans I/O. Time comes in as `now_s`, events as `observe_*`, and decisions go out; the live session and the
simulator use the same object. All deciding is in `deciding.decide`, a pure function of `Inputs`; this class only makes
the inputs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, Required, TypedDict, Unpack

from hybrid.cost.energy import GENERIC_POWER, Power
from hybrid.cost.link_view import MIN_RATE_SAMPLE_BYTES, LinkView
from hybrid.cost.prediction_error import PredictionError
from hybrid.cost.residuals import Residuals
from hybrid.cost.running import RunningEstimate
from hybrid.cost.slow_start import LEAST_RTO_S
from hybrid.schedule.beliefs import RULE, Decision, GatewayBelief, Inputs
from hybrid.schedule.deciding import decide
from hybrid.schedule.prices import Prices
from hybrid.schedule.probing import COST_SHARE, LEAST_PAUSE_S, Errand, Probe, errand, pause_s
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.standing import Standing
from hybrid.schedule.table import Table

PROFILE_RUNS: Final = 5
"""The shortest of the first runs (the very first one, which warms up, left out) is the profile of the device."""


ATTEMPT_GAIN: Final = 0.15
FASTER_RATIO: Final = 0.15

GAP_GAIN: Final = 0.2
MOST_GAP_S: Final = 5.0
MOST_SAVED: Final = 2.0
"""What probes may cost is saved up to the cost of so many requests."""

WARM_RATIO: Final = 0.1
"""On a connection that requests keep warm slow start comes once in a while."""


class Circumstances(TypedDict, total=False):
    """What a request meets beside what the scheduler knows.

    Attributes:
        constraints: what a plan must keep.
        deadline_left_s: seconds left for this request; None, or left out, without a deadline.
        n_device_runs: runs that compute on this device now (hedges included).
        n_in_flight: requests of this session that are under way, this one left out.
        down: URLs of gateways without a connection now.
    """

    constraints: Required[Constraints]
    deadline_left_s: float | None
    n_device_runs: int
    n_in_flight: int
    down: Collection[str]


class _Told:
    """What one route has learnt of one gateway: how fast its tails are, and how far predictions were off."""

    __slots__ = ("residuals", "speed")

    def __init__(self) -> None:
        self.speed = RunningEstimate()
        self.residuals = Residuals()


class Scheduler:
    """Chooses among the ways of one route (one model and shape key on this device).

    Written by finished runs and the preparation thread, read by every run: what a decision reads is replaced as a
    whole.

    Args:
        prices: what joules and bytes are worth: `PRICES[objective]`.
        power: watts of this device; a generic one is assumed where none is known.
        attempt_s: what a remote attempt takes from a run beside it, until that is measured; next to nothing where
            another core sends and receives.
        n_cores: cores that the device may use.

    Attributes:
        table: the ways that are offered now; the first one is the whole model on this device.
        local_s: profiled seconds of the whole model on this device, None while it was not timed.
        standings: the gateways by URL.
        errors: how good the predictions were.
    """

    def __init__(
        self, prices: Prices, *, power: Power = GENERIC_POWER, attempt_s: float = 0.0, n_cores: int = 1
    ) -> None:
        self.prices = prices
        self.power = power
        self.n_cores = n_cores
        self.table = Table((Prospect(placement="local", head_s=None),))
        self.local_s: float | None = None
        self.standings: dict[str, Standing] = {}
        self.errors = PredictionError()
        self._told: dict[str, _Told] = {}
        self._device = RunningEstimate()
        self._n_local_runs = 0
        self._decided_s = 0.0
        self._gap_s: float | None = None
        self._current = -1
        self._current_since_s = 0.0
        self._regret_s = 0.0
        self._saved, self._n_trials = 0.0, 0
        self._n_repeats = 0
        self._attempt_s, self._n_beside = attempt_s, int(attempt_s > 0)
        self._epochs: tuple[object, ...] = ()
        self._seen: tuple[object, ...] = ()

    # -- what there is to choose from

    def put_prospects(self, remote: Sequence[Prospect], variants: Sequence[Prospect] = ()) -> None:
        """Replaces the ways beside the whole model on this device: local variants, and the remote ones."""
        local = replace(self.table.prospects[0], head_s=self.local_s)
        self._put(Table((local, *variants, *remote)))

    def put_gateways(self, standings: Mapping[str, Standing]) -> None:
        """Replaces the gateways; what was learnt of those that stay is kept."""
        self.standings = dict(standings)

    def profile_local(self, seconds: float, *, is_settled: bool = False) -> None:
        """Sets the profiled seconds of the whole model on this device; settled ones are not replaced by first runs."""
        self.local_s = seconds
        if is_settled:
            self._n_local_runs = max(self._n_local_runs, PROFILE_RUNS + 1)
        local, *others = self.table.prospects
        self._put(Table((replace(local, head_s=seconds), *others)))

    def _put(self, table: Table) -> None:
        current = self._current
        key = self.table.prospects[current].key if 0 <= current < len(self.table.prospects) else None
        self._current = table.index_of(key) if key is not None else -1
        self.table = table

    # -- deciding

    def decide(self, now_s: float, **circumstances: Unpack[Circumstances]) -> Decision:
        """The plan of a request that comes now (monotonic time); the plan becomes the present one."""
        if self._decided_s > 0:
            gap_s = (now_s - self._decided_s) / (1 + self._n_repeats)
            self._gap_s = (
                gap_s if self._gap_s is None else self._gap_s + GAP_GAIN * (min(gap_s, MOST_GAP_S) - self._gap_s)
            )
        self._decided_s = now_s
        inputs = self.inputs(now_s, **circumstances)
        self._epochs = self._seen
        decision = decide(inputs, self.table)
        if decision.is_trial:
            self._saved = max(0.0, self._saved - decision.trial_cost)
            self._n_trials += 1
        elif decision.index != inputs.current:
            self._current_since_s, self._n_trials = now_s, 0
        if decision.cost is not None:
            earned = COST_SHARE * decision.cost * (1 + self._n_repeats)
            self._saved = min(self._saved + earned, MOST_SAVED * decision.cost)
        if not decision.is_trial:
            self._current = decision.index
        self._regret_s, self._n_repeats = decision.regret_s, 0
        return decision

    def repeat(self) -> None:
        """A request follows the last decision, without one of its own."""
        self._n_repeats += 1

    def has_news(self, now_s: float, down: Collection[str]) -> bool:
        """Whether anything jumped since the last decision: the device, a gateway's breaker, link or tails."""
        return self._news(now_s, down) != self._epochs

    def _news(self, now_s: float, down: Collection[str]) -> tuple[object, ...]:
        news: list[object] = [self._device.epoch]
        for url, standing in self.standings.items():
            is_usable = url not in down and standing.breaker.allows(now_s)
            news += (is_usable, standing.link.epoch, self._told_of(url).speed.epoch)
        return tuple(news)

    def inputs(self, now_s: float, **circumstances: Unpack[Circumstances]) -> Inputs:
        """What a decision rests on now; see `decide`."""
        down = circumstances.get("down", ())
        beliefs: list[GatewayBelief] = []
        for url, standing in self.standings.items():
            told, is_usable = self._told_of(url), url not in down and standing.breaker.allows(now_s)
            believed = standing.belief(
                url,
                now_s,
                is_usable=is_usable,
                speed_ratio=told.speed.value or 1.0,
                points=told.residuals.points,
                lasting_ratio=self._lasting_ratio(standing.link.view),
            )
            beliefs.append(believed)
        self._seen = self._news(now_s, down)
        return Inputs(
            table=self.table.id,
            now_s=now_s,
            prices=self.prices,
            constraints=circumstances["constraints"],
            power=self.power,
            device_speed_ratio=self.device_speed_ratio,
            device_spread_ratio=self._device.spread_ratio,
            gateways=tuple(beliefs),
            deadline_left_s=circumstances.get("deadline_left_s"),
            attempt_s=max(0.0, self._attempt_s),
            n_cores=self.n_cores,
            n_device_runs=circumstances.get("n_device_runs", 0),
            n_in_flight=circumstances.get("n_in_flight", 0),
            current=self._current,
            current_since_s=self._current_since_s,
            regret_s=self._regret_s,
            saved=self._saved,
            n_trials=self._n_trials,
            gap_s=self._gap_s or 0.0,
            is_changed=self._seen != self._epochs,
            rule=RULE,
        )

    # -- what was measured

    @property
    def device_speed_ratio(self) -> float:
        """Running ratio of measured to profiled seconds on this device."""
        return self._device.value or 1.0

    @property
    def device_spread_ratio(self) -> float:
        """Relative deviation of this device's seconds."""
        return self._device.spread_ratio

    @property
    def device_heard_s(self) -> float:
        """When this device's speed was measured last."""
        return self._device.updated_s

    def observe_local(
        self, seconds: float, now_s: float, n_beside: int = 0, *, is_beside_attempt: bool = False
    ) -> None:
        """One finished local run of the whole model.

        The shortest of the first runs becomes the profile; the second one replaces the first, which warmed up. A run
        beside a remote attempt of the same request (a hedge that won) tells what the attempt takes from the device.

        Args:
            seconds: of the run.
            now_s: monotonic time.
            n_beside: other runs that computed beside it.
            is_beside_attempt: whether this device was sending or waiting for a remote answer to the same request.
        """
        if is_beside_attempt and self.local_s:
            alone_s = self.local_s * self.device_speed_ratio * (1 + n_beside)
            lost_s = min(seconds - alone_s, alone_s)
            self._n_beside += 1
            self._attempt_s += max(ATTEMPT_GAIN, 1 / self._n_beside) * (lost_s - self._attempt_s)
            if lost_s >= -FASTER_RATIO * alone_s:
                return  # how fast the device is by itself this run does not tell; no attempt makes it faster, though
        self._n_local_runs += 1
        n_runs = self._n_local_runs
        if self.local_s is None or n_runs == 2 or (n_runs <= PROFILE_RUNS + 1 and seconds < self.local_s):
            self.profile_local(seconds)
        if self.local_s:
            self._device.observe(seconds / self.local_s / (1 + n_beside), now_s)

    def observe_head(self, prospect: Prospect, seconds: float, now_s: float, n_beside: int = 0) -> None:
        """One run of a split's head (encoding left out)."""
        if prospect.head_s:
            self._device.observe(seconds / prospect.head_s / (1 + n_beside), now_s)

    def observe_remote(
        self, decision: Decision, prospect: Prospect, remote_s: float, *, queue_s: float, tail_s: float, now_s: float
    ) -> None:
        """A remote answer came (the link has learnt from the transfer by itself).

        Args:
            decision: by which it was sent.
            prospect: the way that it took.
            remote_s: seconds from departure to the answer.
            queue_s: as the gateway reported.
            tail_s: seconds that the gateway computed.
            now_s: monotonic time.
        """
        standing, told = self.standings.get(prospect.gateway), self._told_of(prospect.gateway)
        if standing is not None:
            standing.succeeded(queue_s, now_s)
        if prospect.tail_s:
            told.speed.observe(tail_s / prospect.tail_s, now_s)
        if decision.remote_s > 0:
            told.residuals.observe(remote_s / decision.remote_s)

    def observe_failure(self, prospect: Prospect, now_s: float, retry_after_s: float | None = None) -> None:
        """A remote attempt failed by the gateway's or the link's fault."""
        standing = self.standings.get(prospect.gateway)
        if standing is not None:
            standing.failed(now_s, retry_after_s)

    def observe_cut_short(
        self,
        decision: Decision,
        prospect: Prospect,
        waited_s: float,
        acked_bytes: int,
        now_s: float,
        *,
        acked_after_s: float | None = None,
    ) -> None:
        """A remote attempt was cancelled because the device won: it would have taken longer than that.

        Args:
            decision: by which it was sent.
            prospect: the way that it took.
            waited_s: seconds from departure to the cancellation.
            acked_bytes: bytes that the gateway had acknowledged by then.
            now_s: monotonic time.
            acked_after_s: seconds from departure until the last of the acknowledged bytes was acknowledged, if known.
        """
        if decision.remote_s > 0:
            self._told_of(prospect.gateway).residuals.observe_longer(waited_s / decision.remote_s)
        standing = self.standings.get(prospect.gateway)
        if standing is None:
            return
        standing.link.observe_cut_short(prospect.bytes_up, acked_bytes, waited_s, now_s, acked_after_s=acked_after_s)
        standing.breaker.withdrawn()  # while half open it was the trial: the next request may be one
        if acked_bytes:
            standing.progressed()
        elif waited_s > decision.patience_s:
            standing.failed(now_s)
        elif waited_s > standing.link.view.first_ack_s():
            standing.no_progress(now_s)

    def observe_answer(self, decision: Decision, total_s: float) -> None:
        """An answer was given, `total_s` after the request came: how good was the prediction."""
        if decision.predicted_s and total_s > 0:
            placement = self.table.prospects[decision.index].placement
            self.errors.observe(placement, decision.predicted_s, total_s)

    # -- what is worth asking

    def probe_due(self, now_s: float, *, constraints: Constraints, down: Collection[str] = ()) -> Probe | None:
        """A shadow request that is due now, through the gateway that was not heard of longest; None when none is."""
        best: Probe | None = None
        for url, standing in self.standings.items():
            if url in down or not standing.breaker.allows(now_s):
                continue
            link = standing.link.view
            silent_s = now_s - max(standing.heard_s, link.measured_s)
            is_open = standing.breaker.state(now_s) != "closed"
            is_new, is_rated = not link.measured_s, bool(link.uplink_bps or link.downlink_bps)
            if not is_open and is_rated and silent_s < LEAST_PAUSE_S:
                continue
            found = None if is_rated else self._errand(url, link, constraints, MIN_RATE_SAMPLE_BYTES)
            tells_rate = found is not None and self._saved >= found.cost
            if not tells_rate:
                found = self._errand(url, link, constraints)
            if found is None:
                continue
            is_wanted = silent_s >= pause_s(found.seconds) and self._saved >= found.cost
            is_due = is_open or is_new or tells_rate or is_wanted
            if is_due and (best is None or silent_s > best.silent_s):
                decision = Decision(index=found.index, remote_s=self._expected_remote_s(found.index, now_s))
                best = Probe(index=found.index, silent_s=silent_s, cost=found.cost, decision=decision)
        if best is not None:
            self._saved = max(0.0, self._saved - best.cost)
        return best

    def _errand(self, url: str, link: LinkView, constraints: Constraints, least_bytes: int = 0) -> Errand | None:
        """One of at least so many bytes; where requests race, one that leaves the engine of this device to them."""
        is_headless = self.prices.is_guarded and self.n_cores > 1
        return errand(
            self.table,
            url,
            link,
            prices=self.prices,
            power=self.power,
            constraints=constraints,
            device_speed_ratio=self.device_speed_ratio,
            suits=lambda one: not (is_headless and one.head_s) and one.bytes_up + one.bytes_down >= least_bytes,
        )

    def _expected_remote_s(self, index: int, now_s: float) -> float:
        """Seconds from departure to the answer of a probe; 0 while unknown."""
        prospect = self.table.prospects[index]
        standing, told = self.standings[prospect.gateway], self._told_of(prospect.gateway)
        network_s = standing.link.view.transfer_s(prospect.bytes_up, prospect.bytes_down, now_s)
        if network_s is None:
            return 0.0
        return network_s + standing.queue_s(now_s) + (prospect.tail_s or 0.0) * (told.speed.value or 1.0)

    def _lasting_ratio(self, link: LinkView) -> float:
        """Share of slow start that lasts when all requests go this way: little where they keep the connection warm."""
        if self._gap_s is None or self._gap_s > LEAST_RTO_S + (link.rtt_s or 0.0):
            return 1.0
        return WARM_RATIO

    def _told_of(self, url: str) -> _Told:
        return self._told.get(url) or self._told.setdefault(url, _Told())
